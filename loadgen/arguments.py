"""The command line of the load generator, read and checked, and the workload that it asks for."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from engine.flags import add_flags, flags_of, given, make
from loadgen import simulation_flags
from loadgen.flags import LoadFlags, ModeFlags, ReportFlags, RequestFlags, TargetFlags
from loadgen.simulation_flags import SimulationFlags
from loadgen.workload import toml_file
from loadgen.workload.arrivals import Process
from loadgen.workload.logged import is_log
from loadgen.workload.spec import Spec, TierSpec
from niyama.client import flags as client_flags
from niyama.client.options import ConnectionOptions
from niyama.client.terminal import printable

_EPILOG = """\
rates       40; 2..5/15m (square wave); step:2..5/15m; ramp:2..5; sine:1..9/24h
durations   500ms, 30 or 30s, 15m, 4h
exit status 0; 1 the target was not reached or was lost; 2 bad arguments; 3 the gate is shut;
            4 the run is invalid (only with a gate or a search); 130 interrupted,
            143 by SIGTERM, 129 by SIGHUP
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line, a part for each group of `--help`."""

    target: TargetFlags
    connection: ConnectionOptions
    simulation: SimulationFlags | None  # None: a server is asked
    load: LoadFlags
    requests: RequestFlags
    mode: ModeFlags
    report: ReportFlags


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong: its flags are too many to be listed."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2."""
        self.exit(2, f"{self.prog}: {printable(message)} (--help lists the flags)\n")


def _parser(is_typed: bool = True) -> _Parser:
    parser = _Parser(
        prog="niyama-loadgen",
        description="Sends an open-loop load of several tiers and reports who was on time.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--version", action="version", version=f"niyama-loadgen {version('niyama')}"
    )
    for title, about, config in (
        ("target", None, TargetFlags),
        ("simulation", None, SimulationFlags),
        ("load", None, LoadFlags),
        ("requests", "LENGTH: 100 fixed, 80/200 lognormal by p50/p90", RequestFlags),
        ("modes (one run where none is given)", None, ModeFlags),
        ("measuring and reporting", None, ReportFlags),
    ):
        group = parser.add_argument_group(title, about)
        add_flags(group, config, is_typed=is_typed)
        if config is TargetFlags:
            try:
                client_flags.add_connection(group)
            except argparse.ArgumentError as error:
                parser.error(str(error))
    return parser


def parse(argv: Sequence[str] | None) -> Arguments:
    """Reads the command line (None: the process's own). Exits with a line of what is wrong where
    the arguments make no sense.
    """
    parser = _parser()
    typed = parser.parse_args(argv)
    simulation, mode = given(SimulationFlags, typed), make(ModeFlags, typed)
    if simulation and "simulate" not in simulation:
        parser.error(simulation_flags.misplaced(next(iter(simulation)), bool(mode.compare)))
    if "policy" in simulation and mode.compare:
        parser.error("argument --policy: not allowed with argument --compare, which names them")
    arguments = Arguments(
        make(TargetFlags, typed),
        client_flags.connection(typed),
        SimulationFlags(**simulation, given=frozenset(simulation)) if simulation else None,
        make(LoadFlags, typed),
        make(RequestFlags, typed),
        mode,
        make(ReportFlags, typed),
    )
    if problem := _contradiction(arguments):
        parser.error(problem)
    report = arguments.report
    for name, path in (("json", report.json), ("html", report.html), ("csv", report.csv)):
        if path is not None and not _can_be_written(path):
            parser.error(f"argument --{name}: {path} cannot be written")
    return arguments


