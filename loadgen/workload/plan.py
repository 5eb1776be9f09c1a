"""The plan of what is sent: every request with its instant, lengths, tier and tenant, by one seed.

A plan does not depend on who serves it: the same workload and seed give the same requests to every
target and policy. Each property is drawn from a generator of its own, so that changing one leaves
the others as they were. Lengths in tokens, instants in seconds from the start of the run.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar

from loadgen.workload.arrivals import Process, Rate, Shape, arrival_times, unit_gaps
from loadgen.workload.lengths import Length, Lengths
from loadgen.workload.traces import Row
from loadgen.workload.units import SHARE_TOLERANCE
from niyama.client import arguments
from niyama.client.values import Importance, Targets

T = TypeVar("T")

_SILENT = Row(0.0, 1, 1)  # says neither tier nor application
_LEAST_CV, _MOST_CV = 1e-3, 1e3  # of gamma arrivals; its square is the scale of a gap


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request that is sent `at` seconds after the start of the run. Lengths are in tokens."""

    index: int
    at: float
    tier: str
    targets: Targets  # what it is judged by
    prompt_len: int
    output_len: int
    explicit: bool = False  # the targets are sent themselves, not the tier's name
    importance: Importance | None = None  # None: the tier's
    tenant: str = ""
    application: str = ""
    prefix: int | None = None  # which shared prefix the prompt starts with
    prefix_len: int = 0
    cancel_after: int | None = None  # the client leaves after this many tokens
    leaves_s: float | None = None  # or so many seconds after `at`, if it has not all by then
    timeout_s: float | None = None  # the call's own deadline
    seed: int = 0  # of the prompt's tokens, and of its sampling
    stated: int | None = None  # the `max_tokens` that a simulated caller states; None: not known
    refuse_if_late: bool = False


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Common beginnings: a share of the prompts starts with one of `count` prefixes of `length`
    tokens. Raises ValueError for what cannot be.
    """

    length: int
    share: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"a shared prefix has at least 1 token, got {self.length}")
        if self.count < 1:
            raise ValueError(f"there is at least 1 shared prefix, got {self.count}")
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of a prefix is above 0, at most 1, got {self.share:g}")


@dataclass(frozen=True, slots=True)
class TierLoad:
    """One tier's part of the load. Where it is `explicit`, requests carry the targets themselves
    instead of the tier's name. Raises ValueError for a value out of range.
    """

    tier: str
    share: float
    targets: Targets
    lengths: Lengths
    explicit: bool = False
    # Shares; where there are none, requests have the tier's importance.
    importance: Mapping[Importance, float] = field(default_factory=dict)
    timeout_s: float | None = None
    cancel_rate: float = 0.0  # share of requests whose client leaves before the last token
    prefix: SharedPrefix | None = None
    refuse_if_late: bool = False  # they ask to be refused rather than late

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 + SHARE_TOLERANCE:
            raise ValueError(f"the share of {self.tier} is above 0, at most 1, got {self.share:g}")
        if not 0 <= self.cancel_rate <= 1:
            raise ValueError(f"the cancel rate is between 0 and 1, got {self.cancel_rate:g}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"the timeout is positive, got {self.timeout_s:g}")
        _check_shares(self.importance, f"importance of {self.tier}")


class Recorded(Protocol):
    """Requests that came before, and are to come again (loadgen/workload/logged.py)."""

    def planned(self, workload: Workload) -> Iterator[PlannedRequest]:
        """Yields those of the workload's tenants within its time, at its rate and with what its
        tiers say, in order of time.
        """


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests come: by a process at a rate, or with `replay` at the instants of a trace. Its
    time is scaled so that `rate`, where one is given, is its mean rate. Raises ValueError.
    """

    rate: Rate | None
    process: Process = Process.POISSON
    cv: float = 1.0  # coefficient of variation of the gaps, for gamma
    replay: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        if not _LEAST_CV <= self.cv <= _MOST_CV:
            raise ValueError(
                f"the coefficient of variation is {_LEAST_CV:g} to {_MOST_CV:g}, got {self.cv:g}"
            )
        if self.rate is None and not self.replay:
            raise ValueError("a rate is needed where no trace is replayed")
        if self.replay and self.rate is not None and self.rate.shape is not Shape.CONSTANT:
            raise ValueError(f"a replayed trace has a shape of its own: one rate, not {self.rate}")

    def times(self, duration_s: float, rng: random.Random) -> Iterator[float]:
        """Yields the instants in [0, duration_s), in order."""
        if not self.replay:
            assert self.rate is not None
            return arrival_times(self.rate, unit_gaps(self.process, self.cv, rng), duration_s)
        scale = 1.0 if self.rate is None else self.trace_rps / self.rate.high
        scaled = (row.at * scale for row in self.replay)
        return itertools.takewhile(lambda at: at < duration_s, scaled)

    @property
    def replay_s(self) -> float:
        """Returns how many seconds a replay lasts: it ends a mean gap after its last row."""
        rps = self.trace_rps if self.rate is None else self.rate.high
        return len(self.replay) / rps

    @property
    def trace_rps(self) -> float:
        """Returns the trace's own mean rate; rows of one instant count as those of a second."""
        span = self.replay[-1].at
        return (len(self.replay) - 1) / span if span else float(len(self.replay))


