"""How a model may be stored and run, by name: what flags offer and what the engine carries out.

No torch here, since the server reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = ("float32", "bfloat16", "float16")  # of the weights
QUANTIZE = ("none", "int8")
COMPILE = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class Choices:
    """What loading a model chose on this machine, mostly by measurement.

    A later load that is given them takes them as they are, whatever is free or fast by then.
    """

    device: str
    dtype: str  # of DTYPES
    is_compiled: bool
    compile_note: str  # why not as asked
    row_layout: str  # of the matrices that a row by itself is multiplied with
    slow_rows: tuple[int, int]  # from, to: numbers of rows that are padded to the latter
    threads: int
    num_pages: int
    gather_bytes: int  # most that a layer gathers in a decode graph; 0 where there is none
