"""A run folded into its figures: what reports print and JSON holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loadgen.scoring.fairness import Portion, portions
from loadgen.scoring.score import (
    ALL,
    Score,
    backlog_growth,
    backlog_noise,
    counted,
    grouped,
    jain_index,
    judge,
    percentile,
    score,
    without_history,
)
from loadgen.targets.record import Outcome, Record
from loadgen.targets.target import End, Run
from loadgen.workload.served import TargetInfo

# How far the achieved sending rate may stay behind before a run says nothing about the server.
_LEAST_ACHIEVED = 0.95
_NOTHING_DUE = "no request was due in the measured part"


@dataclass(frozen=True, slots=True)
class Measuring:
    """Which part of a run is measured, and how late its requests may leave (p99 of the lag) before
    it says nothing of the server. Seconds.
    """

    warmup_s: float = 0.0  # left out at the start
    cooldown_s: float = 0.0  # left out at the end
    max_lag_s: float = 0.05


WHOLE = Measuring()


@dataclass(frozen=True, slots=True)
class Window:
    """The measured part of a run: requests scheduled in [start_s, end_s)."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Returns the seconds of the measured part."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Lag:
    """How late requests left, in seconds."""

    p50_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """All figures of one run. `invalid` says why it tells nothing of the server, or is ""."""

    target: TargetInfo
    window: Window
    requested_rps: float  # requests due in the window, per second
    achieved_rps: float  # the same requests, over the time that sending them took
    lag: Lag
    total: Score
    by_tier: tuple[Score, ...]
    by_importance: tuple[Score, ...]
    by_tenant: tuple[Score, ...]
    by_replica: tuple[Score, ...]  # of those to which any were sent, where there are several
    by_history: tuple[Score, ...]  # those of the cold start, and those that came later
    by_prompt: tuple[Score, ...]  # short and long: above the 90th percentile of prompt lengths
    long_prompt_tokens: int  # that percentile
    backlog_growth: float  # share of the arriving tokens that are left behind
    backlog_noise: float  # standard deviation of that by chance
    fairness: float | None  # Jain's index of the tenants' attainments
    portions: tuple[Portion, ...]  # of the tenants, where there are several
    num_abandoned: int
    end: End
    problem: str
    invalid: str
    errors: tuple[tuple[str, int], ...]  # most frequent first


def summarise(
    tiers: Sequence[str],
    duration_s: float,
    target: TargetInfo,
    run: Run,
    measuring: Measuring = WHOLE,
    alone: Mapping[str, float] | None = None,
) -> Summary:
    """Folds a run of a load of those tiers, planned to last `duration_s`, into its figures. Those
    of a run that ended early are over the part until then. `alone` has the attainment of tenants
    with their fair share alone, where that was measured.
    """
    window = _window(duration_s, run, measuring)
    judgements = [judge(r) for r in counted(run.records, window.start_s, window.end_s)]
    due = [r for r in run.records if window.start_s <= r.request.at < window.end_s]
    lag = _lag(due)
    requested = len(due) / window.length_s
    last_sent_at = max((r.sent_at for r in due), default=0.0)
    achieved = len(due) / max(window.length_s, last_sent_at - window.start_s)
    long_tokens = percentile(sorted(each.record.request.prompt_len for each in judgements), 90) or 0

    is_new = without_history(run.records)

    def split(key: Callable[[Record], str]) -> tuple[Score, ...]:
        groups = grouped(judgements, key)
        return tuple(score(name, groups[name], window.length_s) for name in sorted(groups))

    by_tenant = split(lambda r: r.request.tenant)
    tenants = grouped(judgements, lambda r: r.request.tenant)
    by_tier = grouped(judgements, lambda r: r.request.tier)
    return Summary(
        target=target,
        window=window,
        requested_rps=requested,
        achieved_rps=achieved,
        lag=lag,
        total=score(ALL, judgements, window.length_s),
        by_tier=tuple(score(tier, by_tier.get(tier, []), window.length_s) for tier in tiers),
        by_importance=split(lambda r: _importance(r, target)),
        by_tenant=by_tenant,
        by_replica=_by_replica(split(lambda r: r.replica)),
        by_history=split(lambda r: "without" if is_new(r) else "with"),
        by_prompt=split(lambda r: "long" if r.request.prompt_len > long_tokens else "short"),
        long_prompt_tokens=int(long_tokens),
        backlog_growth=backlog_growth(run.records, window.start_s, window.end_s),
        backlog_noise=backlog_noise(run.records, window.start_s, window.end_s),
        fairness=jain_index([each.attainment or 0.0 for each in by_tenant]),
        portions=(
            portions(tenants, target.weights, window.end_s, alone or {}) if len(tenants) > 1 else ()
        ),
        num_abandoned=sum(r.outcome is Outcome.ABANDONED for r in run.records),
        end=run.end,
        problem=run.problem,
        invalid=_invalid(lag, requested, achieved, measuring.max_lag_s) if due else _NOTHING_DUE,
        errors=_errors(run.records),
    )


def _by_replica(scores: Sequence[Score]) -> tuple[Score, ...]:
    """Returns the scores of replicas in their order; none where nothing is known of any."""
    named = [each for each in scores if each.group]
    return tuple(sorted(named, key=lambda each: (len(each.group), each.group)))


def _window(duration_s: float, run: Run, measuring: Measuring) -> Window:
    """Returns the measured part, which is never empty."""
    start_s, end_s = measuring.warmup_s, duration_s - measuring.cooldown_s
    if run.end is not End.COMPLETE:
        end_s = min(end_s, max((r.sent_at for r in run.records), default=0.0) + 1e-9)
    return Window(start_s, max(end_s, start_s + 1e-9))


def _importance(record: Record, target: TargetInfo) -> str:
    if record.request.importance is not None:
        return record.request.importance.value
    tier = next((tier for tier in target.tiers if tier.name == record.request.tier), None)
    return tier.importance.value if tier else "normal"


def _lag(records: Sequence[Record]) -> Lag:
    ordered = sorted(max(0.0, record.lag_s) for record in records) or [0.0]
    return Lag(percentile(ordered, 50) or 0.0, percentile(ordered, 99) or 0.0, ordered[-1])


def _invalid(lag: Lag, requested: float, achieved: float, max_lag_s: float) -> str:
    if lag.p99_s > max_lag_s:
        return (
            f"the generator could not keep up: schedule lag p99 {lag.p99_s * 1e3:.1f} ms, "
            f"allowed {max_lag_s * 1e3:.1f} ms"
        )
    if achieved < requested * _LEAST_ACHIEVED:
        return f"the generator could not keep up: sent {achieved:.2f} of {requested:.2f} requests/s"
    return ""


def _errors(records: Sequence[Record]) -> tuple[tuple[str, int], ...]:
    counts = Counter(record.error for record in records if record.error)
    return tuple(counts.most_common())
