"""The command line of the load generator: its flags, and the workload that they ask for.

Each dataclass is a group of `--help`, and says what its flags are where they are not given.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, NoReturn

from client import address
from client import arguments as values
from client.client import DEFAULT_SERVER
from client.terminal import printable
from client.values import Importance
from engine.flags import Flag, add_flags, flags_of, given, make
from loadgen import simulation_flags
from loadgen.scoring import gate
from loadgen.scoring.modes import Search
from loadgen.scoring.summary import Measuring
from loadgen.simulation_flags import SimulationFlags
from loadgen.targets import live
from loadgen.workload import mix, toml_file
from loadgen.workload.arrivals import Process, Rate, parse_rate
from loadgen.workload.lengths import Distribution, Lognormal, parse_distribution
from loadgen.workload.plan import SharedPrefix
from loadgen.workload.spec import DEFAULT_DURATION_S, DEFAULT_RATE, Spec, TierSpec, by_importance
from loadgen.workload.units import parse_duration, parse_shares

_MEASURING, _SEARCH = Measuring(), Search(guess=1.0)  # the defaults
_GATE = "0.99"  # of `--slo-gate` alone
_EPILOG = """\
rates       40; 2..5/15m (square wave); step:2..5/15m; ramp:2..5; sine:1..9/24h
durations   500ms, 30 or 30s, 15m, 4h
exit status 0; 1 the target was not reached or was lost; 2 bad arguments; 3 the gate is shut;
            4 the run is invalid (only with a gate or a search); 130 interrupted,
            143 by SIGTERM, 129 by SIGHUP
