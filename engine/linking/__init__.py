"""A front end's side of the engine: the link to its process, the streams of its requests, and the
keeper that starts that process again when it is lost.
"""
