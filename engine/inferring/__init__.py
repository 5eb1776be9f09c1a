"""What calls that state no targets need, as far as their history shows: synchronous, time is an
argument, no torch, no grpc. `docs/decisions/inferred-targets.md` says what is known and what not.
"""
