"""The flags of the simulated target, and the setup that they ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.pace import PaceConfig
from engine.deciding.policies import ORDERS, POLICIES
from engine.flags import Flag
from engine.fleet import Outage
from engine.routing.router import ROUTING, ROUTINGS
from loadgen.silos import SiloTarget, parse_silos
from loadgen.targets import profiles
from loadgen.targets.profiles import Profile
from loadgen.targets.simulated import Setup, SimulatedTarget
from loadgen.workload.lengths import USUALLY_STATED, Stated, parse_stated
from loadgen.workload.logged import Log
from loadgen.workload.units import parse_duration, parse_weights
from niyama.client.values import Importance, Targets, Tier

_USUAL = Setup(profiles.A100)  # the defaults
# What a decision log says of how its engine was told to decide.
_IN_LOGS: dict[str, type[Any]] = {
    "policy": str,
    "chunk_size": int,
    "max_gap": float,
    "reserve": float,
    "relegation_allowance": float,
    "background_share": float,
    "longest_wait_s": float,
    "max_requests": int,
}
# Flags of the server by the same name.
_OF_THE_SERVER = (
    *("policy", "chunk_size", "context_len", "max_batch_size"),
    *("max_requests", "max_gap", "relegation_allowance", "longest_wait_s"),
)


@dataclass(frozen=True, slots=True)
class SimulationFlags:
    """The flags of a simulated target. Sizes in tokens unless said otherwise."""

    simulate: Annotated[
        str,
        Flag(
            f"{profiles.A100.name}, roofline:DEVICE:CONFIG.json, FILE, or log: the engine whose"
            " decision log is replayed",
            metavar="PROFILE",
        ),
    ]
    policy: Annotated[str, Flag("default %(default)s", POLICIES)] = _USUAL.policy
    chunk_size: Annotated[int, Flag(f"of {', '.join(ORDERS)} (default %(default)s)")] = (
        _USUAL.chunk_size
    )
    replicas: Annotated[int, Flag("engines that share the requests (default %(default)s)")] = (
        _USUAL.replicas
    )
    silo: Annotated[
        str | None,
        Flag(
            "compare silo: replicas and chunk (default: those that need the fewest)",
            metavar="TIER:COUNT[/CHUNK],...",
        ),
    ] = None
    slow_replica: Annotated[
        Mapping[int, float],
        Flag("how many times as slow", metavar="REPLICA:FACTOR,...", parse=parse_slow),
    ] = field(default_factory=dict)
    replica_down: Annotated[
        Sequence[Outage],
        Flag(
            "lost at an instant, and back at another",
            metavar="REPLICA@AT[-UNTIL]",
            parse=parse_outage,
            is_repeated=True,
        ),
    ] = ()
    tiers: Annotated[
        Path | None,
        Flag(
            "as the server reads it (default: the replayed log's, else the profile's)",
            metavar="FILE",
        ),
    ] = None
    tier: Annotated[
        Sequence[Tier],
        Flag(
            "one more, or another",
            metavar="NAME=6s/50ms[/GAP]|NAME=600s",
            parse=parse_tier,
            is_repeated=True,
        ),
    ] = ()
    kv_tokens: Annotated[int | None, Flag("KV memory (default: the profile's)")] = None
    context_len: Annotated[
        int | None, Flag("most tokens of a request (default: the profile's)")
    ] = None
    max_batch_size: Annotated[
        int | None, Flag("sequences in one iteration (default: the profile's)")
    ] = None
    max_requests: Annotated[
        int | None, Flag("waiting or running per replica (default: no limit)")
    ] = None
    host_overhead: Annotated[
        float, Flag("added to every iteration (default %(default)g)", parse=parse_duration)
    ] = 0.0
    predictor_error: Annotated[float, Flag("standard deviation (default %(default)s)")] = (
        _USUAL.predictor_error
    )
    max_gap: Annotated[float, Flag("niyama: in TBTs; inf: envelope (default %(default)s)")] = (
        _USUAL.niyama.pace.max_gap
    )
    weights: Annotated[
        Mapping[str, float] | None,
        Flag(
            "of tenants with a share of their own, besides those in --tiers"
            " (default: all have one together)",
            metavar="NAME:WEIGHT,...",
            parse=parse_weights,
        ),
    ] = None
    fair_share: Annotated[
        bool, Flag("each tenant's requests alone, too: what its fair share is worth")
    ] = False
    stated_output: Annotated[
        Stated | None,
        Flag(
            f"max_tokens of requests; exact: their true length (default {USUALLY_STATED})",
            metavar="LENGTH|exact",
            parse=parse_stated,
        ),
    ] = None
    relegation_allowance: Annotated[
        float, Flag("niyama: share given up early (default %(default)s)")
    ] = _USUAL.niyama.allowance
    longest_wait_s: Annotated[
        float, Flag("niyama: best effort, and relegated when late (default %(default)s)")
    ] = _USUAL.niyama.longest_wait_s
    decision_log: Annotated[
        Path | None, Flag("write what a server's would say, of the last run", metavar="FILE")
    ] = None
    reserve: float = _USUAL.niyama.pace.reserve  # as a log says, like the next
    background_share: float = _USUAL.niyama.background_share
    given: frozenset[str] = frozenset()  # the flags that were given

    def setup(
        self,
        *,
        drain_s: float,
        prefix_caching: bool,
        stated_output: Stated,
        seed: int,
        keeps_series: bool,
        routing: str = ROUTING,
        pinned: Mapping[str, int] | None = None,
        log: Log | None = None,
    ) -> Setup:
        """Returns the replicas asked for, to which `log` is replayed. Raises ValueError, naming the
        field, or OSError.
        """
        flags = self if log is None else self.as_logged(log)
        weights = {} if log is None else log.header.service.weights
        in_file = profiles.load_weights(self.tiers) if self.tiers else weights
        return Setup(
            flags.profile(log),
            policy=flags.policy,
            chunk_size=flags.chunk_size,
            replicas=flags.replicas,
            routing=routing,
            pinned=pinned or {},
            slow=flags.slow_replica,
            outages=tuple(flags.replica_down),
            predictor_error=flags.predictor_error,
            max_requests=math.inf if flags.max_requests is None else flags.max_requests,
            drain_s=drain_s,
            prefix_caching=prefix_caching,
            stated_output=stated_output,
            niyama=NiyamaConfig(
                pace=PaceConfig(max_gap=flags.max_gap, reserve=flags.reserve),
                allowance=flags.relegation_allowance,
                background_share=flags.background_share,
                longest_wait_s=flags.longest_wait_s,
            ),
            weights={**in_file, **(self.weights or {})},
            seed=seed,
            keeps_series=keeps_series,
            decision_log=self.decision_log,
            slowness=log.speeds if log is not None and self.is_logged else (),
        )

    @property
    def is_logged(self) -> bool:
        """Says whether they ask for the engine whose log is replayed."""
        return self.simulate == profiles.LOGGED

    def as_logged(self, log: Log) -> SimulationFlags:
        """Returns them, where they ask for the engine of the log, with what that was told, unless a
        flag says otherwise. Raises ValueError.
        """
        if not self.is_logged:
            return self
        values, found = log.header.values, {}
        for name, kind in _IN_LOGS.items():
            value = values.get(name)
            if name not in self.given and isinstance(value, str | int | float):
                found[name] = kind(value)
        return replace(self, **found)

    def profile(self, log: Log | None = None) -> Profile:
        """Returns the profile with what flags say otherwise. A tier with other targets keeps its
        importance. Raises BadProfile, or OSError.
        """
        profile = profiles.load(self.simulate, log).with_overhead(self.host_overhead)
        usual = profile.tiers if log is None else log.tiers
        tiers = profiles.load_tiers(self.tiers) if self.tiers else usual
        named = {tier.name: tier for tier in tiers}
        for tier in self.tier:
            before = named.get(tier.name, tier)
            named[tier.name] = replace(tier, importance=before.importance)
        return replace(
            profile,
            tiers=tuple(named.values()),
            kv_tokens=profile.kv_tokens if self.kv_tokens is None else self.kv_tokens,
            context_len=profile.context_len if self.context_len is None else self.context_len,
            max_batch_size=(
                profile.max_batch_size if self.max_batch_size is None else self.max_batch_size
            ),
        )


def misplaced(name: str, compares: bool) -> str:
    """Says where a flag of these belongs that was given without `--simulate`; `name` is its
    field's.
    """
    said = f"--{name.replace('_', '-')} is for --simulate"
    if name not in _OF_THE_SERVER:
        return said
    if compares:
        return f"{said}; servers that --compare starts get it by --server-flags"
    return f"{said}; start the server with it" + ", or use --compare" * (name == "policy")


def parse_tier(text: str) -> Tier:
    """Reads NAME=TTFT/TBT, NAME=TTLT, or NAME=none (best effort). Behind a TBT may stand /GAP, the
    longest time between two tokens in TBTs. Raises ValueError.
    """
    name, equals, durations = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{text!r} is not a tier such as chat=6s/50ms or report=600s")
    if durations == "none":
        return Tier(name, Targets(), Importance.NORMAL)
    first, slash, rest = durations.partition("/")
    if not slash:
        return Tier(name, Targets(ttlt=parse_duration(first)), Importance.NORMAL)
    tbt, has_gap, gap = rest.partition("/")
    targets = Targets(ttft=parse_duration(first), tbt=parse_duration(tbt))
    return Tier(name, targets, Importance.NORMAL, parse_gap(gap) if has_gap else None)


def parse_slow(text: str) -> dict[int, float]:
    """Reads REPLICA:FACTOR,... Raises ValueError."""
    slow = {}
    for replica, factor in parse_weights(text).items():
        if not replica.isdecimal():
            raise ValueError(f"{replica!r} is not a replica: they have numbers from 0 on")
        slow[int(replica)] = factor
    return slow


def parse_outage(text: str) -> Outage:
    """Reads REPLICA@AT[-UNTIL]. Raises ValueError."""
    replica, at, instants = text.partition("@")
    first, dash, second = instants.partition("-")
    if not replica.isdecimal() or not at:
        raise ValueError(f"{text!r} is not REPLICA@AT or REPLICA@AT-UNTIL such as 1@60s-90s")
    until = parse_duration(second) if dash else math.inf
    if not parse_duration(first) < until:
        raise ValueError(f"{text!r}: it is back after it is lost")
    return Outage(int(replica), parse_duration(first), until)


def parse_gap(text: str) -> float:
    """Reads a longest time between two tokens, in TBTs; `inf` is one. Raises ValueError."""
    try:
        gap = float(text)
    except ValueError:
        gap = math.nan
    if not gap >= 1:
        raise ValueError(f"max_gap is a number of TBTs, at least 1, or inf; got {text!r}")
    return gap


def contender(base: Setup, name: str, silos: str | None) -> SimulatedTarget | SiloTarget:
    """Makes the contender of a comparison by its name: POLICY, POLICY/CHUNK, either with @ROUTING,
    or silo (with `silos` as `--silo` has it, else the fewest that serve the load). Raises
    ValueError.
    """
    name, at, routing = name.partition("@")
    if at and routing not in ROUTINGS:
        raise ValueError(f"unknown routing {routing!r}: one of {', '.join(ROUTINGS)}")
    base = replace(base, routing=routing or base.routing)
    if name == "silo":
        return SiloTarget(base, parse_silos(silos, base.profile.tiers) if silos else ())
    policy, slash, chunk = name.partition("/")
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}: one of {', '.join(POLICIES)}, or silo")
    if not slash:
        return SimulatedTarget(replace(base, policy=policy))
    if not chunk.isdigit():
        raise ValueError(f"{name!r} is not POLICY/CHUNK such as edf/512")
    return SimulatedTarget(replace(base, policy=policy, chunk_size=int(chunk)))
