"""Torch: the model, its weights and KV memory, attention, sampling, and the executor of plans.

It knows plans and pages; it knows no deadline, no tier and no transport. `loading.py` makes the
executor, and `runner.py` is what it does.
"""
