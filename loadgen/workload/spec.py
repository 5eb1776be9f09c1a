"""A workload as it was asked for, by flags or by a file, which leaves gaps. `build` fills them with
what the target says of itself (its tiers, its context length) and with defaults.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from loadgen.workload import logged, traces
from loadgen.workload.arrivals import Process, Rate
from loadgen.workload.lengths import (
    USUALLY_STATED,
    AsLogged,
    Distribution,
    FromTrace,
    Lengths,
    Stated,
)
from loadgen.workload.mix import complete_mix, default_lengths
from loadgen.workload.plan import Arrivals, SharedPrefix, TierLoad, Workload
from loadgen.workload.served import TargetInfo
from loadgen.workload.traces import Row
from niyama.client.values import Importance, Targets, Tier

DEFAULT_RATE = Rate(10.0, 10.0)
DEFAULT_DURATION_S = 30.0
DEFAULT_SEED = 0

S = TypeVar("S", "TierSpec", "Spec")


def by_importance(shares: Mapping[str, float]) -> dict[Importance, float]:
    """Turns names of importances into importances, each with its share. Raises ValueError."""
    known = [each.value for each in Importance]
    if unknown := [name for name in shares if name not in known]:
        raise ValueError(f"{', '.join(unknown)} is no importance: one of {', '.join(known)}")
    return {Importance(name): share for name, share in shares.items()}


@dataclass(frozen=True, slots=True)
class TierSpec:
    """What was asked for of one tier's requests. None stands for what holds for all tiers, and if
    nothing does, for the default.
    """

    prompt: Distribution | None = None
    output: Distribution | None = None
    trace: Path | None = None  # lengths from its rows, instead of prompt and output
    targets: Targets | None = None  # explicit ones, sent instead of the tier's name
    importance: Mapping[Importance, float] | None = None
    timeout_s: float | None = None
    cancel_rate: float | None = None
    prefix: SharedPrefix | None = None
    refuse_if_late: bool | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """A workload as it was asked for. `everyone` holds for tiers of which nothing else is said, and
    None stands for the default.
    """

    rate: Rate | None = None
    duration_s: float | None = None
    seed: int | None = None
    process: Process | None = None
    cv: float | None = None  # alone, it asks for gamma arrivals
    replay: Path | None = None
    logs: tuple[Path, ...] | None = None  # decision logs, of which each request comes again
    scale: float | None = None  # factor of the rate
    replay_lengths: bool | None = None  # None: yes, unless lengths are given
    mix: Mapping[str, float] | None = None
    tenants: Mapping[str, float] | None = None
    applications: Mapping[str, float] | None = None
    stated_output: Stated | None = None  # the `max_tokens` of simulated requests
    everyone: TierSpec = field(default_factory=TierSpec)
    tiers: Mapping[str, TierSpec] = field(default_factory=dict)

    @property
    def planned_rate(self) -> Rate | None:
        """Returns the rate that is sent; None where it is that of the replayed trace."""
        return self.rate or (None if self.replay else DEFAULT_RATE)

    @property
    def planned_seed(self) -> int:
        """Returns the seed of the first run; a search tries a rate again with those that follow."""
        return DEFAULT_SEED if self.seed is None else self.seed

    @property
    def planned_stated(self) -> Stated:
        """Returns what simulated callers state as `max_tokens`."""
        if self.logs is not None:
            return AsLogged()
        return USUALLY_STATED if self.stated_output is None else self.stated_output

    def over(self, base: Spec) -> Spec:
        """Lays this spec over `base`, which holds where this one says nothing."""
        nothing = TierSpec()
        tiers = {
            name: _overlay(self.tiers.get(name, nothing), base.tiers.get(name, nothing))
            for name in {**base.tiers, **self.tiers}
        }
        everyone = _overlay(self.everyone, base.everyone)
        return replace(_overlay(self, base), everyone=everyone, tiers=tiers)


def _overlay(top: S, base: S) -> S:
    """Takes each field of `top`, or of `base` where it is None.

    Lengths of one kind displace the other: drawn ones a trace, and a trace drawn ones.
    """
    given: dict[str, Any] = {
        f.name: value for f in fields(top) if (value := getattr(top, f.name)) is not None
    }
    if "trace" in given:
        given = {"prompt": None, "output": None} | given
    elif "prompt" in given or "output" in given:
        given["trace"] = None
    return replace(base, **given)


def build(spec: Spec, target: TargetInfo) -> Workload:
    """Makes the whole workload for a target. Raises ValueError (BadMix, BadTrace, BadLog) with one
    line, or OSError.
    """
    workload = _drawn(spec, target) if spec.logs is None else _logged(spec, spec.logs, target)
    return workload if spec.scale is None else workload.scaled(spec.scale)


def _logged(spec: Spec, paths: tuple[Path, ...], target: TargetInfo) -> Workload:
    """Makes the workload of decision logs. A tier is the target's of that name, else that of the
    log, whose targets are then sent explicitly. Raises BadLog, or OSError.
    """
    log = logged.load(paths)
    duration_s = min(spec.duration_s or math.inf, log.duration_s)
    requests = [each for each in log.requests if each.at < duration_s]
    tenants, tiers = Counter(r.tenant for r in requests), Counter(r.tier for r in requests)
    known = {tier.name: tier for tier in target.tiers}
    of_log = {tier.name: tier for tier in log.tiers}
    nobodys = Tier("", Targets(), Importance.NORMAL)
    rate = len(requests) / duration_s if spec.rate is None else spec.rate.mean(duration_s)
    return Workload(
        Arrivals(Rate(rate, rate)),
        tuple(
            TierLoad(
                name,
                count / len(requests),
                known.get(name, of_log.get(name, nobodys)).targets,
                FromTrace(tuple(Row(r.at, r.prompt_len, r.output_len) for r in requests[:1])),
                explicit=name not in known,
            )
            for name, count in sorted(tiers.items())
        ),
        duration_s,
        spec.planned_seed,
        {tenant: count / len(requests) for tenant, count in sorted(tenants.items())},
        context_length=target.context_length,
        recorded=log,
    )


def _drawn(spec: Spec, target: TargetInfo) -> Workload:
    """Makes a workload that is drawn, but for the instants and lengths of a trace."""
    known = {tier.name: tier for tier in target.tiers}
    for name, tier in spec.tiers.items():
        if tier.targets is not None:
            known[name] = Tier(name, tier.targets, Importance.NORMAL)
    asked = [*(spec.mix or {}), *spec.tiers]
    rows = traces.load(spec.replay) if spec.replay is not None else ()
    shares = _shares(spec.mix, rows, "tier", list(known))
    mix = complete_mix(shares, list(known), asked)
    arrivals = Arrivals(
        spec.planned_rate,
        spec.process or (Process.POISSON if spec.cv is None else Process.GAMMA),
        1.0 if spec.cv is None else spec.cv,
        rows,
    )
    specs = {name: _overlay(spec.tiers.get(name, TierSpec()), spec.everyone) for name in mix}
    return Workload(
        arrivals,
        tuple(_load(known[name], share, specs[name]) for name, share in mix.items()),
        _duration_s(spec, arrivals),
        spec.planned_seed,
        spec.tenants or {},
        _shares(spec.applications, rows, "application"),
        target.context_length,
        replay_lengths=bool(rows) and _rows_say_lengths(spec, specs),
    )


def _shares(
    given: Mapping[str, float] | None,
    rows: Sequence[Row],
    column: str,
    known: Sequence[str] = (),
) -> dict[str, float]:
    """Returns the shares that were asked for, or those of a trace that has the column: first of
    what is known, in its order. Raises ValueError where both say so.
    """
    said: list[str | None] = [getattr(row, column) for row in rows]
    found = Counter(name for name in said if name is not None)
    if given and found:
        raise ValueError(f"shares of {column}s: not allowed with a trace, whose rows name them")
    names = [*filter(found.__contains__, known), *sorted(found.keys() - set(known))]
    return {name: found[name] / len(rows) for name in names} or dict(given or {})


def _duration_s(spec: Spec, arrivals: Arrivals) -> float:
    """Returns how many seconds the run is long. A replay lasts no longer than its trace: nothing
    would be sent in the rest.
    """
    if not arrivals.replay:
        return DEFAULT_DURATION_S if spec.duration_s is None else spec.duration_s
    return arrivals.replay_s if spec.duration_s is None else min(spec.duration_s, arrivals.replay_s)


def _rows_say_lengths(spec: Spec, tiers: Mapping[str, TierSpec]) -> bool:
    """Says whether requests of a replay are as long as its rows say."""
    if spec.replay_lengths is not None:
        return spec.replay_lengths
    drawn = any(tier.prompt or tier.output or tier.trace for tier in tiers.values())
    return not drawn


def _load(tier: Tier, share: float, spec: TierSpec) -> TierLoad:
    return TierLoad(
        tier.name,
        share,
        tier.targets,
        _lengths(spec, tier),
        spec.targets is not None,
        spec.importance or {},
        spec.timeout_s,
        spec.cancel_rate or 0.0,
        spec.prefix,
        spec.refuse_if_late or False,
    )


def _lengths(spec: TierSpec, tier: Tier) -> Lengths:
    if spec.trace is not None:
        return FromTrace(traces.load(spec.trace))
    return default_lengths(tier, spec.prompt, spec.output)
