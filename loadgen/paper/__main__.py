"""`python -m loadgen.paper`: every experiment, the table, and a JSON file of all answers.

python -m loadgen.paper                  everything, about half an hour on two idle cores
python -m loadgen.paper --quick          the same table from short runs, in a few minutes
python -m loadgen.paper --only wave,mixes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic

from rich.table import Table

from loadgen import interrupts
from loadgen.paper import experiments
from loadgen.paper.experiments import GROUPS, Line, Scale, all_experiments
from loadgen.paper.jobs import Answers, run_all
from loadgen.reports.terminal import console

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
DEFAULT_RESULTS = Path("artifacts/paper.json")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 128 and the number of the signal that ended it; what was answered by
    then is kept.
    """
    arguments = _parser().parse_args(argv)
    try:
        with interrupts.handled(interrupts.interrupt):
            _answer(arguments)
    except KeyboardInterrupt as error:
        return interrupts.exit_status(interrupts.number_of(error))
    return 0


def _answer(arguments: argparse.Namespace) -> None:
    scale = _scale(arguments)
    start = monotonic()

    def say(text: str) -> None:
        print(f"{monotonic() - start:6.0f} s | {text}", file=sys.stderr, flush=True)

    chosen = [experiment for group, experiment in all_experiments(scale) if group in arguments.only]
    answers = Answers(None if arguments.fresh else arguments.results)
    answers.path = arguments.results
    lines = [line for part in run_all(chosen, answers, arguments.processes, say) for line in part]
    out = console()
    out.print(_table(lines))
    out.print(
        f"runs of {scale.hours:g} h; a rate is served with at most 1 % late and 1 % of the work "
        f"left behind; {monotonic() - start:.0f} s",
        highlight=False,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.paper", description=experiments.__doc__
    )
    parser.add_argument("--quick", action="store_true", help="short runs: a few minutes")
    parser.add_argument("--hours", type=float, help="of arrivals per run (default 0.75)")
    parser.add_argument(
        "--overload-hours", type=float, help="where the question is who is late (default 2)"
    )
    parser.add_argument("--only", type=_groups, default=GROUPS, help=", ".join(GROUPS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS, help="default %(default)s")
    parser.add_argument("--fresh", action="store_true", help="forget the answers of earlier runs")
    return parser


def _groups(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(GROUPS)}")
    return names


def _scale(arguments: argparse.Namespace) -> Scale:
    scale = QUICK if arguments.quick else Scale()
    if arguments.hours is not None:
        factor = arguments.hours / scale.hours
        scale = replace(
            scale,
            hours=arguments.hours,
            variant_hours=scale.variant_hours * factor,
            cluster_hours=scale.cluster_hours * factor,
            overload_hours=scale.overload_hours * factor,
            wave_hours=scale.wave_hours * factor,
        )
    if arguments.overload_hours is not None:
        hours = arguments.overload_hours
        scale = replace(scale, overload_hours=hours, wave_hours=2 * hours)
    return scale


def _table(lines: Sequence[Line]) -> Table:
    table = Table(show_lines=True)
    for heading in ("experiment", "papers", "ours", "best fixed chunk", "of bound", "remark"):
        table.add_column(heading, overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


if __name__ == "__main__":
    sys.exit(main())
