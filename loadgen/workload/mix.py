"""Which tiers get how much of the load, and how long their requests are where nobody said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from loadgen.workload.lengths import Distribution, Independent, Lognormal
from loadgen.workload.units import SHARE_TOLERANCE
from niyama.client.values import Tier

# Small enough for the embedded model at 40 requests/s on 2 cores; the shape is that of a chat
# (short and snappy) and of work in the background (longer both ways).
INTERACTIVE = Independent(prompt=Lognormal(60, 150), output=Lognormal(20, 48))
BACKGROUND = Independent(prompt=Lognormal(100, 240), output=Lognormal(32, 80))


class BadMix(ValueError):
    """The shares make no mix of the target's tiers; the message is one line."""


def complete_mix(
    given: Mapping[str, float], tiers: Sequence[str], named: Iterable[str] = ()
) -> dict[str, float]:
    """Completes shares to a sum of 1: what `given` leaves over goes to the other tiers in equal
    parts, and all get equal parts where nothing is given.

    Raises BadMix for shares above 1 in sum, and for a name, given or in `named`, that is no tier.
    """
    unknown = [name for name in dict.fromkeys([*given, *named]) if name not in tiers]
    if unknown:
        known = ", ".join(tiers) or "none"
        raise BadMix(f"unknown tier {', '.join(unknown)}; the target has {known}")
    total = sum(given.values())
    if total > 1 + SHARE_TOLERANCE:
        raise BadMix(f"the shares of the mix add up to {total:g}, more than 1")
    left, others = 1 - total, [name for name in tiers if name not in given]
    if left <= SHARE_TOLERANCE:
        return {name: share / total for name, share in given.items()}
    if not others:
        raise BadMix(f"the shares of the mix add up to {total:g}, and no other tier takes the rest")
    return {**given, **{name: left / len(others) for name in others}}


def default_lengths(
    tier: Tier, prompt: Distribution | None = None, output: Distribution | None = None
) -> Independent:
    """Returns the lengths of a tier's requests: those given, else what is usual for its kind (a
    tier with a TTFT target is interactive, any other works in the background).
    """
    usual = BACKGROUND if tier.targets.ttft is None else INTERACTIVE
    return Independent(prompt or usual.prompt, output or usual.output)
