"""How a model may be stored and run, by name: what flags offer and what the code here carries out.

No torch in here: the server reads it.
"""

from __future__ import annotations

DTYPES = ("float32", "bfloat16", "float16")  # of the weights
QUANTIZE = ("none", "int8")
COMPILE = ("auto", "on", "off")