@dataclass(frozen=True, slots=True)
class Workload:
    """A load, whoever serves it. Shares add up to 1. Raises ValueError where they do not, and for
    names that cannot be sent.
    """

    arrivals: Arrivals
    tiers: tuple[TierLoad, ...]
    duration_s: float
    seed: int = 0
    tenants: Mapping[str, float] = field(default_factory=dict)  # shares; empty: one nameless tenant
    applications: Mapping[str, float] = field(default_factory=dict)
    context_length: int | None = None  # prompt and output are cut to fit
    replay_lengths: bool = False  # a replayed row also says the lengths
    recorded: Recorded | None = None  # all requests, of which `tenants` then says whose are sent

    def __post_init__(self) -> None:
        if not 0 < self.duration_s < math.inf:
            raise ValueError(f"the duration is positive, got {self.duration_s:g}")
        _check_shares({load.tier: load.share for load in self.tiers}, "tiers")
        _check_shares(self.tenants, "tenants")
        _check_shares(self.applications, "applications")
        for tenant in () if self.recorded is not None else self.tenants:
            arguments.tenant(tenant, "tenants")
        for application in self.applications:
            arguments.text(application, "applications")

    def scaled(self, factor: float) -> Workload:
        """Returns the same load at so many times its mean rate, as `at_rate` does."""
        rate = self.arrivals.rate
        now = self.arrivals.trace_rps if rate is None else rate.mean(self.duration_s)
        return self.at_rate(now * factor)

    def at_rate(self, rate: float) -> Workload:
        """Returns the same load at another mean rate, in requests per second, and as long; only a
        replay ends with its trace, which at a larger rate is earlier.

        Raises ValueError where no request arrives.
        """
        arrivals = self.arrivals
        if arrivals.rate is None or arrivals.replay:
            arrivals = replace(arrivals, rate=Rate(rate, rate))
            duration_s = min(self.duration_s, arrivals.replay_s)
            return replace(self, arrivals=arrivals, duration_s=duration_s)
        now = arrivals.rate.mean(self.duration_s)
        if not now:
            raise ValueError(f"at {arrivals.rate} nothing arrives in {self.duration_s:g} s")
        return replace(self, arrivals=replace(arrivals, rate=arrivals.rate.scaled(rate / now)))


def _check_shares(shares: Mapping[T, float], what: str) -> None:
    total = sum(shares.values())
    if shares and abs(total - 1) > SHARE_TOLERANCE:
        raise ValueError(f"the shares of {what} add up to {total:g}, not 1")


def plan(workload: Workload) -> Iterator[PlannedRequest]:
    """Yields every request of the run, in order of time."""
    if workload.recorded is not None:
        yield from workload.recorded.planned(workload)
        return

    def stream(purpose: str) -> random.Random:
        return random.Random(f"{workload.seed}/{purpose}")

    next_tier = _chooser([(load, load.share) for load in workload.tiers], stream("tier"))
    next_tenant = _chooser([*workload.tenants.items()] or [("", 1.0)], stream("tenant"))
    next_application = _chooser([*workload.applications.items()] or [("", 1.0)], stream("app"))
    drawers = {load.tier: _Drawer(load, workload.seed) for load in workload.tiers}
    content = stream("content")
    times = workload.arrivals.times(workload.duration_s, stream("arrivals"))
    rows: Sequence[Row] = workload.arrivals.replay
    for index, at in enumerate(times):
        row = rows[index] if rows else _SILENT
        has_lengths = bool(rows) and workload.replay_lengths
        length = Length(row.prompt_len, row.output_len) if has_lengths else None
        # All are drawn even where a row says otherwise, so that the generators stay in step.
        tenant, application, load = next_tenant(), next_application(), next_tier()
        application = application if row.application is None else row.application
        who = _Who(tenant, application, content.getrandbits(63))
        drawer = drawers[load.tier if row.tier is None else row.tier]
        yield drawer.draw(index, at, who, length, workload.context_length)


