"""Everything of Niyama that a caller installs: the API's messages (`v1`) and the Python client.

A regular package: of a namespace, any folder of that name on Python's path is a part, such as a
clone of the repository in the folder where Python runs.
"""
