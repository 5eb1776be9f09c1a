"""A gate for releases: the attainment each tier must reach, and an exit status that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadgen.scoring.score import ALL
from loadgen.scoring.summary import Summary
from loadgen.targets.target import End
from loadgen.workload.units import parse_shares

EVERY_TIER = ""


def parse_gate(text: str) -> dict[str, float]:
    """Reads 0.99 (every tier), or TIER:0.99,all:0.95. Raises ValueError."""
    try:
        share = float(text)
    except ValueError:
        return parse_shares(text)
    if not 0 < share <= 1:
        raise ValueError(f"a gate is a share above 0, at most 1, got {text}")
    return {EVERY_TIER: share}


def check(gate: Mapping[str, float], tiers: Sequence[str]) -> None:
    """Raises ValueError for a name that is no tier of the load."""
    unknown = gate.keys() - {EVERY_TIER, ALL, *tiers}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"unknown tier {names} in the gate; the load has {', '.join(tiers)}")


def shut(gate: Mapping[str, float], summary: Summary) -> list[str]:
    """Returns one line per reason to stop, none where the gate is open. The gate has passed
    `check`.
    """
    reasons = []
    if summary.end is not End.COMPLETE:
        reasons.append(f"the run did not complete: {summary.problem}")
    scores = {score.group: score for score in summary.by_tier}
    required = {name: share for name, share in gate.items() if name != EVERY_TIER}
    if EVERY_TIER in gate:
        required = dict.fromkeys(scores, gate[EVERY_TIER]) | required
    scores[ALL] = summary.total
    for name, share in required.items():
        score = scores[name]
        if score.attainment is None:
            reasons.append(f"{name}: nothing was sent, {share:.1%} on time required")
        elif score.attainment < share:
            reasons.append(f"{name}: {score.attainment:.2%} on time, {share:.1%} required")
    return reasons