class _Who(NamedTuple):
    """The properties of a request that are drawn in the same way for all tiers."""

    tenant: str
    application: str
    seed: int


class _Drawer:
    """Draws the requests of one tier, each property from a generator of its own."""

    def __init__(self, load: TierLoad, seed: int) -> None:
        def stream(purpose: str) -> random.Random:
            return random.Random(f"{seed}/{load.tier}/{purpose}")

        self._load = load
        self._lengths = stream("lengths")
        self._cancels = stream("cancels")
        self._prefixes = stream("prefixes")
        importance: list[tuple[Importance | None, float]] = [*load.importance.items()]
        self._next_importance = _chooser(importance or [(None, 1.0)], stream("importance"))

    def draw(
        self, index: int, at: float, who: _Who, length: Length | None, context_length: int | None
    ) -> PlannedRequest:
        """Draws the next request. `length` is what a replayed row says, if one does.

        The tier's lengths are drawn even then, so that its generators stay in step.
        """
        load = self._load
        drawn = load.lengths.draw(self._lengths)
        prompt_len, output_len = length or drawn
        prefix, prefix_len = self._draw_prefix()
        prompt_len += prefix_len
        if context_length is not None:
            output_len = min(output_len, context_length - 1)
            prompt_len = min(prompt_len, context_length - output_len)
        return PlannedRequest(
            index,
            at,
            load.tier,
            load.targets,
            prompt_len,
            output_len,
            explicit=load.explicit,
            importance=self._next_importance(),
            tenant=who.tenant,
            application=who.application,
            prefix=prefix,
            prefix_len=min(prefix_len, prompt_len),
            cancel_after=self._draw_cancel(output_len),
            timeout_s=load.timeout_s,
            seed=who.seed,
            refuse_if_late=load.refuse_if_late,
        )

    def _draw_prefix(self) -> tuple[int | None, int]:
        """Draws which shared prefix a prompt starts with, if any, and how long that is."""
        shared, rng = self._load.prefix, self._prefixes
        if shared is None:
            return None, 0
        chosen, which = rng.random() < shared.share, rng.randrange(shared.count)
        return (which, shared.length) if chosen else (None, 0)

    def _draw_cancel(self, output_len: int) -> int | None:
        """Draws after how many tokens the client leaves; None where it stays."""
        rng = self._cancels
        leaves, after = rng.random() < self._load.cancel_rate, rng.random()
        return 1 + int(after * (output_len - 1)) if leaves and output_len > 1 else None


def _chooser(shares: Sequence[tuple[T, float]], rng: random.Random) -> Callable[[], T]:
    """Makes a function that draws one of the things, each as often as its share says."""
    things = [thing for thing, _ in shares]
    bounds = list(itertools.accumulate(share for _, share in shares))

    def choose() -> T:
        drawn = rng.random() * bounds[-1]
        return things[min(bisect_right(bounds, drawn), len(things) - 1)]

    return choose


def prompt_ids(request: PlannedRequest, vocabulary_size: int, run: str) -> list[int]:
    """Makes the token ids of a prompt: its shared prefix, then tokens that no other request has.

    `run` names the run, and every run has other tokens, or a server's prefix cache would hold them
    from the run before. The lowest ids are left out where the vocabulary is large enough: control
    tokens live there.
    """
    usable = range(min(300, vocabulary_size // 2), vocabulary_size)

    def tokens(what: str, count: int) -> list[int]:
        return random.Random(f"{run}/{what}").choices(usable, k=count)

    shared = tokens(f"prefix {request.prefix}", request.prefix_len) if request.prefix_len else []
    return shared + tokens(str(request.seed), request.prompt_len - request.prefix_len)
