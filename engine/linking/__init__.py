"""A front end's side of the engine: the link to its process, the streams of requests, what may go
wrong, and the keeper that starts that process and starts it again when it is lost.
"""
