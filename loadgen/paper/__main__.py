"""`python -m loadgen.paper` runs the experiments, prints their table and keeps all answers in JSON.

python -m loadgen.paper                  everything, about half an hour on two idle cores
python -m loadgen.paper --quick          the same table from short runs, in a few minutes
python -m loadgen.paper --only wave,mixes
python -m loadgen.paper --only rivals --seeds 3 --hours 0.25 --overload-hours 2
                                         the tables of rivals in Markdown
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Annotated

from rich.table import Table

from engine.flags import Flag, add_flags, make
from loadgen import interrupts
from loadgen.paper import experiments
from loadgen.paper.experiments import GROUPS, Finding, Scale, all_experiments
from loadgen.paper.jobs import Answers, Experiment, run_all
from loadgen.paper.rivals import Standing, markdown, rival_loads, rivals
from loadgen.paper.serving import ENVELOPE
from loadgen.reports.terminal import console
from loadgen.workload.lengths import USUALLY_STATED
from loadgen.workload.units import parse_count, parse_positive

# Shorter than the deadlines of minutes: the backlog decides. For a look, not for quoting.
QUICK = Scale(
    hours=0.2,
    variant_hours=0.1,
    cluster_hours=0.05,
    overload_hours=1.0,
    wave_hours=1.0,
    datasets=("azure-code",),
    overload_rates=(6.0,),
)
_SCALE = Scale()  # the defaults


def parse_groups(text: str) -> tuple[str, ...]:
    """Reads GROUP,... as the experiments are grouped. Raises ValueError."""
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not among {', '.join(GROUPS)}")
    return names


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of the command."""

    quick: Annotated[bool, Flag("short runs: a few minutes")] = False
    hours: Annotated[
        float | None,
        Flag(f"of arrivals per run (default {_SCALE.hours:g})", parse=parse_positive),
    ] = None
    overload_hours: Annotated[
        float | None,
        Flag(
            f"where the question is who is late (default {_SCALE.overload_hours:g})",
            parse=parse_positive,
        ),
    ] = None
    seeds: Annotated[
        int, Flag("of the rivals: runs of each load (default %(default)s)", parse=parse_count)
    ] = 1
    only: Annotated[tuple[str, ...], Flag(", ".join(GROUPS), parse=parse_groups)] = GROUPS
    processes: Annotated[
        int, Flag("simulations at a time (default %(default)s)", parse=parse_count)
    ] = 2
    results: Annotated[Path, Flag("default %(default)s")] = Path("artifacts/paper.json")
    fresh: Annotated[bool, Flag("forget the answers of earlier runs")] = False

    def scale(self) -> Scale:
        """Says how long the runs are; `--hours` changes all lengths by the same factor."""
        scale = QUICK if self.quick else _SCALE
        if self.hours is not None:
            factor = self.hours / scale.hours
            scale = replace(
                scale,
                hours=self.hours,
                variant_hours=scale.variant_hours * factor,
                cluster_hours=scale.cluster_hours * factor,
                overload_hours=scale.overload_hours * factor,
                wave_hours=scale.wave_hours * factor,
            )
        if self.overload_hours is not None:
            hours = self.overload_hours
            scale = replace(scale, overload_hours=hours, wave_hours=2 * hours)
        return scale


def parse(argv: Sequence[str] | None) -> Flags:
    """Reads the command line (None: the process's own). Exits where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.paper", description=experiments.__doc__
    )
    add_flags(parser, Flags)
    return make(Flags, parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiments, prints their table and returns the exit status: 0, or 128 and the
    number of the signal that ended it; what was answered by then is kept.
    """
    flags = parse(argv)
    try:
        with interrupts.handled(interrupts.interrupt):
            _answer(flags)
    except KeyboardInterrupt as error:
        return interrupts.exit_status(interrupts.number_of(error))
    return 0


def _answer(flags: Flags) -> None:
    scale = flags.scale()
    start = monotonic()

    def say(text: str) -> None:
        print(f"{monotonic() - start:6.0f} s | {text}", file=sys.stderr, flush=True)

    chosen: list[Experiment[list[Finding] | Standing]]
    chosen = [experiment for group, experiment in all_experiments(scale) if group in flags.only]
    if "rivals" in flags.only:
        chosen += [rivals(name, load, flags.seeds) for name, load in rival_loads(scale)]
    answers = Answers(flags.results, flags.fresh)
    parts = run_all(chosen, answers, flags.processes, say)
    late, left = ENVELOPE.max_misses * 100, ENVELOPE.max_growth * 100
    out = console()
    findings = [finding for part in parts if not isinstance(part, Standing) for finding in part]
    if findings:
        out.print(_table(findings))
    if standings := [part for part in parts if isinstance(part, Standing)]:
        print(markdown(standings))
    out.print(
        f"runs of {scale.hours:g} h, of overload {scale.overload_hours:g} h; max_tokens stated:"
        f" {USUALLY_STATED}; a rate is served with at most {late:g} % late and {left:g} % of the"
        f" work left behind; {monotonic() - start:.0f} s",
        highlight=False,
    )


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(show_lines=True)
    for heading in ("experiment", "papers", "ours", "best fixed chunk", "of bound", "remark"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(*finding)
    return table


if __name__ == "__main__":
    sys.exit(main())
