"""A gate for releases: the attainment each tier must reach, and an exit status that says so."""

from __future__ import annotations

from collections.abc import Mapping

from loadgen.summary import Summary
from loadgen.target import End
from loadgen.units import parse_shares

EVERY_TIER = ""
ALL = "all"


def parse_gate(text: str) -> dict[str, float]:
    """0.99 (every tier), or TIER:0.99,all:0.95. Raises ValueError."""
    try:
        share = float(text)
    except ValueError:
        return parse_shares(text)
    if not 0 < share <= 1:
        raise ValueError(f"a gate is a share above 0, at most 1, got {text}")
    return {EVERY_TIER: share}


def shut(gate: Mapping[str, float], summary: Summary) -> list[str]:
    """One line per reason to stop; none where the gate is open."""
    reasons = []
    if summary.end is not End.COMPLETE:
        reasons.append(f"the run did not complete: {summary.problem}")
    scores = {score.group: score for score in summary.by_tier}
    required = {name: share for name, share in gate.items() if name != EVERY_TIER}
    if EVERY_TIER in gate:
        required = dict.fromkeys(scores, gate[EVERY_TIER]) | required
    scores[ALL] = summary.total
    for name, share in required.items():
        score = scores.get(name)
        if score is None or score.attainment is None:
            reasons.append(f"{name}: nothing was sent, {share:.1%} on time required")
        elif score.attainment < share:
            reasons.append(f"{name}: {score.attainment:.2%} on time, {share:.1%} required")
    return reasons
