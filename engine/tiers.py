"""Tiers, application presets, and which targets a request is served with. Seconds throughout.

Targets come, in this order, from the request itself, its named tier, what a gateway says of it, its
application's preset, what is inferred from the history of its like (`engine/inferring`), the
default tier. The call's own deadline caps them, as nothing is worth having after it. It is itself
the target (as TTLT) only for those whom the operator says so of: every backend sets deadlines, and
most mean "give up after", not "in time if by then".

`engine/tiers_file.py` reads what an operator says of all this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from engine.deciding.latency import LatencyModel, LatencyProfile, add_chunk
from engine.deciding.plan import Work
from engine.deciding.request import EVERYBODY_ELSE, Importance, Share, TargetKind, Targets
from engine.deciding.stats import TierAsked
from engine.rights import ANYTHING, Rights

# Names in metrics and reports that are no tier's: of targets that requests state themselves, and of
# calls that nobody has read.
EXPLICIT, UNREAD = "explicit", "unknown"
OTHER_TENANTS = "other"  # of all tenants that the operator has not named

# The targets of the built-in tiers, in seconds.
INTERACTIVE_TTFT_S, INTERACTIVE_TBT_S, STANDARD_TTLT_S, BATCH_TTLT_S = 1.0, 0.05, 10.0, 60.0

# The moderate load under which an engine must be able to keep the tiers that it proposes.
DECODES = 32  # sequences that decode beside each other
CONTEXT = 512  # tokens that each of them reads
CHUNK = 64  # prompt tokens computed beside them in an iteration
PROMPTS_AHEAD, PROMPT_LEN = 4, 1024  # prompts that a new one waits for and is one of
_ROUND = (1, 1.5, 2, 3, 5, 7.5, 10)  # times a power of ten: round numbers


class TargetSource(Enum):
    """Who stated the targets that a request is served with."""

    REQUEST = "request"
    TIER = "tier"
    APPLICATION = "application"
    RPC_DEADLINE = "rpc_deadline"
    DEFAULT = "default"
    GATEWAY = "gateway"
    INFERRED = "inferred"


STATED = frozenset({TargetSource.REQUEST, TargetSource.TIER})  # by the request itself


class UnknownTier(ValueError):
    """The request names a tier that the server does not have."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Named targets. `name` is empty for an application's own."""

    name: str
    targets: Targets
    importance: Importance = Importance.NORMAL


@dataclass(frozen=True, slots=True)
class Preset:
    """What holds for the calls of an application that state neither targets nor tier."""

    tier: Tier
    deadline_is_target: bool = False  # where the call has one


class Inferred(NamedTuple):
    """The tier with which calls that state nothing may be served, and why, for people."""

    tier: Tier
    reason: str


@dataclass(frozen=True, slots=True)
class FromGateway:
    """What a gateway says of a call, beside the call's own message: targets, or an `objective` by
    its name, and an importance. `reason` tells a person what carried the targets or the objective.
    """

    targets: Targets | None = None
    objective: Preset | None = None
    importance: Importance | None = None
    reason: str = ""


NO_GATEWAY = FromGateway()


@dataclass(frozen=True, slots=True)
class Resolved:
    """The targets that a request is served with, and where they came from: `source` says who stated
    them, also where the call's deadline has made them tighter, and `reason` tells a person why
    these, where it is neither the request nor the operator that states them.
    """

    targets: Targets
    importance: Importance
    source: TargetSource
    tier: str = ""
    reason: str = ""


def _three_tiers(ttft_s: float, tbt_s: float, scale: float) -> tuple[Tier, ...]:
    """Returns interactive with these targets, and standard and batch with theirs times
    `scale`.
    """
    return (
        Tier("interactive", Targets(ttft_s=ttft_s, tbt_s=tbt_s)),
        Tier("standard", Targets(ttlt_s=round(STANDARD_TTLT_S * scale, 3))),
        Tier("batch", Targets(ttlt_s=round(BATCH_TTLT_S * scale, 3))),
    )


BUILT_IN = _three_tiers(INTERACTIVE_TTFT_S, INTERACTIVE_TBT_S, 1.0)


class Least(NamedTuple):
    """The least targets that an engine can keep, in seconds: of a request of one token that has the
    engine to itself (`alone`), and under moderate load (`loaded`).
    """

    alone_ttft_s: float
    alone_tbt_s: float
    loaded_ttft_s: float
    loaded_tbt_s: float


class Shortfall(NamedTuple):
    """A target that is less than what any request can be served with: `target` is its name, the
    rest is in seconds.
    """

    target: str
    stated_s: float
    alone_s: float
    loaded_s: float

    def __str__(self) -> str:
        target = self.target.removesuffix("_s").upper()
        return (
            f"{target} of {_told(self.stated_s)} cannot be kept: here it takes"
            f" {_told(self.alone_s)} even alone, {_told(self.loaded_s)} under moderate load"
        )


