"""`python -m loadgen.inferring` scores what is inferred for applications whose calls state nothing
of what they need: the same applications with inference and without.

    python -m loadgen.inferring                             a server of its own, live
    python -m loadgen.inferring --simulate a100-llama3-8b   in virtual time

Says for each application what was named and after how many calls rightly, and whether it was on
time by what it means, with and without; then what was named for what was meant, and last a line of
JSON. Exit status 1: somebody fared worse with inference than without, beyond chance.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from loadgen.inferring import live, simulated
from loadgen.inferring.applications import APPLICATIONS, TIERS, Caller
from loadgen.inferring.score import Score, confusion, is_worse, score
from loadgen.reports.terminal import console
from loadgen.targets import profiles

Run = Callable[[Sequence[Caller], bool], None]


def main(argv: Sequence[str] | None = None, module: str = "server") -> int:
    """Runs the command; `module` is what `python -m` serves with, live. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadgen.inferring", description=__doc__)
    parser.add_argument("--simulate", metavar="PROFILE", help="in virtual time, on such an engine")
    parser.add_argument("--duration", type=float, default=120.0, help="seconds of each run")
    parser.add_argument("--load", type=float, default=1.0, help="times as many calls")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, in turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server-flags", default="", help="of the live server, as in a shell")
    flags = parser.parse_args(argv)
    run: Run
    if flags.simulate:
        profile = profiles.load(flags.simulate)

        def run(callers: Sequence[Caller], is_on: bool) -> None:
            simulated.run(callers, profile, is_on)

    else:

        def run(callers: Sequence[Caller], is_on: bool) -> None:
            live.run(callers, is_on, module, shlex.split(flags.server_flags))

    found: dict[bool, list[list[Score]]] = {False: [], True: []}
    for repeat in range(flags.repeats):
        for is_on in (False, True) if repeat % 2 == 0 else (True, False):  # what drifts, hits both
            seed = flags.seed + repeat
            callers = [Caller(each, flags.duration, flags.load, seed) for each in APPLICATIONS]
            run(callers, is_on)
            found[is_on].append([score(caller) for caller in callers])
    off, on = ([Score.sum(each) for each in zip(*runs, strict=True)] for runs in found.values())
    print_tables(off, on)
    told = told_of(off, on)
    print(json.dumps({"benchmark": "inference", "target": flags.simulate or "live", **told}))
    return 1 if told["worse"] else 0


def print_tables(off: Sequence[Score], on: Sequence[Score]) -> None:
    """Prints what became of each application, and what was named for what was meant."""
    table = Table("application", "means", "named", "right from call", "calls", "off", "on", "")
    for before, after in zip(off, on, strict=True):
        own = after.application
        right = "never" if after.right_from is None else str(after.right_from)
        figures = f"{before.attainment:.1%}", f"{after.attainment:.1%}"
        note = "worse" if is_worse(after, before) else ""
        calls = str(after.named.total())
        table.add_row(own.name, own.meant, after.last or "-", right, calls, *figures, note)
    console().print(table)
    names = [*TIERS, ""]
    matrix = Table("meant \\ named, calls", *(name or "nothing yet" for name in names))
    for meant, named in confusion(on).items():
        matrix.add_row(meant, *(str(named[name]) for name in names))
    console().print(matrix)


def told_of(off: Sequence[Score], on: Sequence[Score]) -> dict[str, Any]:
    """Returns the figures."""
    named = sum((each.named for each in on), start=type(on[0].named)())
    right = sum(each.named[each.application.meant] for each in on)
    looser = [each.application.name for each in on if _is_looser(each)]
    return {
        "applications": {
            after.application.name: {
                "means": after.application.meant,
                "named": after.last,
                "right_from_call": after.right_from,
                "on_time_off": round(before.attainment, 4),
                "on_time_on": round(after.attainment, 4),
                "calls": after.named.total(),
            }
            for before, after in zip(off, on, strict=True)
        },
        "named_of_calls": round(1 - named[""] / named.total(), 4),
        "right_of_named": round(right / max(1, named.total() - named[""]), 4),
        "on_time_off": _mean(off),
        "on_time_on": _mean(on),
        "too_loose": looser,
        "worse": [a.application.name for b, a in zip(off, on, strict=True) if is_worse(a, b)],
    }


def _is_looser(each: Score) -> bool:
    """Returns whether in the end a looser tier is named than the application means."""
    order = list(TIERS)
    is_harmless = not each.last or {each.last, each.application.meant} == {
        "interactive",
        "completion",
    }
    return not is_harmless and order.index(each.last) > order.index(each.application.meant)


def _mean(scores: Sequence[Score]) -> float:
    """Returns the share on time of all calls, and not of all applications."""
    return round(sum(each.on_time for each in scores) / sum(each.num for each in scores), 4)


if __name__ == "__main__":
    sys.exit(main())
