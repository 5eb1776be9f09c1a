"""What came of a promise: the forecast that a call had at its admission, once the call is over."""

from __future__ import annotations

from enum import Enum

from engine.deciding.request import Targets


class Result(Enum):
    """What became of a call that was admitted, as metrics name it."""

    MET = "met"  # it ended by itself, and every target of every completion was met
    MISSED = "missed"
    LEFT = "left"  # its client went while nothing was due: nobody knows


def result(num_missing: int, is_on_time: bool, has_left: bool, was_overdue: bool) -> Result:
    """Returns what became of a call of whose completions `num_missing` did not end by themselves,
    and the others all met their targets or not.

    Whatever ends a call early breaks its promise: its deadline, an engine that is lost, a place
    that is given to others. Only a client that leaves of its own accord (`has_left`) does not,
    unless what it waited for was overdue.
    """
    if not is_on_time:
        return Result.MISSED
    if not num_missing:
        return Result.MET
    return Result.LEFT if has_left and not was_overdue else Result.MISSED


def is_overdue(targets: Targets, num_tokens: int, lived_s: float) -> bool:
    """Says whether the next token of a call was due, `lived_s` seconds after its arrival; of one
    with a target for its last token, whether that was.
    """
    if targets.ttft_s is not None and targets.tbt_s is not None:
        return lived_s > targets.ttft_s + num_tokens * targets.tbt_s
    return targets.ttlt_s is not None and lived_s > targets.ttlt_s
