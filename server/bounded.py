"""What goes out in a status or a log line is bounded here, whatever a caller has sent.

gRPC refuses trailers above 8 KiB, and a log is read by people: a long value is cut and says how
long it was. Lengths in characters and bytes as named.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

MAX_LOGGED_CHARS = 4096  # of one value of a log line: a traceback fits


def shorten(text: str, most_bytes: int) -> str:
    """`text`, or its beginning and its length, in at most `most_bytes` of UTF-8."""
    encoded = text[: most_bytes + 1].encode(errors="replace")
    if len(encoded) <= most_bytes:
        return text
    rest = f"... ({len(text)} characters)"
    return encoded[: max(0, most_bytes - len(rest))].decode(errors="ignore") + rest


def bound_values(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: no value of a line is longer than a person would read."""
    for key, value in event.items():
        if not isinstance(value, (bool, int, float, type(None))):
            text = value if isinstance(value, str) else str(value)
            if len(text) > MAX_LOGGED_CHARS:
                event[key] = shorten(text, MAX_LOGGED_CHARS)
    return event
