"""Ports beside the main one, each bound to a tier: `--tier-port interactive=50052`.

What calls such a port is served with the port's tier where it states no targets and no gateway says
more of it: the port carries what a gateway in between cannot.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

from engine.tiers import Tiers
from engine.toml_file import suggestion


@dataclass(frozen=True, slots=True)
class TierPort:
    """A port (0: any free one) whose calls get the tier of that name."""

    tier: str
    port: int

    def __str__(self) -> str:
        return f"{self.tier}={self.port}"


def parse(text: str) -> TierPort:
    """Returns what a text such as `interactive=50052` says. Raises ValueError."""
    tier, _, port = text.rpartition("=")
    is_number = port.isascii() and port.isdigit() and len(port) <= 5
    if not tier or not is_number or int(port) > 65535:
        shown = reprlib.repr(text)
        raise ValueError(f"must be TIER=PORT, such as interactive=50052, got {shown}")
    return TierPort(tier, int(port))


def unknown(ports: Iterable[TierPort], tiers: Tiers) -> str:
    """Returns what is wrong with the first of these ports whose tier there is not, "" if nothing
    is.
    """
    for each in ports:
        if each.tier not in tiers.tiers:
            hint = suggestion(each.tier, tiers.tiers) or f"; there are {', '.join(tiers.tiers)}"
            return f"names no tier: {reprlib.repr(each.tier)}{hint}"
    return ""
