"""The trace that a call is a part of, by W3C Trace Context (https://www.w3.org/TR/trace-context).

    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
                    trace                            span of the caller  flags

One that is malformed stands for none, as the standard says: the trace begins here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

PARENT, STATE = "traceparent", "tracestate"
MOST_STATE_CHARS = 512  # as much as has to be carried along

# Versions to come may have more fields; "ff" is none.
_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?",
    re.ASCII,
)


class TraceContext(NamedTuple):
    """A trace and the span in it from which a call comes. The ids are lower-case hexadecimal;
    `state` is what others in the trace have to say, as it came.
    """

    trace_id: str
    span_id: str
    flags: int
    state: str = ""


def read(metadata: Iterable[tuple[str, str | bytes]]) -> TraceContext | None:
    """Returns the trace that a call's metadata name; None where they name none."""
    parent, state = "", ""
    for key, value in metadata:
        if key == PARENT:
            if parent:  # which of them?
                return None
            parent = str(value)
        elif key == STATE:
            state = f"{state},{value!s}" if state else str(value)
    if not parent or (found := _PARENT.fullmatch(parent)) is None:
        return None
    if parent.startswith("00") and len(parent) != 55:
        return None
    state = state if len(state) <= MOST_STATE_CHARS else ""
    return TraceContext(found[1], found[2], int(found[3], 16), state)
