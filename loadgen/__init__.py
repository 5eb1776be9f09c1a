"""The load generator: what is sent (workload), who is asked (targets: a live server or a simulated
one), how good the answers were (scoring) and how that is told (reports). `python -m loadgen --help`
lists what it can do.
"""
