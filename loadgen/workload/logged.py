"""What production really got, from a server's decision logs: its arrivals as a load, and its fates.

A request comes again at the instant, with the lengths, tier or targets of its own, tenant,
importance, application, `max_tokens` and deadline that it had. What the log cannot say is guessed,
and counted (`Guesses`):

* the output length of who was refused, expired, failed or left: drawn from the outputs of its
  tenant's application (or tier), or else of all of its tier, and no longer than its `max_tokens`,
  which it is where there are none. One that was being received when it ended is taken to be longer
  than that;
* who left with nothing overdue leaves again after as many tokens; who left before the first, or
  when he had waited too long, leaves again after as many seconds;
* which prompts begin alike: prompts of one tenant and application of which tokens were cached share
  as many first tokens;
* whoever was refused before anybody read what he asked for is left out.

A load is scaled by having each arrival of a group (tenant, application and tier) come `factor`
times on the average, in turn as often as makes the count of any stretch of time `factor` times what
it was, give or take one: bursts, lulls and days stay where they are, and grow or shrink. A copy
comes between its original and the next arrival of anybody, within COPIED_WITHIN_S.

Seconds, tokens.
"""

from __future__ import annotations

import heapq
import math
import operator
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from engine.deciding.outcome import Fate
from engine.deciding.request import Targets as ServerTargets
from engine.deciding.sequence import FinishReason
from engine.decision_header import Header
from engine.decision_lines import BadLog, Logged, Speed, speed
from engine.decision_log import DecisionLogReader, files_of
from engine.tiers import EXPLICIT, UNREAD
from engine.tiers import Tier as ServerTier
from loadgen.workload.plan import PlannedRequest, Workload
from niyama.client.values import Importance, Targets, Tier

COPIED_WITHIN_S = 1.0
MOST_TENANTS = 50  # that are told apart, beside those that the operator has named
LEAST_TIMEOUT_S = 1e-3  # of who came when its deadline had all but passed
OTHERS = "(others)"
# Who stated the targets of a named tier.
_NAMED = ("tier", "application", "default", "gateway", "inferred")
ALWAYS = (-math.inf, math.inf)  # Unix time
MOST_REQUESTS = 4_000_000  # of a load: a flood of more has one line in a log, and no bound
_ENDED = ("stop", "length")


class Guesses(NamedTuple):
    """How many requests were guessed at, and how many left out."""

    outputs: int  # whose output length is a guess
    prompts: int  # whose prompt's length is estimated from the size of its message
    unread: int  # left out, as nobody knows what they asked for
    without_end: int  # of which the log does not say how they ended
    before: int  # ends of requests that arrived before the log begins
    torn: int  # lines that were cut short


@dataclass(frozen=True, slots=True)
class Log:
    """The arrivals of one or several logs, in order of time from 0 on, and what became of each
    (None where the log does not say). Those that named a tier have the targets that it had then.
    """

    paths: tuple[Path, ...]
    header: Header  # of the last engine
    requests: tuple[PlannedRequest, ...]
    fates: tuple[Fate | None, ...]
    guesses: Guesses
    speeds: tuple[Speed, ...]  # of the engine, by the time of the load

    @property
    def duration_s(self) -> float:
        """Returns how long the load lasts: it ends a mean gap after its last arrival."""
        last = self.requests[-1].at
        gap = last / (len(self.requests) - 1) if last else 1.0
        return last + gap

    @property
    def rps(self) -> float:
        """Returns its mean rate in requests per second."""
        return len(self.requests) / self.duration_s

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Returns the tiers of the service as clients see them."""
        return tuple(map(client_tier, self.header.service.tiers))

    def within(self, workload: Workload) -> list[PlannedRequest]:
        """Returns the requests of the workload's tenants within its time, as they were."""
        tenants, end_s = workload.tenants, workload.duration_s
        return [each for each in self.requests if each.tenant in tenants and each.at < end_s]

    def planned(self, workload: Workload) -> Iterator[PlannedRequest]:
        """Yields the workload's requests, as `loadgen.workload.plan.Recorded` says."""
        requests, rate = self.within(workload), workload.arrivals.rate
        assert rate is not None
        own = len(requests) / workload.duration_s
        loads = {load.tier: load for load in workload.tiers}
        for request in scaled(requests, rate.high / own if own else 1.0, workload.seed):
            load = loads[request.tier]
            if request.explicit:
                yield request
                continue
            importance = request.importance or next(iter(load.importance), None)
            yield replace(
                request, targets=load.targets, explicit=load.explicit, importance=importance
            )

    @property
    def has_prefixes(self) -> bool:
        """Says whether anything was cached of any prompt."""
        return any(request.prefix is not None for request in self.requests)