"""

Shares = Mapping[str, float]
TierLength = tuple[str, Distribution]  # the tier's name is empty where all of them are meant


def _usual_lengths(interactive: Distribution, others: Distribution) -> str:
    """Tells the default lengths, each as it is typed."""

    def typed(length: Distribution) -> str:
        return f"{length.p50:g}/{length.p90:g}" if isinstance(length, Lognormal) else str(length)

    return f"default {typed(interactive)} with a TTFT target, else {typed(others)}"


@dataclass(frozen=True, slots=True)
class TargetFlags:
    """The flags of the server that is asked."""

    target: Annotated[
        str, Flag("default %(default)s", metavar="HOST:PORT", parse=address.check)
    ] = DEFAULT_SERVER
    channels: Annotated[int, Flag("connections (default %(default)s)")] = live.CHANNELS
    drain: Annotated[
        float | None,
        Flag(
            f"longest wait for the last answers (default {live.DRAIN_S:g}s; simulated: none)",
            metavar="DURATION",
            parse=parse_duration,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class LoadFlags:
    """The flags that say when requests come and to which tiers. None: as the workload file has it,
    else the default.
    """

    workload: Annotated[Path | None, Flag("TOML file; flags override it", metavar="FILE")] = None
    rps: Annotated[
        Rate | None,
        Flag(f"requests/s (default {DEFAULT_RATE})", metavar="RATE", parse=parse_rate),
    ] = None
    duration: Annotated[
        float | None,
        Flag(f"default {DEFAULT_DURATION_S:g}s, or the replayed trace", parse=parse_duration),
    ] = None
    seed: Annotated[
        int | None, Flag("same seed, same instants, lengths and kinds of requests (default 0)")
    ] = None
    mix: Annotated[
        Shares | None,
        Flag(
            "the other tiers get equal parts of the rest (default: all equal)",
            metavar="TIER:SHARE,...",
            parse=parse_shares,
        ),
    ] = None
    arrivals: Annotated[
        Process | None,
        Flag("default poisson, or gamma with --cv", metavar="poisson|gamma|constant"),
    ] = None
    cv: Annotated[float | None, Flag("of gamma arrivals: coefficient of variation")] = None
    replay: Annotated[
        Path | None, Flag("arrival times and lengths of a trace's rows", metavar="TRACE")
    ] = None


@dataclass(frozen=True, slots=True)
class RequestFlags:
    """The flags that say what requests look like. None: as the workload file has it, else the
    default.
    """

    prompt_tokens: Annotated[
        Sequence[TierLength],
        Flag(
            _usual_lengths(mix.INTERACTIVE.prompt, mix.BACKGROUND.prompt),
            metavar="[TIER:]LENGTH",
            parse=parse_tier_length,
            is_repeated=True,
        ),
    ] = ()
    output_tokens: Annotated[
        Sequence[TierLength],
        Flag(
            _usual_lengths(mix.INTERACTIVE.output, mix.BACKGROUND.output),
            metavar="[TIER:]LENGTH",
            parse=parse_tier_length,
            is_repeated=True,
        ),
    ] = ()
    trace: Annotated[Path | None, Flag("lengths drawn from a trace's rows")] = None
    importance: Annotated[
        Mapping[Importance, float] | None,
        Flag("default: the tier's", metavar="low:0.2,normal:0.8", parse=parse_importance),
    ] = None
    tenants: Annotated[
        Shares | None, Flag("default: one", metavar="NAME:SHARE,...", parse=parse_shares)
    ] = None
    applications: Annotated[
        Shares | None, Flag("default: one", metavar="NAME:SHARE,...", parse=parse_shares)
    ] = None
    shared_prefix: Annotated[
        SharedPrefix | None,
        Flag(
            "that share of the prompts starts with one of COUNT common prefixes",
            metavar="TOKENS[:SHARE[:COUNT]]",
            parse=parse_prefix,
        ),
    ] = None
    cancel_rate: Annotated[float | None, Flag("share of clients that leave early (default 0)")] = (
        None
    )
    timeout: Annotated[
        float | None, Flag("deadline of each call (default: none)", parse=parse_duration)
    ] = None


@dataclass(frozen=True, slots=True)
class ModeFlags:
    """The flags of what is done with the load: one run where none is given."""

    sweep: Annotated[
        Sequence[float] | None,
        Flag("a run at each rate", metavar="RATE,RATE,...", parse=parse_rates, is_exclusive=True),
    ] = None
    find_capacity: Annotated[bool, Flag("the largest rate that is served", is_exclusive=True)] = (
        False
    )
    slo_gate: Annotated[
        Shares | None,
        Flag(
            f"exit status 3 unless that share is on time (default {_GATE} of every tier)",
            metavar="SHARE|TIER:SHARE,...",
            parse=gate.parse_gate,
            is_exclusive=True,
            alone=_GATE,
        ),
    ] = None
    compare: Annotated[
        Sequence[str],
        Flag(
            "the same requests to each: a policy (a server is started), or NAME=HOST:PORT; "
            "one run each, a sweep or a search",
            metavar="NAME,...",
            parse=parse_contenders,
        ),
    ] = ()
    max_misses: Annotated[float, Flag("capacity: share allowed (default %(default)s)")] = (
        _SEARCH.max_misses
    )
    precision: Annotated[float, Flag("capacity: relative (default %(default)s)")] = (
        _SEARCH.precision
    )
    repeats: Annotated[int, Flag("capacity: runs per rate (default %(default)s)")] = _SEARCH.repeats
    server_flags: Annotated[
        str, Flag("compare: for the servers started (default: none)", metavar="FLAGS")
    ] = ""

    @property
    def name(self) -> str:
        """The mode as the JSON report calls it."""
        if self.compare:
            return "compare"
        if self.sweep:
            return "sweep"
        return "find-capacity" if self.find_capacity else "run"


@dataclass(frozen=True, slots=True)
class ReportFlags:
    """The flags of what is measured and where it is written. Durations in seconds."""

    warmup: Annotated[
        float, Flag("not measured at the start (default %(default)g)", parse=parse_duration)
    ] = _MEASURING.warmup_s
    cooldown: Annotated[
        float, Flag("not measured at the end (default %(default)g)", parse=parse_duration)
    ] = _MEASURING.cooldown_s
    max_lag: Annotated[
        float,
        Flag(
            "schedule lag p99 beyond which a run is invalid"
            f" (default {_MEASURING.max_lag_s * 1e3:g}ms)",
            parse=parse_duration,
        ),
    ] = _MEASURING.max_lag_s
    json: Annotated[Path | None, Flag("write the figures", metavar="FILE")] = None
    html: Annotated[Path | None, Flag("write a page of charts", metavar="FILE")] = None
    csv: Annotated[Path | None, Flag("write a row per request", metavar="FILE")] = None


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line, a part for each group of `--help`."""

    target: TargetFlags
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
    for title, about, config in (
        ("target", None, TargetFlags),
        ("simulation", None, SimulationFlags),
        ("load", None, LoadFlags),
        ("requests", "LENGTH: 100 fixed, 80/200 lognormal by p50/p90", RequestFlags),
        ("modes (one run where none is given)", None, ModeFlags),
        ("measuring and reporting", None, ReportFlags),
    ):
        add_flags(parser.add_argument_group(title, about), config, is_typed=is_typed)
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
        SimulationFlags(**simulation) if simulation else None,
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
    if load.cv is not None and load.arrivals not in (None, Process.GAMMA):
        return "argument --cv: only of gamma arrivals"
    return ""


