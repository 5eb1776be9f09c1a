"""Conditions made simpler for as long as what was found in them stays true.

As in property tests: each step is the first of the simpler conditions in which it is still true,
and the end is where there is none. Whatever is left is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from loadgen.adversary.condition import Condition, Part, percents, same_load
from loadgen.targets import profiles

T = TypeVar("T")
_LEAST_S = 60.0  # a shorter condition is all beginning
_USUAL = Condition("", (), 0.0, 0.0)


def shrink(condition: Condition, found: T, still: Callable[[Condition], T | None], most: int) -> T:
    """Returns what was found in the simplest condition that was reached. `still` says what is found
    in a simpler one, None where it is nothing, and is asked `most` times at most.
    """
    tried: set[Condition] = {condition}
    left = most
    while True:
        for each in simpler(condition):
            if each in tried or not left:
                continue
            tried.add(each)
            left -= 1
            if (again := still(each)) is not None:
                condition, found = each, again
                break
        else:
            return found


def simpler(condition: Condition) -> Iterator[Condition]:
    """Yields conditions that are simpler by a step, what takes most away first."""
    for name in (
        *("predictor_error", "cancel_rate", "tenants", "importance", "kv_tokens"),
        *("max_batch_size", "swing", "cv", "max_gap"),
    ):
        if getattr(condition, name) != getattr(_USUAL, name):
            yield replace(condition, **{name: getattr(_USUAL, name)})
    parts = condition.parts
    for number in range(len(parts) if len(parts) > 1 else 0):
        yield _with(condition, parts[:number] + parts[number + 1 :])
    if condition.profile != profiles.A100.name:
        yield same_load(condition, replace(condition, profile=profiles.A100.name))
    if len({(part.prompt, part.output) for part in parts}) > 1:
        for like in parts:
            same = [p._replace(prompt=like.prompt, output=like.output) for p in parts]
            yield _with(condition, tuple(same))
    equal = percents([1] * len(parts))
    if [part.percent for part in parts] != equal:
        yield _with(
            condition, tuple(p._replace(percent=n) for p, n in zip(parts, equal, strict=True))
        )
    for change in (_fixed, _rounded):
        for prompts, outputs in ((True, False), (False, True)):
            changed = tuple(
                part._replace(
                    prompt=change(part.prompt) if prompts else part.prompt,
                    output=change(part.output) if outputs else part.output,
                )
                for part in parts
            )
            if changed != parts:
                yield _with(condition, changed)
    if condition.duration_s >= 2 * _LEAST_S:
        yield replace(condition, duration_s=condition.duration_s // 60 * 30)


def _with(condition: Condition, parts: tuple[Part, ...]) -> Condition:
    """Returns the condition with those tiers, as loaded as before."""
    shares = percents([part.percent for part in parts])
    whole = tuple(p._replace(percent=s) for p, s in zip(parts, shares, strict=True))
    return same_load(condition, replace(condition, parts=whole))


def _fixed(length: str) -> str:
    """Returns the middle of median and 90th percentile as a fixed length."""
    p50, slash, p90 = length.partition("/")
    return str(max(1, round((float(p50) + float(p90)) / 2))) if slash else length


def _rounded(length: str) -> str:
    """Returns a length with one digit of each number."""
    return "/".join(f"{_one_digit(float(each)):g}" for each in length.split("/"))


def _one_digit(value: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(value))
    return round(value / magnitude) * magnitude
