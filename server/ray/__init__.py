"""Several engines behind Ray Serve (extra `ray`): each replica runs this server, whole and
unchanged, in a process of its own, and Ray's gRPC proxy hands it the calls.
"""
