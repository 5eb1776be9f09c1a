"""`python -m loadgen`: flags in, a load sent, a report out. See `--help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from loadgen import flags, json_report, report
from loadgen.live import LiveTarget
from loadgen.progress import showing
from loadgen.spec import build
from loadgen.summary import Summary, summarise
from loadgen.target import End, Target, TargetInfo, Unreachable
from loadgen.workload import Workload, plan

EXIT_TARGET, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, as `--help` lists them."""
    arguments = flags.parser().parse_args(argv)
    out = report.console()
    try:
        spec = flags.to_spec(arguments)
        target = LiveTarget(arguments.target, arguments.channels, arguments.drain)
        info = target.info()
        workload = build(spec, info)
        _check_window(arguments, workload)
        summary = run_once(target, info, workload, arguments, out)
    except Unreachable as error:
        return _fail(str(error), EXIT_TARGET)
    except (ValueError, OSError) as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    report.print_report(summary, out)
    if arguments.json is not None:
        json_report.write(json_report.to_json(summary, _asked(arguments)), arguments.json)
    return _exit_status(summary)


def run_once(
    target: Target,
    info: TargetInfo,
    workload: Workload,
    arguments: argparse.Namespace,
    out: Console,
) -> Summary:
    with showing(workload.duration_s, out) as watch:
        run = target.run(plan(workload), watch)
    return summarise(
        workload,
        info,
        run,
        warmup_s=arguments.warmup,
        cooldown_s=arguments.cooldown,
        max_lag_s=arguments.max_lag,
    )


def _check_window(arguments: argparse.Namespace, workload: Workload) -> None:
    if arguments.warmup + arguments.cooldown >= workload.duration_s:
        raise ValueError("warm-up and cool-down leave nothing of the run to measure")


def _asked(arguments: argparse.Namespace) -> dict[str, str]:
    """The flags that were given, as text."""
    return {name: str(value) for name, value in vars(arguments).items() if value not in (None, [])}


def _exit_status(summary: Summary) -> int:
    if summary.end is End.TARGET_LOST:
        return EXIT_TARGET
    return EXIT_INTERRUPTED if summary.end is End.INTERRUPTED else 0


def _fail(message: str, status: int) -> int:
    print(f"niyama-loadgen: {message}", file=sys.stderr)
    return status
