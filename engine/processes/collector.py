"""Python's cycle collector, set for a process that serves.

Every token makes some small objects that are soon gone without its help. By default it looks at
them every 700, and now and then at all objects of the process, what torch and a tokenizer keep
included, while everything waits.
"""

from __future__ import annotations

import gc

# Objects made and not yet gone before the youngest are looked at, and so for each generation.
THRESHOLDS = (20_000, 20, 50)


def settle() -> None:
    """Sets it, once the process serves: what is there now stays, and is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
