"""Schedulers that others have published, written from their papers as policies of this engine.

Each module says where its rules come from, and what had to be guessed. Engine, predictor, guesses
of output lengths and memory are ours for all of them, so that only the policy differs:

    edf.py           earliest deadline first with dynamic chunks, and one that rejects
    qoserve.py       QoServe, the final version of Niyama, as its artifact has it
    slidingserve.py  chunks for two iterations together, a knapsack under pressure
    fairbatching.py  decodes that are ahead make way for prompts
"""