def client_tier(tier: ServerTier) -> Tier:
    """Turns a tier of the server into one as clients see it."""
    targets, importance = client_targets(tier.targets), Importance[tier.importance.name]
    return Tier(tier.name, targets, importance, tier.targets.max_gap)


def client_targets(targets: ServerTargets) -> Targets:
    """Turns targets of the server into those that clients state."""
    return Targets(targets.ttft_s, targets.tbt_s, targets.ttlt_s)


def is_log(path: Path) -> bool:
    """Says whether a file is a decision log and not a trace: its first character tells. Raises
    OSError.
    """
    with path.open("rb") as file:
        return file.read(64).lstrip()[:1] == b"{"


@lru_cache(maxsize=1)
def load(
    paths: tuple[Path, ...], within: tuple[float, float] = ALWAYS, most: int | None = None
) -> Log:
    """Reads what arrived within a time (from, to) in decision logs, each with its files that got a
    number: the first `most`, or all. Raises BadLog, also where all are more than MOST_REQUESTS, or
    OSError.
    """
    reading = _Reading(within)
    for path in paths:
        reading.read(path)
    return reading.log(paths, most)


class _Reading:
    """Gathers what is kept of each request that arrived within a time."""

    def __init__(self, within: tuple[float, float]) -> None:
        self._from, self._to = within
        self._header: Header | None = None
        self._logged: list[Logged] = []
        self._speeds: list[Speed] = []
        self._num_unread = self._num_unknown = self._num_torn = 0

    def read(self, path: Path) -> None:
        reader = DecisionLogReader(files_of(path))
        for entry, request, is_over in reader.steps():
            if entry is not None and entry.kind == "speed":
                self._speeds.append(speed(entry))
            if request is None or not is_over or not self._from <= request.unix_s < self._to:
                continue
            if request.tier == UNREAD:
                self._num_unread += request.count
            else:
                self._logged.append(request)
        self._header = reader.header or self._header
        self._num_unknown += reader.num_unknown
        self._num_torn += reader.num_torn

    def log(self, paths: tuple[Path, ...], most: int | None) -> Log:
        """Returns the log. Raises BadLog where nothing arrived in it, or too much."""
        names = ", ".join(map(str, paths))
        if not self._logged or self._header is None:
            raise BadLog(f"{names}: no request arrived in it")
        arrived = sum(each.count for each in self._logged)
        if most is None and arrived > MOST_REQUESTS:
            raise BadLog(
                f"{names}: {arrived} requests arrived in it, at most {MOST_REQUESTS} are read"
            )
        logged = list(islice(_one_by_one(self._logged), most))
        began = logged[0].unix_s
        make = _Maker(logged, self._header, began)
        requests = tuple(make.request(index, each) for index, each in enumerate(logged))
        guesses = Guesses(
            make.num_guessed,
            sum(not each.was_seen for each in logged),
            self._num_unread,
            sum(each.fate is None for each in logged),
            self._num_unknown,
            self._num_torn,
        )
        fates = tuple(each.fate for each in logged)
        speeds = tuple(each._replace(unix_s=each.unix_s - began) for each in sorted(self._speeds))
        return Log(paths, self._header, requests, fates, guesses, speeds)


def _one_by_one(logged: Iterable[Logged]) -> Iterator[Logged]:
    """Yields the requests in their order, each of a flood by itself."""
    order = operator.attrgetter("unix_s", "place.line")
    single = sorted((each for each in logged if each.count == 1), key=order)
    floods = (_spread(each) for each in logged if each.count > 1)
    return heapq.merge(single, *floods, key=order)


def _spread(flood: Logged) -> Iterator[Logged]:
    """Yields the requests of a flood, evenly over the time that it took."""
    took_s = (flood.until_unix_s or flood.unix_s) - flood.unix_s
    for i in range(flood.count):
        unix_s = round(flood.unix_s + took_s * i / flood.count, 6)
        tenant = flood.tenant or OTHERS  # of several, which the operator has not named
        yield replace(flood, tenant=tenant, unix_s=unix_s, count=1, until_unix_s=None)


