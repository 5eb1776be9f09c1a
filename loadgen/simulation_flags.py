"""The flags of the simulated target, and the setup that they ask for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.values import Importance, Targets, Tier
from engine.deciding.niyama import NiyamaConfig
from engine.deciding.pace import PaceConfig
from engine.deciding.policies import POLICIES
from loadgen.silos import SiloTarget, parse_silos
from loadgen.targets import profiles
from loadgen.targets.profiles import Profile
from loadgen.targets.simulated import ROUTINGS, Setup, SimulatedTarget
from loadgen.workload.units import parse_duration

_PROFILES = "a100-llama3-8b, roofline:DEVICE:CONFIG.json, or a saved calibration"
Parse = Callable[[str], Any]

_OF_THE_SERVER = (
    *("policy", "chunk_size", "context_len", "max_batch_size"),
    *("max_requests", "max_gap", "relegation_allowance"),
)
_OF_SIMULATIONS = (
    *("replicas", "silo", "routing", "host_overhead", "predictor_error"),
    *("tiers", "tier", "kv_tokens"),  # the server has others for these
)
NAMES = (*_OF_THE_SERVER, *_OF_SIMULATIONS)


def add(group: argparse._ArgumentGroup, typed: Callable[[Parse], Parse]) -> None:
    """`typed` makes an argparse type of a parser that raises ValueError."""
    duration = typed(parse_duration)
    add = group.add_argument
    add(
        "--simulate", metavar="PROFILE", help="a100-llama3-8b, roofline:DEVICE:CONFIG.json, or FILE"
    )
    add("--policy", choices=POLICIES, default="niyama", help="default %(default)s")
    add("--chunk-size", type=int, default=256, help="of fcfs, edf, srpf (default %(default)s)")
    add("--replicas", type=int, default=1, help="engines that share the requests (default 1)")
    add("--silo", metavar="TIER:COUNT,...", help="compare silo: replicas (default: the fewest)")
    add("--routing", choices=list(ROUTINGS), default="least-loaded", help="default %(default)s")
    add(
        "--tiers", type=Path, metavar="FILE", help="as the server reads it (default: the profile's)"
    )
    add(
        "--tier",
        type=typed(parse_tier),
        action="append",
        metavar="NAME=6s/50ms|NAME=600s",
        help="one more, or another",
    )
    add("--kv-tokens", type=int, help="KV memory (default: the profile's)")
    add("--context-len", type=int, help="most tokens of a request (default: the profile's)")
    add("--max-batch-size", type=int, help="sequences in one iteration (default: the profile's)")
    add("--max-requests", type=int, help="waiting or running per replica (default: no limit)")
    add("--host-overhead", type=duration, default=0.0, help="added to every iteration (default 0)")
    add(
        "--predictor-error",
        type=float,
        default=0.0,
        help="standard deviation (default %(default)s)",
    )
    add(
        "--max-gap",
        type=float,
        default=PaceConfig().max_gap,
        help="niyama: in TBTs; inf: envelope (default %(default)s)",
    )
    add(
        "--relegation-allowance",
        type=float,
        default=0.0,
        help="niyama: share given up early (default %(default)s)",
    )


def misplaced(arguments: argparse.Namespace) -> str:
    """What to say of the first flag of these that was given (not None) without `--simulate`."""
    if arguments.simulate is not None:
        return ""
    name = next((name for name in NAMES if getattr(arguments, name) is not None), None)
    if name is None:
        return ""
    said = f"--{name.replace('_', '-')} is for --simulate"
    if name in _OF_SIMULATIONS:
        return said
    if arguments.compare:
        return f"{said}; servers that --compare starts get it by --server-flags"
    return f"{said}; start the server with it" + ", or use --compare" * (name == "policy")


def parse_tier(text: str) -> Tier:
    """NAME=TTFT/TBT, NAME=TTLT, or NAME=none (best effort). Raises ValueError."""
    name, equals, durations = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{text!r} is not a tier such as chat=6s/50ms or report=600s")
    if durations == "none":
        return Tier(name, Targets(), Importance.NORMAL)
    first, slash, tbt = durations.partition("/")
    if slash:
        targets = Targets(ttft=parse_duration(first), tbt=parse_duration(tbt))
    else:
        targets = Targets(ttlt=parse_duration(first))
    return Tier(name, targets, Importance.NORMAL)


def setup(arguments: argparse.Namespace, prefix_caching: bool) -> Setup:
    """What the flags ask for. Raises ValueError, or OSError."""
    return Setup(
        _profile(arguments),
        policy=arguments.policy,
        chunk_size=arguments.chunk_size,
        replicas=arguments.replicas,
        routing=arguments.routing,
        predictor_error=arguments.predictor_error,
        max_requests=math.inf if arguments.max_requests is None else arguments.max_requests,
        drain_s=math.inf if arguments.drain is None else arguments.drain,
        prefix_caching=prefix_caching,
        niyama=NiyamaConfig(
            pace=PaceConfig(max_gap=arguments.max_gap), allowance=arguments.relegation_allowance
        ),
        seed=arguments.seed or 0,
        keeps_series=arguments.html is not None,
    )


def _profile(arguments: argparse.Namespace) -> Profile:
    profile = profiles.load(arguments.simulate).with_overhead(arguments.host_overhead)
    tiers = profiles.load_tiers(arguments.tiers) if arguments.tiers else profile.tiers
    named = {tier.name: tier for tier in [*tiers, *(arguments.tier or [])]}
    given = {
        name: value
        for name in ("kv_tokens", "context_len", "max_batch_size")
        if (value := getattr(arguments, name)) is not None
    }
    return replace(profile, tiers=tuple(named.values()), **given)


def contender(base: Setup, name: str, silos: str | None) -> SimulatedTarget | SiloTarget:
    """Of a comparison: POLICY, POLICY/CHUNK, or silo. Raises ValueError."""
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
