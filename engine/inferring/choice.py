"""Which of a server's tiers meets a need, and whether calls may be served with it unasked.

What is inferred only ever loosens: nobody asked for it, so nobody else is to pay for it. A tier
whose targets are anywhere tighter than the default tier's, for outputs as long as the site's are,
is named, for the operator to approve, and not used. Importance stays that of the default tier: how
much a call matters shows in nothing that it does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from engine.deciding.request import TargetKind, Targets
from engine.inferring.habit import Need, Shown
from engine.tiers import Inferred, Tier, Tiers

TOLERANCE = 1.05  # a deadline is known without what it lost on its way


class Choice(NamedTuple):
    """`tier` meets the need best. `inferred` is what calls may be served with; None: they are
    served with the default tier, since `tier` is tighter.
    """

    tier: Tier
    inferred: Inferred | None


def choose(need: Need, tiers: Tiers) -> Choice:
    """Returns the tier that meets a need: the default tier where none does better."""
    default = tiers.tiers[tiers.default]
    kind, own = _wanted(need, default)
    fitting = [tier for tier in tiers.tiers.values() if _fits(tier, kind, need)]
    tier = max(fitting, key=_length_s, default=default) if own is None else own
    if not is_no_tighter(tier.targets, default.targets, need.output_len):
        if need.shown is not Shown.PATIENT:
            return Choice(tier, None)
        tier = default  # they could wait for longer than it takes, and need no less
    return Choice(tier, Inferred(replace(tier, importance=default.importance), need.reason))


def _wanted(need: Need, default: Tier) -> tuple[TargetKind, Tier | None]:
    """Returns the kind of targets that is needed, and the default tier where it has them already
    and no others would be better.
    """
    if need.shown is Shown.WATCHED:
        is_watchable = default.targets.kind is not TargetKind.DEADLINE
        return TargetKind.INTERACTIVE, default if is_watchable else None
    is_nothing_promised = default.targets.kind is TargetKind.BEST_EFFORT
    return TargetKind.DEADLINE, default if is_nothing_promised else None


def _fits(tier: Tier, kind: TargetKind, need: Need) -> bool:
    ttlt_s = tier.targets.ttlt_s
    if tier.targets.kind is not kind:
        return False
    return ttlt_s is None or ttlt_s <= TOLERANCE * need.by_s


def _length_s(tier: Tier) -> float:
    return tier.targets.ttlt_s or tier.targets.ttft_s or 0.0


def is_no_tighter(targets: Targets, than: Targets, output_len: int) -> bool:
    """Returns whether no token of an output of up to so many is due earlier with `targets` than
    with `than`.
    """
    if targets == than or targets.kind is TargetKind.BEST_EFFORT:
        return True
    if than.kind is TargetKind.BEST_EFFORT:
        return False
    if targets.ttft_s is not None and targets.tbt_s is not None:
        if than.ttft_s is None or than.tbt_s is None or targets.max_gap != than.max_gap:
            return False
        return targets.ttft_s >= than.ttft_s and targets.tbt_s >= than.tbt_s
    assert targets.ttlt_s is not None
    if than.ttlt_s is not None:
        return targets.ttlt_s >= than.ttlt_s
    assert than.ttft_s is not None
    assert than.tbt_s is not None
    return targets.ttlt_s >= than.ttft_s + (output_len - 1) * than.tbt_s
