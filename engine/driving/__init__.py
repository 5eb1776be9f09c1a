"""The engine process: the loop that owns all state, its connections, what an engine is built of.

Front ends submit requests and cancellations over local sockets; the engine process plans, computes
and answers with one message per iteration. Only this process imports torch.
"""
