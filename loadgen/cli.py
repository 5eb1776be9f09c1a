"""`python -m loadgen`: flags in, loads sent, reports out. See `--help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from loadgen import flags, gate, json_report, modes, records_csv, report, targets
from loadgen.capacity import Capacity
from loadgen.modes import Measurement, Measuring, NotMeasured
from loadgen.spec import Spec, build
from loadgen.target import End, Target, TargetInfo, Unreachable
from loadgen.workload import Workload

EXIT_TARGET, EXIT_USAGE, EXIT_GATE, EXIT_INVALID, EXIT_INTERRUPTED = 1, 2, 3, 4, 130


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, as `--help` lists them."""
    arguments = flags.parser().parse_args(argv)
    try:
        return _Command(arguments, flags.to_spec(arguments), report.console()).run()
    except Unreachable as error:
        return _fail(str(error), EXIT_TARGET)
    except NotMeasured as error:
        return _fail(str(error), EXIT_INVALID)
    except (ValueError, OSError) as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _fail(message: str, status: int) -> int:
    print(f"niyama-loadgen: {message}", file=sys.stderr)
    return status


@dataclass(frozen=True, slots=True)
class _Command:
    """One invocation: the mode that the flags ask for, and its reports."""

    arguments: argparse.Namespace
    spec: Spec
    out: Console

    def run(self) -> int:
        if self.arguments.compare:
            return self._compare()
        with targets.opened(self.arguments) as target:
            info = target.info()
            workload = build(self.spec, info)
            if self.arguments.sweep:
                return self._sweep(target, info, workload)
            if self.arguments.find_capacity:
                return self._find_capacity(target, info, workload)
            return self._one(target, info, workload)

    def _one(self, target: Target, info: TargetInfo, workload: Workload) -> int:
        done = self._measure(target, info, workload, "")
        report.print_report(done.summary, self.out)
        self._write("run", [done])
        status = _status([done])
        if self.arguments.slo_gate is None:
            return status
        reasons = gate.shut(self.arguments.slo_gate, done.summary)
        for reason in reasons:
            self.out.print(f"[red]GATE SHUT[/] {escape(reason)}", highlight=False)
        if not reasons:
            self.out.print("gate open")
        if status or done.summary.invalid:
            return status or EXIT_INVALID
        return EXIT_GATE if reasons else 0

    def _sweep(self, target: Target, info: TargetInfo, workload: Workload) -> int:
        done = modes.sweep(
            lambda load, name: self._measure(target, info, load, name),
            workload,
            self.arguments.sweep,
        )
        self.out.print(report.runs_table("rate", done))
        self._write("sweep", done)
        return _status(done)

    def _find_capacity(self, target: Target, info: TargetInfo, workload: Workload) -> int:
        rate = workload.arrivals.rate
        search = modes.Search(
            guess=rate.mean(workload.duration_s) if rate else 1.0,
            max_misses=self.arguments.max_misses,
            precision=self.arguments.precision,
            repeats=self.arguments.repeats,
        )

        def measure(load: Workload, name: str) -> Measurement:
            done = self._measure(target, info, load, name)
            passed = modes.sustains(done.summary, search.max_misses)
            self.out.print(report.search_line(done, passed), highlight=False)
            return done

        capacity, done = modes.search_capacity(measure, workload, search)
        self.out.print(report.capacity_line(capacity, search.max_misses), highlight=False)
        self._write("find-capacity", done, capacity)
        return 0 if capacity.is_bracketed else EXIT_INVALID

    def _compare(self) -> int:
        done = modes.compare(
            lambda contender: targets.opened(self.arguments, contender),
            self.arguments.compare,
            lambda info: build(self.spec, info),
            self._measure,
        )
        self.out.print(report.runs_table("contender", done))
        self._write("compare", done)
        return _status(done)

    def _measure(
        self, target: Target, info: TargetInfo, workload: Workload, name: str
    ) -> Measurement:
        measuring = Measuring(
            self.arguments.warmup, self.arguments.cooldown, self.arguments.max_lag
        )
        return modes.measure(target, info, workload, measuring, self.out, name)

    def _write(
        self, mode: str, done: Sequence[Measurement], capacity: Capacity | None = None
    ) -> None:
        if self.arguments.json is not None:
            document = json_report.to_json(mode, _asked(self.arguments), done, capacity)
            json_report.write(document, self.arguments.json)
        if self.arguments.csv is not None:
            records_csv.write(((each.name, each.records) for each in done), self.arguments.csv)


def _asked(arguments: argparse.Namespace) -> dict[str, str]:
    """The flags that were given or have a default, as text."""
    return {name: str(value) for name, value in vars(arguments).items() if value not in (None, [])}


def _status(done: Sequence[Measurement]) -> int:
    end = done[-1].summary.end
    if end is End.TARGET_LOST:
        return EXIT_TARGET
    return EXIT_INTERRUPTED if end is End.INTERRUPTED else 0