def least_of(profile: LatencyProfile, max_batch_size: int, context_len: int) -> Least:
    """Returns the least targets that an engine with this profile can keep."""
    model = LatencyModel(profile)
    decodes = min(DECODES, max_batch_size)
    work = Work(decodes, decodes * min(CONTEXT, context_len))
    prompt_len = min(PROMPT_LEN, context_len)
    prefill_s = model.prefill_seconds(0, prompt_len, model.saturating_chunk())
    return Least(
        alone_ttft_s=profile.seconds(add_chunk(Work(), 0, 1)),
        alone_tbt_s=profile.seconds(Work(num_decodes=1, decode_context=1)),
        loaded_ttft_s=PROMPTS_AHEAD * prefill_s,
        loaded_tbt_s=profile.seconds(add_chunk(work, 0, min(CHUNK, profile.max_chunk))),
    )


def shortfalls(targets: Targets, least: Least) -> list[Shortfall]:
    """Returns the targets that cannot be kept, whatever else there is to do."""
    found = (
        ("ttft_s", targets.ttft_s, least.alone_ttft_s, least.loaded_ttft_s),
        ("tbt_s", targets.tbt_s, least.alone_tbt_s, least.loaded_tbt_s),
        ("ttlt_s", targets.ttlt_s, least.alone_ttft_s, least.loaded_ttft_s),
    )
    return [
        Shortfall(target, stated_s, alone_s, loaded_s)
        for target, stated_s, alone_s, loaded_s in found
        if stated_s is not None and stated_s < alone_s
    ]


