"""What was inferred, as a file for the operator to read, and to copy from what they agree with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from engine.inferring.calls import CallSite
from engine.inferring.choice import choose
from engine.inferring.habit import Habit
from engine.tiers import Tiers

_HEAD = """\
# What calls that state no targets seem to need, by how they came, waited and left. Tables that you
# agree with belong into the file of --config; then nothing is inferred for these applications.
"""
_TIGHTER = "tighter than the default tier, so it is not used unless you state it"


class Known(NamedTuple):
    """The sites of which something is known, and the tiers that there are."""

    sites: Sequence[tuple[CallSite, Habit]]
    tiers: Tiers


NOTHING_KNOWN = Known((), Tiers())


def proposal(known: Known) -> str:
    """Returns a TOML file with a preset for each application of which all calls seem to need the
    same tier, another than the default one; the reasons, and everything else, are comments.
    """
    sites, tiers = known
    told = [_HEAD]
    named = sorted((each for each in sites if each[0].application), key=_order)
    for application, own in groupby(named, lambda each: each[0].application):
        if application not in tiers.applications:
            told.append("\n".join(_application(application, list(own), tiers)) + "\n")
    rest = sorted((each for each in sites if not each[0].application), key=_order)
    if rest:
        told.append("# Calls that name no application; one in qos.application tells them apart.")
        told += [_comment(site, habit, tiers) for site, habit in rest]
    return "\n".join(told) + ("\n" if rest else "")


def _order(each: tuple[CallSite, Habit]) -> tuple[object, ...]:
    site = each[0]
    return site.application, site.tenant, *site


def _application(name: str, sites: list[tuple[CallSite, Habit]], tiers: Tiers) -> Iterator[str]:
    """Yields the lines of one application."""
    for site, habit in sites:
        yield _comment(site, habit, tiers)
    wanted = {_wanted(site, habit, tiers) for site, habit in sites}
    if len(wanted) > 1:
        yield "# These need different tiers: have them name another application each, or the tier."
    elif (tier := wanted.pop()) is not None:
        yield f"[applications.{json.dumps(name)}]"
        yield f"tier = {json.dumps(tier)}"


def _wanted(site: CallSite, habit: Habit, tiers: Tiers) -> str | None:
    """Returns the tier that a site's calls need; None: the default one of its tenant."""
    assert habit.need is not None
    own = tiers.seen_by(site.tenant)
    name = choose(habit.need, own).tier.name
    return None if name == own.default else name


def _comment(site: CallSite, habit: Habit, tiers: Tiers) -> str:
    """Returns a line about one site."""
    assert habit.need is not None
    tiers = tiers.seen_by(site.tenant)
    choice = choose(habit.need, tiers)
    tier = f"tier {choice.tier.name}" if choice.tier.name != tiers.default else "the default tier"
    note = "" if choice.inferred is not None else f" ({_TIGHTER})"
    return f"# {habit.num_calls} {site.told}: {tier}{note}; {habit.need.reason}"
