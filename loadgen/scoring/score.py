"""How good a run was. Every definition stands here, once.

All latencies run from the *scheduled* instant of a request, never from its sending.
* TTFT: to the first token. TTLT: to the last token. TBT: each gap between neighbouring tokens
  (`Record.ttft_s`, `ttlt_s`, `gaps_s`).
* On time (deadline envelope): every token came, token n by TTFT + (n - 1) * TBT, or the last by
  TTLT. A best-effort request is on time when it finishes.
* On pace (raw inter-token latency): on time, and moreover no gap was longer than TBT: credit from
  an early token buys no pause.
* Attainment: the share of *all arrivals* that were on time. Late, rejected, timed out, failed and
  unfinished requests are misses. Left out are only those in flight when the user interrupted the
  run, and those outside the measured part (warm-up, cool-down).
* A request whose own client left as planned is judged by what it received: on time when no token
  was late (interactive), or when its client left before the deadline. One that leaves after a time,
  not after a token, is a miss where it left since the next token was overdue.
* Goodput: requests on time per second of the measured part.
* Promise: what a request was told at its admission, that it would be on time or that it would be
  late (`on_time` of the forecast in the stream's first event). It is scored against what came of
  the request, by Attainment's own words: whoever expired, failed, lost its place to others or was
  unfinished after "on time" had its promise broken, and relegation excuses nothing. Who was refused
  at once was told nothing, and is in none of these counts.
* Broken promises: of the requests that were told "on time", the share that were late.
* Precision: of the requests that were told "late" ("on time"), the share that were. That of "on
  time" is 1 minus the broken promises.
* Recall of lateness: of the requests that were told something and were late, the share that had
  been told so. Late requests that nobody foretold are the broken promises, counted from the other
  end.
* Cold start: whoever arrives before HISTORY outputs of its application (of its tier, where it names
  neither) have ended in this run comes without history: the server guesses how long its output will
  be from what others do. A server that has run before may know better.
* Fairness: Jain's index (sum x)^2 / (n * sum x^2) over the tenants' attainments: 1 when all are
  equal, 1/n when one has everything. It says nothing of whose load made them late: fairness.py
  tells what each tenant got of what is its own.
* Backlog: prompt and output tokens of the requests that have arrived and not ended. Its growth is
  the mean over the last quarter of the measured part minus the mean over the second quarter, as a
  share of the tokens that arrived between the middles of those quarters: the part of the load that
  is not being served. A deadline of minutes hides an overload of minutes; this does not.
* Percentile p: the smallest value with at least p % of all values at or below it (nearest rank).
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from loadgen.targets.record import Outcome, Record
from niyama.client.values import Targets

ALL = "all"  # the group of all requests, whatever their tier
HISTORY = 5  # outputs, from which the scheduler guesses the next (`engine.deciding.history`)


class Percentiles(NamedTuple):
    """Three percentiles of a latency in seconds; None where there are no values."""

    p50: float | None
    p90: float | None
    p99: float | None


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Returns the value of the nearest rank among ascending values; None where there are none."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def percentiles(values: Iterable[float]) -> Percentiles:
    """Returns the 50th, 90th and 99th percentile of values in any order."""
    ordered = sorted(values)
    return Percentiles(*(percentile(ordered, percent) for percent in (50, 90, 99)))


def token_due_s(targets: Targets, n: int) -> float:
    """Returns the seconds from the scheduled instant within which token n (1 is the first) must
    come; inf where the targets set none.
    """
    if targets.ttft is not None and targets.tbt is not None:
        return targets.ttft + (n - 1) * targets.tbt
    return math.inf


def is_on_time(record: Record) -> bool:
    """Says whether every token that was due came by its deadline (the envelope defined above)."""
    if record.outcome not in (Outcome.FINISHED, Outcome.CANCELLED):
        return False
    request = record.request
    if record.outcome is Outcome.CANCELLED and request.leaves_s is not None:
        due_s = request.targets.ttlt or token_due_s(request.targets, len(record.token_at) + 1)
        if request.leaves_s > due_s:  # it left since it had waited too long
            return False
    if request.targets.ttlt is not None:
        ended_at = math.inf if record.ended_at is None else record.ended_at
        end = record.token_at[-1] if record.token_at else ended_at
        return end - request.at <= request.targets.ttlt
    ttft, tbt, arrived = request.targets.ttft, request.targets.tbt, request.at
    if ttft is None or tbt is None:
        return True
    return all(at - arrived <= ttft + n * tbt for n, at in enumerate(record.token_at))


def is_on_pace(record: Record) -> bool:
    """Says whether a request was on time and had no gap between tokens longer than its TBT
    target.
    """
    tbt = record.request.targets.tbt
    return is_on_time(record) and (tbt is None or max(record.gaps_s, default=0.0) <= tbt)


class Judgement(NamedTuple):
    """A record and what the definitions say of it, so that they are asked once."""

    record: Record
    on_time: bool
    on_pace: bool
    gaps_s: list[float]  # in ascending order: lists that are sorted already are quickly merged
    num_gaps_within: int | None  # gaps not longer than the TBT target; None without one


def judge(record: Record) -> Judgement:
    """Applies every definition to one record."""
    gaps, tbt = sorted(record.gaps_s), record.request.targets.tbt
    within = None if tbt is None else bisect_right(gaps, tbt)
    on_time = is_on_time(record)
    return Judgement(record, on_time, on_time and within in (None, len(gaps)), gaps, within)


class Promises(NamedTuple):
    """How many requests were told which of two things at their admission, and which of the two came
    true: the confusion matrix of the forecast.
    """

    kept: int  # told "on time", and on time
    broken: int  # told "on time", and late
    needless: int  # told "late", and on time
    foretold: int  # told "late", and late

    @property
    def num_told_on_time(self) -> int:
        """Counts the requests that were told that they would be on time."""
        return self.kept + self.broken

    @property
    def num_told_late(self) -> int:
        """Counts the requests that were told that they would be late."""
        return self.needless + self.foretold

    @property
    def broken_share(self) -> float | None:
        """Returns the share of broken promises."""
        return _share(self.broken, self.num_told_on_time)

    @property
    def precision_on_time(self) -> float | None:
        """Returns the share of those told "on time" that were."""
        return _share(self.kept, self.num_told_on_time)

    @property
    def precision_late(self) -> float | None:
        """Returns the share of those told "late" that were."""
        return _share(self.foretold, self.num_told_late)

    @property
    def recall_late(self) -> float | None:
        """Returns the share of the late ones that were told so."""
        return _share(self.foretold, self.foretold + self.broken)


def promises(judgements: Iterable[Judgement]) -> Promises:
    """Counts what was promised against what came of it."""
    counts = Counter((each.record.promised, each.on_time) for each in judgements)
    told = ((True, True), (True, False), (False, True), (False, False))
    return Promises(*(counts[each] for each in told))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True, slots=True)
class Score:
    """The figures of one group of requests. Counts are of requests; shares are None for an empty
    group.
    """

    group: str
    num_sent: int
    num_finished: int
    num_cancelled: int  # by their own clients, as planned
    num_rejected: int
    num_failed: int  # failed or timed out
    num_unfinished: int
    num_relegated: int
    num_on_time: int
    num_on_pace: int
    promises: Promises
    ttft: Percentiles
    tbt: Percentiles
    ttlt: Percentiles
    worst_gap_s: float | None
    gaps_within_tbt: float | None  # share of all gaps not longer than their TBT target
    output_tokens: int  # received
    goodput_rps: float
    goodput_tokens_per_s: float  # output tokens of the requests that were on time

    @property
    def num_incomplete(self) -> int:
        """Counts the requests that the server owed an answer and that did not get all of it
        (rejected, failed, timed out or unfinished); reports call them failed.
        """
        return self.num_rejected + self.num_failed + self.num_unfinished

    @property
    def attainment(self) -> float | None:
        """Returns the share of the requests that were on time."""
        return _share(self.num_on_time, self.num_sent)

    @property
    def pace_attainment(self) -> float | None:
        """Returns the share of the requests that were on pace."""
        return _share(self.num_on_pace, self.num_sent)


def score(group: str, judgements: Sequence[Judgement], measured_s: float) -> Score:
    """Folds the judgements on requests that all count (`counted`) into the figures of their group.
    They arrived within `measured_s` seconds.
    """
    records = [each.record for each in judgements]
    outcomes = [record.outcome for record in records]
    on_time = [each.record for each in judgements if each.on_time]
    bound = [each for each in judgements if each.num_gaps_within is not None]
    num_bound = sum(len(each.gaps_s) for each in bound)
    gaps = sorted(chain.from_iterable(each.gaps_s for each in judgements))
    return Score(
        group=group,
        num_sent=len(records),
        num_finished=outcomes.count(Outcome.FINISHED),
        num_cancelled=outcomes.count(Outcome.CANCELLED),
        num_rejected=outcomes.count(Outcome.REJECTED),
        num_failed=outcomes.count(Outcome.FAILED) + outcomes.count(Outcome.TIMED_OUT),
        num_unfinished=outcomes.count(Outcome.UNFINISHED),
        num_relegated=sum(record.relegated for record in records),
        num_on_time=len(on_time),
        num_on_pace=sum(each.on_pace for each in judgements),
        promises=promises(judgements),
        ttft=percentiles(value for record in records if (value := record.ttft_s) is not None),
        tbt=percentiles(gaps),
        ttlt=percentiles(value for record in records if (value := record.ttlt_s) is not None),
        worst_gap_s=gaps[-1] if gaps else None,
        gaps_within_tbt=(
            sum(each.num_gaps_within or 0 for each in bound) / num_bound if num_bound else None
        ),
        output_tokens=sum(len(record.token_at) for record in records),
        goodput_rps=len(on_time) / measured_s,
        goodput_tokens_per_s=sum(len(record.token_at) for record in on_time) / measured_s,
    )


def counted(records: Iterable[Record], start_s: float, end_s: float) -> list[Record]:
    """Returns the records that a score is over: scheduled in [start_s, end_s), not abandoned."""
    return [
        record
        for record in records
        if start_s <= record.request.at < end_s and record.outcome is not Outcome.ABANDONED
    ]


def grouped(
    judgements: Iterable[Judgement], key: Callable[[Record], str]
) -> dict[str, list[Judgement]]:
    """Splits judgements by a property of their records, in order of its first appearance."""
    groups: dict[str, list[Judgement]] = {}
    for each in judgements:
        groups.setdefault(key(each.record), []).append(each)
    return groups


def without_history(records: Iterable[Record]) -> Callable[[Record], bool]:
    """Makes a function that says whether one of the records comes without history."""
    ends: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record.outcome is Outcome.FINISHED and record.ended_at is not None:
            ends.setdefault(_application(record), []).append(record.ended_at)
    known_from = {
        application: heapq.nsmallest(HISTORY, ended)[-1]
        for application, ended in ends.items()
        if len(ended) >= HISTORY
    }
    return lambda record: record.request.at < known_from.get(_application(record), math.inf)


def _application(record: Record) -> tuple[str, str]:
    """Names those whose outputs tell how long this one will be."""
    request = record.request
    return request.tenant, request.application or ("" if request.explicit else request.tier)


def backlog_noise(records: Sequence[Record], start_s: float, end_s: float) -> float:
    """Returns the growth that chance alone brings to a sustained load (one standard deviation): how
    far the tokens of half the measured part stray from their mean, for Poisson arrivals.
    """
    sizes = [_tokens(record) for record in records if start_s <= record.request.at < end_s]
    if not sizes:
        return 0.0
    return math.sqrt(sum(size * size for size in sizes) * 2) / sum(sizes)


def backlog_growth(records: Sequence[Record], start_s: float, end_s: float) -> float:
    """Returns the share of the arriving tokens that are left behind in [start_s, end_s), as defined
    above; at most 0 where the load is sustained.
    """
    quarter = (end_s - start_s) / 4
    early = _mean_backlog(records, start_s + quarter, start_s + 2 * quarter)
    late = _mean_backlog(records, start_s + 3 * quarter, end_s)
    arrived = sum(
        _tokens(record)
        for record in records
        if start_s + 1.5 * quarter <= record.request.at < start_s + 3.5 * quarter
    )
    return (late - early) / arrived if arrived else 0.0


def _mean_backlog(records: Sequence[Record], start_s: float, end_s: float) -> float:
    """Returns the mean over [start_s, end_s) of the tokens of the requests in the system."""
    total = 0.0
    for record in records:
        ended_at = math.inf if record.ended_at is None else record.ended_at
        present = min(ended_at, end_s) - max(record.request.at, start_s)
        total += _tokens(record) * max(0.0, present)
    return total / (end_s - start_s)


def _tokens(record: Record) -> int:
    return record.request.prompt_len + record.request.output_len


def jain_index(values: Sequence[float]) -> float | None:
    """Returns the fairness of values, as defined above. It is None without values, and 1 where all
    are 0, since nobody has more than another.
    """
    if not values:
        return None
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
