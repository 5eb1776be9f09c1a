"""The command `python -m loadgen` sends the loads that its flags ask for and reports on them."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from loadgen import interrupts
from loadgen.arguments import Arguments, as_typed, parse, to_spec
from loadgen.flags import ModeFlags
from loadgen.opening import Opener
from loadgen.reports import figures, progress, records, terminal
from loadgen.reports.html import document
from loadgen.reports.html.page import Asked, page, versions
from loadgen.scoring import gate, modes
from loadgen.scoring.capacity import Capacity
from loadgen.scoring.modes import Measure, Measurement, NotMeasured
from loadgen.scoring.summary import Measuring
from loadgen.silos import SiloTarget, smallest
from loadgen.targets import local_server
from loadgen.targets.simulated import SimulatedTarget
from loadgen.targets.target import End, Target, Unreachable
from loadgen.workload.plan import Workload, plan
from loadgen.workload.served import TargetInfo
from loadgen.workload.spec import Spec, build
from niyama.client.terminal import discard_output, have_streams, printable, write_any_character

EXIT_TARGET, EXIT_USAGE, EXIT_GATE, EXIT_INVALID = 1, 2, 3, 4


def main(argv: Sequence[str] | None = None, server: str = local_server.MODULE) -> int:
    """Does what the flags ask for, and returns the exit status, as `--help` lists them.

    `server` is the module of the servers that a comparison starts.
    """
    have_streams()
    arguments = parse(argv)
    write_any_character()
    asked = sys.argv[1:] if argv is None else argv
    try:
        with interrupts.handled(interrupts.interrupt):
            spec = to_spec(arguments)
            opener = Opener(arguments, spec, server)
            status = _Command(arguments, spec, opener, terminal.console(), asked).run()
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        discard_output()
        return EXIT_TARGET
    except Unreachable as error:
        return _fail(str(error), EXIT_TARGET)
    except OSError as error:
        if error.filename is None and error.errno:  # of no file, hence of standard output
            discard_output()
            return _fail(f"standard output: {error.strerror}", EXIT_TARGET)
        return _fail(str(error), EXIT_USAGE)
    except (ValueError, NotWritten) as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt as error:
        return interrupts.exit_status(interrupts.number_of(error))


class NotWritten(Exception):
    """Files that were asked for could not be written; the message names them, in one line."""


def _fail(message: str, status: int) -> int:
    """Says what went wrong and returns the exit status."""
    with contextlib.suppress(OSError):  # nobody is there to be told
        print(f"niyama-loadgen: {printable(message)}", file=sys.stderr)
    return status


@dataclass(slots=True)
class _Command:
    """One invocation in the mode that the flags ask for. What was done until it ended, however it
    ends, is reported.
    """

    arguments: Arguments
    spec: Spec
    opener: Opener
    out: Console
    argv: Sequence[str]
    done: list[Measurement] = field(default_factory=list)  # every run so far
    capacities: dict[str, Capacity] = field(default_factory=dict)  # by contender
    replicas: dict[str, int] = field(default_factory=dict)  # the fewest that serve, by contender

    @property
    def mode(self) -> ModeFlags:
        """Returns the flags that say what is done with the load."""
        return self.arguments.mode

    def run(self) -> int:
        """Sends the loads, reports what was done and returns the exit status."""
        try:
            self._send_all()
        except NotMeasured as error:
            return _fail(str(error), _ended(self.done) or EXIT_INVALID)
        finally:
            if self.done:
                with interrupts.unheard():
                    found = self.capacities, self.replicas
                    _Reports(
                        self.arguments, self.spec, self.out, self.argv, self.done, *found
                    ).make()
        if not all(capacity.is_bracketed for capacity in self.capacities.values()):
            return EXIT_INVALID
        gate_status = self._gate()
        return _ended(self.done) or gate_status

    def _send_all(self) -> None:
        """Opens each target and sends it its loads."""
        if self.mode.compare:
            self.opener.check()
            modes.compare(
                self.opener.opened,
                self.mode.compare,
                lambda info: build(self.spec, info),
                self._send,
            )
            return
        with self.opener.opened() as target:
            info = target.info()
            workload = build(self.spec, info)
            gate.check(self.mode.slo_gate or {}, [load.tier for load in workload.tiers])
            self._send(target, info, workload, "")

    def _send(
        self, target: Target, info: TargetInfo, workload: Workload, contender: str
    ) -> list[Measurement]:
        """Sends one contender its loads: those of a sweep or a search, or one."""
        if isinstance(target, SiloTarget) and not target.silos:
            target = target.sized(plan(workload))
            info = target.info()
            self.out.print(
                f"the fewest silos that serve this load: {escape(info.name)}", highlight=False
            )
        report = self.arguments.report
        measuring = Measuring(report.warmup, report.cooldown, report.max_lag)
        showing = partial(progress.showing, self.out)
        simulation = self.arguments.simulation
        fair_share = simulation is not None and simulation.fair_share

        def measure_on(asked: Target, load: Workload, name: str) -> Measurement:
            full_name = f"{contender} {name}".strip()
            info = asked.info()
            done = modes.measure(
                asked, info, load, measuring, showing, full_name, contender, fair_share
            )
            self.done.append(done)
            return done

        measure = partial(measure_on, target)

        if self.mode.sweep:
            return modes.sweep(measure, workload, self.mode.sweep)
        if self.mode.find_capacity:
            return self._search(measure, workload, contender)
        if self.mode.find_replicas:
            return self._fewest(target, measure_on, workload, contender)
        return [measure(workload, "")]

    def _search(self, measure: Measure, workload: Workload, contender: str) -> list[Measurement]:
        """Searches a contender's capacity and prints each step and the result."""
        rate = workload.arrivals.rate
        search = modes.Search(
            guess=rate.mean(workload.duration_s) if rate else 1.0,
            max_misses=self.mode.max_misses,
            precision=self.mode.precision,
            repeats=self.mode.repeats,
        )

        def measure_aloud(load: Workload, name: str) -> Measurement:
            done = measure(load, name)
            passed = search.is_passed(done.summary)
            self.out.print(terminal.search_line(done, passed), highlight=False)
            return done

        capacity, done = modes.search_capacity(measure_aloud, workload, search)
        self.capacities[contender] = capacity
        line = terminal.capacity_line(capacity, search.max_misses)
        self.out.print(f"{escape(contender)} {line}".strip(), highlight=False)
        return done

    def _fewest(
        self,
        target: Target,
        measure_on: Callable[[Target, Workload, str], Measurement],
        workload: Workload,
        contender: str,
    ) -> list[Measurement]:
        """Searches the fewest replicas that serve a load and prints each step and the result."""
        if not isinstance(target, SimulatedTarget):
            raise ValueError(f"{contender}: only replicas that share all requests are searched")
        search = modes.Search(guess=1.0, max_misses=self.mode.max_misses)
        done: list[Measurement] = []

        def serves(count: int) -> bool:
            several = SimulatedTarget(replace(target.setup, replicas=count))
            done.append(measure_on(several, workload, f"{count} x"))
            passed = search.is_passed(done[-1].summary)
            self.out.print(terminal.search_line(done[-1], passed), highlight=False)
            if done[-1].summary.end is not End.COMPLETE:
                raise NotMeasured(done[-1].summary.problem)
            return passed

        self.replicas[contender] = count = smallest(serves)
        line = terminal.replicas_line(count, search.max_misses)
        self.out.print(f"{escape(contender)} {line}".strip(), highlight=False)
        return done

    def _gate(self) -> int:
        """Prints whether the gate is open and returns the exit status that it asks for."""
        if self.mode.slo_gate is None:
            return 0
        summary = self.done[0].summary
        reasons = gate.shut(self.mode.slo_gate, summary)
        for reason in reasons:
            self.out.print(f"[red]GATE SHUT[/] {escape(reason)}", highlight=False)
        if not reasons:
            self.out.print("gate open")
        if summary.invalid:
            return EXIT_INVALID
        return EXIT_GATE if reasons else 0