def _contradiction(arguments: Arguments) -> str:
    """Says which flag another one forbids or leaves without an effect; nothing where none does."""
    simulation, load, requests = arguments.simulation, arguments.load, arguments.requests
    mode = arguments.mode
    if mode.compare and mode.slo_gate is not None:
        return "argument --compare: not allowed with argument --slo-gate"
    if simulation and simulation.silo is not None and "silo" not in mode.compare:
        return "argument --silo: only with silo in --compare"
    if mode.server_flags and (simulation or not mode.compare):
        return "argument --server-flags: only of servers that --compare starts"
    lengths = (*requests.prompt_tokens, *requests.output_tokens)
    if requests.trace is not None and not all(tier for tier, _ in lengths):
        return "argument --trace: not allowed with lengths for all tiers, which its rows give"
    if load.replay is not None and (load.arrivals, load.cv) != (None, None):
        return "argument --replay: not allowed with --arrivals or --cv, its rows say when"
    if load.scale is not None and load.rps is not None:
        return "argument --scale: not allowed with argument --rps"
    if mode.find_replicas and simulation is None:
        return "argument --find-replicas: only with --simulate"
    if load.cv is not None and load.arrivals not in (None, Process.GAMMA):
        return "argument --cv: only of gamma arrivals"
    return ""


def _can_be_written(path: Path) -> bool:
    """Says whether a report can be written there, which is asked before the run, not after it."""
    place = path if path.exists() else path.parent
    return not path.is_dir() and os.access(place, os.W_OK)


def as_typed(argv: Sequence[str] | None, arguments: Arguments) -> dict[str, object]:
    """Returns the flags by name that were given or have a default, but for how the server is
    reached: plain values as they are (durations in seconds), and the text that was typed for any
    other.
    """
    texts = vars(_parser(is_typed=False).parse_args(argv))
    parts = [getattr(arguments, p.name) for p in fields(arguments) if p.name != "connection"]
    flags = {name: getattr(part, name) for part in parts if part for name in flags_of(type(part))}
    return {
        name: value if _is_plain(value) else texts[name]
        for name, value in sorted(flags.items())
        if value not in (None, ())
    }


def _is_plain(value: object) -> bool:
    """Says whether JSON holds the value; it has no infinity."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int)


def to_spec(arguments: Arguments) -> Spec:
    """Returns the workload that the flags ask for, over the workload file where one is given.

    Raises ValueError (BadWorkloadFile) in one line, or OSError.
    """
    load, requests, simulation = arguments.load, arguments.requests, arguments.simulation
    prompt, output = dict(requests.prompt_tokens), dict(requests.output_tokens)
    everyone = TierSpec(
        prompt=prompt.get(""),
        output=output.get(""),
        trace=requests.trace,
        importance=requests.importance,
        timeout_s=requests.timeout,
        cancel_rate=requests.cancel_rate,
        prefix=requests.shared_prefix,
        refuse_if_late=requests.refuse_if_late or None,
    )
    named = [name for name in {**prompt, **output} if name]
    replay, logs = _replayed(arguments)
    spec = Spec(
        rate=load.rps,
        duration_s=load.duration,
        seed=load.seed,
        process=load.arrivals,
        cv=load.cv,
        replay=replay,
        logs=logs,
        scale=load.scale,
        mix=load.mix,
        tenants=requests.tenants,
        applications=requests.applications,
        stated_output=None if simulation is None else simulation.stated_output,
        everyone=everyone,
        tiers={name: TierSpec(prompt=prompt.get(name), output=output.get(name)) for name in named},
    )
    return spec if load.workload is None else spec.over(toml_file.load(load.workload))


def _replayed(arguments: Arguments) -> tuple[Path | None, tuple[Path, ...] | None]:
    """Returns the trace that is replayed, or the decision logs. Raises ValueError where a flag says
    otherwise of what is in a log, or OSError.
    """
    load, requests, paths = arguments.load, arguments.requests, arguments.load.replay
    if paths is None:
        return None, None
    are_logs = [is_log(path) for path in paths]
    if len(paths) == 1 and not are_logs[0]:
        return paths[0], None
    if not all(are_logs):
        raise ValueError(f"{paths[are_logs.index(False)]}: no decision log, and one trace at most")
    said = {name: getattr(requests, name) for name in flags_of(RequestFlags)}
    said |= {"mix": load.mix, "workload": load.workload}
    if arguments.simulation is not None:
        said["stated_output"] = arguments.simulation.stated_output
    for name, value in said.items():
        if value not in (None, (), False):
            flag = name.replace("_", "-")
            raise ValueError(f"argument --{flag}: not allowed with a decision log, which says it")
    return None, paths
