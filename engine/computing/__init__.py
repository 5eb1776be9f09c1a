"""Torch: the model, its weights and KV memory, attention, sampling, and the executor of plans.

Knows plans and pages; knows no deadline, no tier and no transport. `runner.py` is the entry.
"""