class _Maker:
    """Makes the requests of a load of those of a log."""

    def __init__(self, logged: Sequence[Logged], header: Header, began: float) -> None:
        self.num_guessed = 0
        self._began = began
        self._importance = {tier.name: tier.importance for tier in header.service.tiers}
        self._outputs: dict[tuple[str, str], list[int]] = {}
        self._of_tier: dict[str, list[int]] = {}
        for each in logged:
            if each.reason in _ENDED and each.output_tokens:
                self._outputs.setdefault(_group(each), []).append(each.output_tokens)
                self._of_tier.setdefault(each.tier, []).append(each.output_tokens)
        self._rng = random.Random("outputs")
        sent = Counter(each.tenant for each in logged)
        most = [tenant for tenant, _ in sent.most_common(MOST_TENANTS)]
        self._tenants = {*header.service.weights, *most}
        self._prefixes: dict[tuple[str, str], int] = {}

    def request(self, index: int, logged: Logged) -> PlannedRequest:
        """Returns the request that comes instead of the logged one."""
        is_named = bool(logged.tier) and logged.target_source in _NAMED
        own = Importance[logged.importance.name]
        is_usual = is_named and self._importance.get(logged.tier) == logged.importance
        output_len = self._output_len(logged)
        cancel_after, leaves_s = _leaves(logged)
        cached = min(logged.cached_tokens, logged.prompt_tokens)
        group = (logged.tenant, logged.application)
        return PlannedRequest(
            index,
            max(0.0, round(logged.unix_s - self._began, 6)),
            _shown(logged.tier) or EXPLICIT,
            client_targets(logged.targets),
            logged.prompt_tokens,
            output_len,
            explicit=not is_named,
            importance=None if is_usual else own,
            tenant=_shown(logged.tenant) if logged.tenant in self._tenants else OTHERS,
            application=logged.application,
            prefix=self._prefixes.setdefault(group, len(self._prefixes)) if cached else None,
            prefix_len=cached,
            cancel_after=cancel_after,
            leaves_s=leaves_s,
            timeout_s=None if logged.timeout_s is None else max(logged.timeout_s, LEAST_TIMEOUT_S),
            stated=logged.max_tokens,
            seed=index,
            refuse_if_late=logged.refuse_if_late,
        )

    def _output_len(self, logged: Logged) -> int:
        """Returns how long its output is, or a guess."""
        came = logged.output_tokens or 0
        if logged.reason in _ENDED and came:
            return came
        self.num_guessed += 1
        known = self._outputs.get(_group(logged)) or self._of_tier.get(logged.tier)
        guess = self._rng.choice(known) if known else logged.max_tokens
        return max(min(guess, logged.max_tokens), min(came + 1, logged.max_tokens), 1)


def _group(logged: Logged) -> tuple[str, str]:
    return logged.tenant, logged.application or logged.tier


def _shown(name: str) -> str:
    """Returns a name without what is no printable character: the log may be anybody's."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _leaves(logged: Logged) -> tuple[int | None, float | None]:
    """Returns after how many tokens, or else after how many seconds, the caller left."""
    if logged.reason != FinishReason.CANCELLED.value:
        return None, None
    if logged.fate is Fate.CANCELLED and logged.output_tokens:
        return logged.output_tokens, None
    return None, max(1e-6, logged.lived_s or 0.0)


def scaled(
    requests: Sequence[PlannedRequest], factor: float, seed: int
) -> Iterator[PlannedRequest]:
    """Yields the requests `factor` times as many, as the module says, in order of time."""
    if factor == 1.0:
        yield from requests
        return
    rng, index = random.Random(f"{seed}/scale"), 0
    due: dict[tuple[str, str, str], float] = {}  # copies that are due of a group, and a part of one
    for i, request in enumerate(requests):
        group = (request.tenant, request.application, request.tier)
        total = due.setdefault(group, rng.random()) + factor
        count = math.floor(total)
        due[group] = total - count
        next_at = requests[i + 1].at if i + 1 < len(requests) else request.at
        room_s = min(next_at - request.at, COPIED_WITHIN_S)
        later = sorted(rng.random() for _ in range(count - 1))
        for part in (0.0, *later)[:count]:
            yield replace(
                request, index=index, at=request.at + part * room_s, seed=rng.getrandbits(63)
            )
            index += 1
