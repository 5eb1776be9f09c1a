"""`python -m loadgen.adversary` searches loads on which Niyama loses, and prints their commands.

python -m loadgen.adversary --seed 1                     an hour of virtual time
python -m loadgen.adversary --seed 1 --minutes 5         and five minutes of real time at most

Exit status 0; 3 where a baseline is better in something and worse in nothing; 130, 143 or 129 where
a signal ended it, after the finds until then.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any

from engine.deciding.policies import POLICIES
from engine.flags import Flag, add_flags, make
from loadgen import interrupts
from loadgen.adversary.search import Find, Search, command, lines
from loadgen.adversary.trial import Figures, Trial, run
from loadgen.paper.jobs import worker_pool
from loadgen.workload.units import parse_count, parse_positive

EXIT_FOUND = 3


def parse_minutes(text: str) -> float:
    """Reads a number of 0 or more, or inf. Raises ValueError."""
    minutes = float(text)
    if not minutes >= 0:
        raise ValueError(f"{text!r} is not a number of minutes")
    return minutes


def parse_steps(text: str) -> int:
    """Reads a whole number, or 0. Raises ValueError."""
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of the command."""

    seed: Annotated[int, Flag("same seed, same conditions (default %(default)s)")] = 0
    virtual_hours: Annotated[
        float,
        Flag("of arrivals in the conditions drawn (default %(default)g)", parse=parse_positive),
    ] = 1.0
    minutes: Annotated[
        float, Flag("of real time at most (default: no limit)", parse=parse_minutes)
    ] = math.inf
    steps: Annotated[
        int, Flag("to shrink a find, at most (default %(default)s)", parse=parse_steps)
    ] = 40
    policy: Annotated[str, Flag("who must not lose (default %(default)s)", POLICIES)] = "niyama"
    outright: Annotated[
        bool, Flag("leave out in what a baseline is better at the price of something else")
    ] = False
    processes: Annotated[
        int, Flag("simulations at a time (default %(default)s)", parse=parse_count)
    ] = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Searches, prints what was found and a line of JSON, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.adversary",
        description="Searches loads on which a policy loses to any other by more than noise.",
    )
    add_flags(parser, Flags)
    flags = make(Flags, parser.parse_args(argv))
    start = monotonic()

    def say(text: str) -> None:
        print(f"{monotonic() - start:6.0f} s | {text}", file=sys.stderr, flush=True)

    end, status = "complete", 0
    search = Search(
        _run_here, say, flags.policy, most_steps=flags.steps, is_outright=flags.outright
    )
    try:
        with interrupts.handled(interrupts.interrupt), worker_pool(flags.processes) as pool:

            def run_all(trials: Sequence[Trial]) -> Sequence[Figures]:
                left_s = start + flags.minutes * 60 - monotonic()
                return list(pool.map(run, trials, timeout=min(max(0.0, left_s), 1e6)))

            search.run = run_all
            search.search(flags.seed, flags.virtual_hours * 3600)
    except LateError:
        end = "out of time"
    except KeyboardInterrupt as error:
        end, status = "interrupted", interrupts.exit_status(interrupts.number_of(error))
    _print(search, flags, end)
    return status or (EXIT_FOUND if any(not find.price for find in search.finds) else 0)


def _run_here(trials: Sequence[Trial]) -> Sequence[Figures]:
    return [run(trial) for trial in trials]


def _print(search: Search, flags: Flags, end: str) -> None:
    for find in sorted(search.finds, key=lambda find: len(find.price)):
        print("\n".join(lines(find, flags.policy)), end="\n\n")
    document = {
        "schema": "niyama.adversary/1",
        "seed": flags.seed,
        "policy": flags.policy,
        "end": end,
        "conditions": search.num_conditions,
        "virtual_s": search.virtual_s,
        "finds": [_to_json(find, flags.policy) for find in search.finds],
    }
    print(json.dumps(document))


def _to_json(find: Find, policy: str) -> dict[str, Any]:
    return {
        "command": command(find, policy),
        "measure": find.measure.value,
        "contender": find.contender,
        "better": sorted(each.value for each in find.gains),
        "worse": sorted(each.value for each in find.price),
        "seeds": list(find.seeds),
        "ours": [_finite(each) for each in find.ours],
        "theirs": [_finite(each) for each in find.theirs],
    }


def _finite(figures: Figures) -> dict[str, float | None]:
    """Returns the figures by name; JSON has no infinity, and null stands for it."""
    return {n: v if math.isfinite(v) else None for n, v in figures._asdict().items()}


if __name__ == "__main__":
    sys.exit(main())
