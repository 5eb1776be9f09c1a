"""A search for loads on which Niyama loses, in simulation.

`python -m loadgen.adversary --seed 1` draws conditions (condition.py), lets Niyama and every
baseline serve each of them (trial.py), and reports those in which a baseline is better by more than
noise (verdict.py), made as simple as they can be while that stays true (shrink.py).
"""
