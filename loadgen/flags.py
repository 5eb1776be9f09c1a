"""The flags of the load generator; those of a simulated target stand in simulation_flags.py.

Each dataclass is a group of `--help`, and says what its flags are where they are not given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from engine.flags import Flag
from engine.routing.router import ROUTING, ROUTINGS
from loadgen.scoring import gate
from loadgen.scoring.modes import Search
from loadgen.scoring.summary import Measuring
from loadgen.targets import live
from loadgen.workload import mix
from loadgen.workload.arrivals import Process, Rate, parse_rate
from loadgen.workload.lengths import Distribution, parse_distribution
from loadgen.workload.plan import SharedPrefix
from loadgen.workload.spec import DEFAULT_DURATION_S, DEFAULT_RATE, DEFAULT_SEED, by_importance
from loadgen.workload.units import parse_duration, parse_shares
from niyama.client import address, arguments
from niyama.client.connection import DEFAULT_SERVER
from niyama.client.values import Importance

_MEASURING, _SEARCH = Measuring(), Search(guess=1.0)  # the defaults
_GATE = "0.99"  # of `--slo-gate` alone

Shares = Mapping[str, float]
TierLength = tuple[str, Distribution]  # the tier's name is empty where all of them are meant


def _usual_lengths(interactive: Distribution, others: Distribution) -> str:
    """Tells the default lengths, each as it is typed."""

    return f"default {interactive} with a TTFT target, else {others}"


@dataclass(frozen=True, slots=True)
class TargetFlags:
    """The flags of the server that is asked; how it is reached the client's own say."""

    target: Annotated[
        str,
        Flag(
            "or several, of a fleet (default %(default)s)",
            metavar="HOST:PORT,...",
            parse=parse_servers,
        ),
    ] = DEFAULT_SERVER
    routing: Annotated[
        str, Flag("of a fleet, be it simulated: which replica gets a request", ROUTINGS)
    ] = ROUTING
    pin: Annotated[
        Mapping[str, int],
        Flag(
            "of a fleet: a tier that goes to one replica, past the router",
            metavar="TIER:REPLICA,...",
            parse=parse_pins,
        ),
    ] = field(default_factory=dict)
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
        int | None,
        Flag(f"same seed, same instants, lengths and kinds of requests (default {DEFAULT_SEED})"),
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
        tuple[Path, ...] | None,
        Flag(
            "instants and lengths of a trace, or all that decision logs say of requests",
            metavar="TRACE|LOG,...",
            parse=parse_replay,
        ),
    ] = None
    scale: Annotated[
        float | None,
        Flag("so many times the rate (of a log: bursts stay where they are)", parse=parse_factor),
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
    refuse_if_late: Annotated[bool, Flag("every call asks to be refused rather than late")] = False


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
    find_replicas: Annotated[
        bool, Flag("simulated: the fewest engines that serve the load", is_exclusive=True)
    ] = False
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
        """Returns what the JSON report calls the mode."""
        if self.compare:
            return "compare"
        if self.sweep:
            return "sweep"
        if self.find_replicas:
            return "find-replicas"
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


def parse_servers(text: str) -> str:
    """Reads HOST:PORT,..., each of them another. Raises ValueError."""
    servers = text.split(",")
    for server in servers:
        address.check(server)
    if len(set(servers)) < len(servers):
        raise ValueError(f"{text!r} names a server twice")
    return text


def parse_pins(text: str) -> dict[str, int]:
    """Reads TIER:REPLICA,... Raises ValueError."""
    pins = {}
    for part in text.split(","):
        tier, _, replica = part.strip().rpartition(":")
        if not tier or not replica.isdecimal():
            raise ValueError(f"{part.strip()!r} is not TIER:REPLICA such as batch:0")
        pins[tier] = int(replica)
    return pins


def parse_replay(text: str) -> tuple[Path, ...]:
    """Reads FILE,FILE,...; a file whose name has a comma is one."""
    return (Path(text),) if Path(text).exists() else tuple(map(Path, text.split(",")))


def parse_factor(text: str) -> float:
    """Reads a positive number. Raises ValueError."""
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ValueError(f"{text!r} is not a factor such as 1.5")
    return factor


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
        arguments.text(name, "a contender's name")
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
