"""The audit of a decision log: who was relegated, refused, preempted or late, for whose sake, and
what everybody would have had otherwise. `python -m loadgen.audit` is its command.
"""