def _told(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def propose(profile: LatencyProfile, max_batch_size: int, context_len: int) -> tuple[Tier, ...]:
    """Returns the built-in tiers, as far as a moderately loaded engine with this profile can keep
    them.

    TTFT and TBT that it cannot keep become the next round numbers that it can, and the targets of
    the other tiers grow with the one of these two that has grown more.
    """
    least = least_of(profile, max_batch_size, context_len)
    tbt_s = _at_least(INTERACTIVE_TBT_S, least.loaded_tbt_s)
    ttft_s = _at_least(INTERACTIVE_TTFT_S, least.loaded_ttft_s)
    return _three_tiers(ttft_s, tbt_s, max(ttft_s / INTERACTIVE_TTFT_S, tbt_s / INTERACTIVE_TBT_S))


def _at_least(target_s: float, needed_s: float) -> float:
    """Returns the target where it can be kept, else the next round number that can."""
    if needed_s <= target_s:
        return target_s
    magnitude = 10.0 ** math.floor(math.log10(needed_s))
    return round(next(r for r in _ROUND if r * magnitude >= needed_s) * magnitude, 9)


@dataclass(frozen=True, slots=True)
class Tiers:
    """All that a server knows of tiers, applications and tenants. `default` names one of `tiers`.

    Raises ValueError where it does not.
    """

    tiers: Mapping[str, Tier] = field(default_factory=lambda: {t.name: t for t in BUILT_IN})
    default: str = "interactive"
    applications: Mapping[str, Preset] = field(default_factory=dict)
    deadline_is_target: bool = False  # of calls that name no targets, tier or preset
    tenants: Mapping[str, Share] = field(default_factory=dict)  # that the operator has named
    rights: Mapping[str, Rights] = field(default_factory=dict)  # by the name of the share

    def __post_init__(self) -> None:
        if self.default not in list(self.tiers):
            raise ValueError(f"default_tier {self.default!r} is not one of the tiers")

    def resolve(
        self,
        explicit: Targets | None = None,
        tier: str = "",
        application: str = "",
        timeout_s: float | None = None,
        importance: Importance | None = None,
        gateway: FromGateway = NO_GATEWAY,
        inferred: Inferred | None = None,
        rights: Rights = ANYTHING,
    ) -> Resolved:
        """Returns the targets and the importance of a request that states these, within what its
        tenant may have.

        `timeout_s` is from the arrival to the call's own deadline. A gateway's importance holds for
        a request that states neither its importance nor a tier, which has one; `inferred` is for
        one that nobody states anything of. Raises UnknownTier, and NotAllowed for what the request
        itself states.
        """
        rights.check_importance(importance)
        limit_s = math.inf if timeout_s is None or timeout_s <= 0 else timeout_s
        if not rights.explicit_targets:
            limit_s = math.inf  # the call ends there all the same
        chosen, source, is_target = self._choose_within(
            rights, explicit, tier, application, gateway, inferred
        )
        if is_target and limit_s < math.inf:
            chosen = Tier("", Targets(ttlt_s=limit_s), chosen.importance)
            source = TargetSource.RPC_DEADLINE
        wanted = importance
        if wanted is None and not tier:
            wanted = gateway.importance
        if wanted is None:
            wanted = chosen.importance
        wanted = min(wanted, rights.importance)
        reason = ""
        if source is TargetSource.GATEWAY:
            reason = gateway.reason
        elif inferred is not None and source is TargetSource.INFERRED:
            reason = inferred.reason
        return Resolved(chosen.targets.within(limit_s), wanted, source, chosen.name, reason)

    def objective(self, name: str) -> Preset | None:
        """Returns what a gateway's objective of that name stands for: the tier of the name, or else
        the preset of the application of the name; None where there is neither.
        """
        if name in self.tiers:
            return Preset(self.tiers[name])
        return self.applications.get(name)

    def shortfalls(self, least: Least) -> dict[str, list[Shortfall]]:
        """Returns the targets that cannot be kept, by the name that the file has for who has them:
        `tiers.chat`.
        """
        own = {f"tiers.{name}": tier for name, tier in self.tiers.items()}
        for name, preset in self.applications.items():
            if not preset.tier.name:
                own[f"applications.{name}"] = preset.tier
        found = {name: shortfalls(tier.targets, least) for name, tier in own.items()}
        return {name: each for name, each in found.items() if each}

    def asked(self) -> tuple[TierAsked, ...]:
        """Returns what an engine is to know of the tiers, to tell what their requests have to
        expect.
        """
        return tuple(
            TierAsked(tier.name, tier.targets, tier.importance) for tier in self.tiers.values()
        )

    def share_of(self, tenant: str) -> Share:
        """Returns whose part of queue and engine the tenant's requests take."""
        return self.tenants.get(tenant, EVERYBODY_ELSE)

    def rights_of(self, tenant: str) -> Rights:
        """Returns what the tenant may do."""
        return self.rights.get(self.share_of(tenant).name, ANYTHING)

    def seen_by(self, tenant: str) -> Tiers:
        """Returns them as the tenant may have them: its tiers alone, and its own default."""
        rights = self.rights_of(tenant)
        if not rights.tiers:
            return self
        own = {name: self.tiers[name] for name in self.tiers if name in rights.tiers}
        return replace(self, tiers=own, default=self._default(rights).name)

    def _choose_within(
        self,
        rights: Rights,
        explicit: Targets | None,
        tier: str,
        application: str,
        gateway: FromGateway,
        inferred: Inferred | None,
    ) -> tuple[Tier, TargetSource, bool]:
        """Does as `_choose`; of what the tenant may not have, its own default takes the place.
        Raises NotAllowed where the request itself states it.
        """
        if tier and explicit is None and not rights.may_have(tier):  # whether there is one or not
            raise rights.refuse(tier)
        chosen, source, is_target = self._choose(explicit, tier, application, gateway, inferred)
        is_nothing = not chosen.name and chosen.targets.kind is TargetKind.BEST_EFFORT
        if is_nothing or rights.may_have(chosen.name):
            return chosen, source, is_target
        if source in STATED:
            raise rights.refuse(chosen.name)
        return self._default(rights), TargetSource.DEFAULT, False

    def _default(self, rights: Rights) -> Tier:
        """Returns the tier of the tenant's calls that name nothing."""
        return self.tiers[self.default if rights.may_have(self.default) else rights.tiers[0]]

    def _choose(
        self,
        explicit: Targets | None,
        tier: str,
        application: str,
        gateway: FromGateway,
        inferred: Inferred | None,
    ) -> tuple[Tier, TargetSource, bool]:
        """Returns the tier whose targets hold, who stated it, and whether the call's deadline,
        where it has one, takes the place of the targets.
        """
        if explicit is not None:
            return Tier("", explicit), TargetSource.REQUEST, False
        if tier:
            if tier not in self.tiers:
                known = ", ".join(sorted(self.tiers))
                raise UnknownTier(f"unknown tier {tier!r}; the server has {known}")
            return self.tiers[tier], TargetSource.TIER, False
        objective = gateway.objective
        if gateway.targets is not None:
            importance = Importance.NORMAL if objective is None else objective.tier.importance
            return Tier("", gateway.targets, importance), TargetSource.GATEWAY, False
        if objective is not None:
            return objective.tier, TargetSource.GATEWAY, objective.deadline_is_target
        if application in self.applications:
            preset = self.applications[application]
            return preset.tier, TargetSource.APPLICATION, preset.deadline_is_target
        if inferred is not None:
            return inferred.tier, TargetSource.INFERRED, self.deadline_is_target
        return self.tiers[self.default], TargetSource.DEFAULT, self.deadline_is_target
