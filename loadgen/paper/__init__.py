"""The evaluation of Niyama (arXiv 2503.22562; QoServe, ASPLOS 2026), again, in simulation.

`python -m loadgen.paper` runs every experiment on the published coefficients of Llama-3-8B on one
A100 and prints each figure of the papers beside ours. How a rate counts as served is said in
`serving.py`; what every experiment sends in `load.py`; who serves it in `contender.py`; how
much any policy could serve in `ceiling.py`.
"""
