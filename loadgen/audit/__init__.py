"""The audit of a decision log: who was relegated, refused, preempted or late, and for whose sake.
`python -m loadgen.audit` is its command.
"""
