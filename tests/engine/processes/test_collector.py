"""The cycle collector of a process that serves, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, weakref
from engine.processes import collector

class Ring:
    def __init__(self):
        self.itself = self

kept = Ring()
before, early = weakref.ref(Ring()), weakref.ref(kept)
collector.settle()
assert before() is None, "garbage of the start is kept for ever"

del kept
late = weakref.ref(Ring())
gc.collect()
assert early() is not None, "what was there is looked at again"
assert late() is None, "what was made later is not"

num_collections = gc.get_stats()[0]["collections"]
tokens = [[] for _ in range(10_000)]
assert gc.get_stats()[0]["collections"] == num_collections, "tokens in flight are looked at"
"""


def test_what_a_serving_process_starts_with_is_looked_at_no_more_and_the_rest_seldom() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == ""
    assert ended.returncode == 0
