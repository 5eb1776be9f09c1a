"""Attention over paged keys and values.

layout.py is what the rest of the engine knows of a layout of the KV memory, and says why there are
two; gathered.py and in_place.py are each the whole of one; prompts.py attends for the chunks of
prompts, which is the same for both.
"""
