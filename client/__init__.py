"""`python -m client`, beside `python -m server` and `python -m loadgen`."""
