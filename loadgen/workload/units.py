"""Numbers as people type them: durations ("500ms", "30", "4h") and shares ("a:0.6,b:0.4")."""

from __future__ import annotations

import math
import re

_UNITS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|d|)")

SHARE_TOLERANCE = 1e-6  # shares add up to 1 within this


def parse_duration(text: str) -> float:
    """Reads a duration into seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 500ms, 30s, 15m or 4h")
    return float(match[1]) * _UNITS[match[2]]


def parse_shares(text: str) -> dict[str, float]:
    """Reads NAME:SHARE[,NAME:SHARE...], each share in (0, 1], in that order. Raises ValueError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not name or not colon or not 0 < share <= 1:
            raise ValueError(f"{part.strip()!r} is not NAME:SHARE with a share above 0, at most 1")
        if name in shares:
            raise ValueError(f"{name} is named twice")
        shares[name] = share
    return shares
