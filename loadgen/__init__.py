"""Load generator: what is sent (workload), to whom (a live server, or a simulated one), what came
of it (records), and how good that was (scores, reports). `python -m loadgen --help`.
"""
