"""What decides: requests, deadlines, policies, pages, plans.

Pure and synchronous: the time is always an argument, nothing here imports torch, grpc or asyncio,
reads a clock, or touches a file. The service and the simulator drive this same code.
"""
