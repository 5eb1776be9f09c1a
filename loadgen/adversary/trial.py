"""One contender serves one condition with one seed, and what came of it in a few figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from loadgen.adversary.condition import Condition
from loadgen.arguments import parse, to_spec
from loadgen.opening import Opener
from loadgen.scoring.score import is_on_time, percentile
from loadgen.targets.record import Outcome, Record
from loadgen.targets.simulated import uncollected
from loadgen.workload.plan import plan
from loadgen.workload.spec import build
from niyama.client.values import Importance


class Figures(NamedTuple):
    """What is compared. A tail is the 99th percentile in multiples of the target, 1 at least, and
    infinite where more than 1 % never got that far. Waits of best effort are in seconds.
    """

    late: float  # share of the requests
    late_important: float  # of those of the highest importance that was sent
    ttft_tail: float  # of the requests with a TTFT
    ttlt_tail: float  # of those with a TTLT
    best_effort_s: float  # p99 of TTLT of those with neither
    tokens_per_s: float  # until all is done; 0 where little waited at the last arrival
    gaps: float = 0.0  # share of the requests on time, but with a gap that `--max-gap` rules out


class Trial(NamedTuple):
    """A contender, as `--compare` names it, and what it has to serve."""

    condition: Condition
    contender: str
    seed: int

    @property
    def command(self) -> list[str]:
        """Returns the arguments of `python -m loadgen` that repeat it."""
        flags = self.condition.flags()
        return [*flags, "--seed", str(self.seed), "--compare", self.contender]


def run(trial: Trial) -> Figures:
    """Simulates a trial, as the command line does."""
    arguments = parse(trial.command)
    spec = to_spec(arguments)
    with Opener(arguments, spec).opened(trial.contender) as target, uncollected():
        requests = list(plan(build(spec, target.info())))
        done = target.run(requests, lambda progress: None)
    return figures(done.records, trial.condition.max_gap)


def figures(records: Sequence[Record], max_gap: float = math.inf) -> Figures:
    """Folds the records of a run, at least one, into the figures; `max_gap`, in TBTs, is the
    longest gap between two tokens that was allowed.
    """
    late = [not is_on_time(record) for record in records]
    ranks = [_RANK[record.request.importance or Importance.NORMAL] for record in records]
    important = [is_late for is_late, rank in zip(late, ranks, strict=True) if rank == max(ranks)]
    ttft, ttlt, waits = [], [], []
    for record in records:
        targets, cancelled = record.request.targets, record.outcome is Outcome.CANCELLED
        if targets.ttft is not None and not (cancelled and record.ttft_s is None):
            ttft.append(_or_never(record.ttft_s) / targets.ttft)
        elif targets.ttlt is not None and not cancelled:
            ttlt.append(_or_never(record.ttlt_s) / targets.ttlt)
        elif targets.ttft is None and not cancelled:
            waits.append(_or_never(record.ttlt_s))
    return Figures(
        sum(late) / len(late),
        sum(important) / len(important),
        max(1.0, _p99(ttft)),
        max(1.0, _p99(ttlt)),
        _p99(waits),
        _throughput(records),
        sum(_has_gap(record, max_gap) for record in records) / len(records),
    )


_RANK = {
    each: rank for rank, each in enumerate((Importance.LOW, Importance.NORMAL, Importance.HIGH))
}
_JUST_LONGER = 1.05  # times what is allowed: no fault of anybody
_WAITED = 1.25  # times the instant of the last arrival: when what is left then takes long to do


def _or_never(value: float | None) -> float:
    return math.inf if value is None else value


def _has_gap(record: Record, max_gap: float) -> bool:
    tbt = record.request.targets.tbt
    if tbt is None or max_gap == math.inf or not is_on_time(record):
        return False
    return max(record.gaps_s, default=0.0) > _JUST_LONGER * max_gap * tbt


def _p99(values: Iterable[float]) -> float:
    return percentile(sorted(values), 99) or 0.0


def _throughput(records: Sequence[Record]) -> float:
    last_at = max(record.request.at for record in records)
    end = max(record.ended_at or 0.0 for record in records)
    if end < _WAITED * last_at or any(r.outcome is Outcome.REJECTED for r in records):
        return 0.0
    return sum(r.request.prompt_len + len(r.token_at) for r in records) / end
