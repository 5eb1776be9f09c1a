"""Numbers as people type them: durations ("500ms", "30", "4h") and shares ("a:0.6,b:0.4")."""

from __future__ import annotations

import math
import re
import sys

_UNITS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|d|)")

SHARE_TOLERANCE = 1e-6  # shares add up to 1 within this


def parse_duration(text: str) -> float:
    """Reads a duration into seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 500ms, 30s, 15m or 4h")
    return float(match[1]) * _UNITS[match[2]]


def parse_count(text: str) -> int:
    """Reads a whole number above 0. Raises ValueError."""
    if not (text.isdecimal() and int(text)):
        raise ValueError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse_positive(text: str) -> float:
    """Reads a finite number above 0. Raises ValueError."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise ValueError(f"{text!r} is not a number above 0")
    return number


def parse_shares(text: str) -> dict[str, float]:
    """Reads NAME:SHARE[,NAME:SHARE...], each share in (0, 1], in that order. Raises ValueError."""
    return _parse_named(text, 1.0, "NAME:SHARE with a share above 0, at most 1")


def parse_weights(text: str) -> dict[str, float]:
    """Reads NAME:WEIGHT[,NAME:WEIGHT...], in that order. Raises ValueError."""
    return _parse_named(text, sys.float_info.max, "NAME:WEIGHT with a weight above 0")


def _parse_named(text: str, most: float, what: str) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition(":")
        if not name or not 0 < _number(number) <= most:
            raise ValueError(f"{part.strip()!r} is not {what}")
        if name in numbers:
            raise ValueError(f"{name} is named twice")
        numbers[name] = float(number)
    return numbers


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