@dataclass(frozen=True, slots=True)
class _Reports:
    """The reports of the runs that were done, at least one."""

    arguments: Arguments
    spec: Spec
    out: Console
    argv: Sequence[str]
    done: Sequence[Measurement]
    capacities: Mapping[str, Capacity]  # by contender
    replicas: Mapping[str, int]

    def make(self) -> None:
        """Prints the report and writes the files that were asked for. Raises NotWritten."""
        try:
            self._show()
        finally:  # also where nobody reads what is shown
            self._write()

    def _show(self) -> None:
        """Prints the report; that of a search was printed step by step."""
        mode = self.arguments.mode
        if not (mode.find_capacity or mode.find_replicas):
            terminal.print_mode(mode.name, self.done, self.spec.planned_seed, self.out)

    def _write(self) -> None:
        """Writes every file that was asked for, whether or not the others can be written.

        Raises NotWritten, naming those that could not.
        """
        report, failed = self.arguments.report, []
        for path, write in (
            (report.json, self._write_json),
            (report.csv, partial(records.write, self.done)),
            (report.html, self._write_html),
        ):
            try:
                if path is not None:
                    write(path)
            except OSError as error:
                failed.append(f"{path}: {error.strerror}")
        if failed:
            raise NotWritten("; ".join(failed))

    def _write_json(self, path: Path) -> None:
        mode = self.arguments.mode.name
        found = self.capacities, self.replicas
        document = figures.to_json(mode, self._flags_as_sent(), self.done, *found)
        figures.write(document, path)

    def _write_html(self, path: Path) -> None:
        found = self.capacities, self.replicas
        document.write(page(self._page_head(), self.done, *found), path)

    def _flags_as_sent(self) -> dict[str, object]:
        """Returns the flags by name, but of those that say which requests are sent what the
        first run really had.
        """
        first = self.done[0]
        rate = self.spec.planned_rate if self.spec.logs is None else self.spec.rate
        really = {
            "seed": self.spec.planned_seed,
            "rps": None if rate is None else str(rate),
            "duration": first.duration_s,
        }
        if self.arguments.simulation is not None:
            really["stated_output"] = str(self.spec.planned_stated)
        return as_typed(self.argv, self.arguments) | really

    def _page_head(self) -> Asked:
        """Returns the head of the HTML report."""
        return Asked(
            self.arguments.mode.name,
            printable(shlex.join(["python", "-m", "loadgen", *self.argv])),
            self.spec.planned_seed,
            self.arguments.mode.max_misses,
            versions(self.done),
            datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        )


def _ended(done: Sequence[Measurement]) -> int:
    """Returns the exit status that the end of the last run asks for: 0 where it was complete."""
    end = done[-1].summary.end
    if end is End.TARGET_LOST:
        return EXIT_TARGET
    return interrupts.exit_status(done[-1].interrupted_by) if end is End.INTERRUPTED else 0
