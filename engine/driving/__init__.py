"""What drives: the loop that owns all state, its process, and the asyncio side that talks to it.

The front end submits requests and cancellations over a local socket pair; the engine process plans,
computes and answers with one message per iteration. Only the engine process imports torch.
"""
