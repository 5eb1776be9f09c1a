"""Bounds what goes out in a status or a log line, whatever a caller has sent.

gRPC refuses trailers above 8 KiB, and a log is read by people. A value that is too long is cut, and
says how long it was.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

MAX_LOGGED_CHARS = 4096  # of one value of a log line: a traceback fits


def shorten(text: str, most_bytes: int) -> str:
    """Returns the text itself, or its beginning and its length, in at most `most_bytes` bytes of
    UTF-8.
    """
    encoded = text[: most_bytes + 1].encode(errors="replace")
    if len(encoded) <= most_bytes:
        return text
    rest = f"... ({len(text)} characters)"
    return encoded[: max(0, most_bytes - len(rest))].decode(errors="ignore") + rest


def bound_values(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cuts values of a log line, as a processor of structlog, that no person would read to the
    end.
    """
    for key, value in event.items():
        if not isinstance(value, (bool, int, float, type(None))):
            text = value if isinstance(value, str) else str(value)
            if len(text) > MAX_LOGGED_CHARS:
                event[key] = shorten(text, MAX_LOGGED_CHARS)
    return event