def _can_be_written(path: Path) -> bool:
    """Whether a report can be written there, which is asked before the run, not after it."""
    place = path if path.exists() else path.parent
    return not path.is_dir() and os.access(place, os.W_OK)


def as_typed(argv: Sequence[str] | None, arguments: Arguments) -> dict[str, object]:
    """The flags by name that were given or have a default: plain values as they are (durations in
    seconds), and the text that was typed for any other.
    """
    texts = vars(_parser(is_typed=False).parse_args(argv))
    parts = [getattr(arguments, part.name) for part in fields(arguments)]
    flags = {name: getattr(part, name) for part in parts if part for name in flags_of(type(part))}
    return {
        name: value if _is_plain(value) else texts[name]
        for name, value in sorted(flags.items())
        if value not in (None, ())
    }


def _is_plain(value: object) -> bool:
    """Whether JSON holds the value; it has no infinity."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int)


def to_spec(arguments: Arguments) -> Spec:
    """The workload that the flags ask for, over the workload file where one is given.

    Raises ValueError (BadWorkloadFile) in one line, or OSError.
    """
    load, requests = arguments.load, arguments.requests
    prompt, output = dict(requests.prompt_tokens), dict(requests.output_tokens)
    everyone = TierSpec(
        prompt=prompt.get(""),
        output=output.get(""),
        trace=requests.trace,
        importance=requests.importance,
        timeout_s=requests.timeout,
        cancel_rate=requests.cancel_rate,
        prefix=requests.shared_prefix,
    )
    named = [name for name in {**prompt, **output} if name]
    spec = Spec(
        rate=load.rps,
        duration_s=load.duration,
        seed=load.seed,
        process=load.arrivals,
        cv=load.cv,
        replay=load.replay,
        mix=load.mix,
        tenants=requests.tenants,
        applications=requests.applications,
        everyone=everyone,
        tiers={name: TierSpec(prompt=prompt.get(name), output=output.get(name)) for name in named},
    )
    return spec if load.workload is None else spec.over(toml_file.load(load.workload))


def parse_rates(text: str) -> list[float]:
    """Reads RATE,RATE,... in requests per second. Raises ValueError."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"{text!r} is not a list of rates such as 10,20,40")
    return rates


def parse_contenders(text: str) -> list[str]:
    """Reads NAME or NAME=HOST:PORT of each contender of a comparison. Raises ValueError."""
    contenders = [part.strip() for part in text.split(",")]
    names = [contender.partition("=")[0] for contender in contenders]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{text!r} is not a list of different names")
    for contender in contenders:
        name, is_running, server = contender.partition("=")
        values.text(name, "a contender's name")
        if is_running:
            address.check(server)
    return contenders


def parse_tier_length(text: str) -> TierLength:
    """Reads LENGTH, or TIER:LENGTH. Raises ValueError."""
    tier, _, length = text.rpartition(":")
    return tier, parse_distribution(length)


def parse_importance(text: str) -> dict[Importance, float]:
    """Reads the shares of importances, such as low:0.2,normal:0.8. Raises ValueError."""
    return by_importance(parse_shares(text))


def parse_prefix(text: str) -> SharedPrefix:
    """Reads TOKENS[:SHARE[:COUNT]]. Raises ValueError."""
    parts = text.split(":")
    try:
        length = int(parts[0])
        share = float(parts[1]) if len(parts) > 1 else 1.0
        count = int(parts[2]) if len(parts) > 2 else 1
    except ValueError:
        raise ValueError(f"{text!r} is not TOKENS[:SHARE[:COUNT]]") from None
    return SharedPrefix(length, share, count)
