"""Metrics in Prometheus form, in a registry of the server's own.

A front end counts what it sees itself; what the engine counts comes as `EngineStats`. Several front
ends count in files of a folder (prometheus_client's multiprocess mode), and the supervisor adds
them up for one scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.deciding.plan import Finished
from engine.deciding.request import Importance, Share
from engine.deciding.stats import EngineStats, SchedulerStats, Totals
from engine.processes.standard_streams import DROPPED
from server.admission.admission import Admission
from server.admission.places import Entry
from server.errors import Refusal
from server.promises import Result

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_GAP_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)

_GAUGES: tuple[tuple[str, str, Callable[[SchedulerStats], float]], ...] = (
    ("waiting", "Sequences whose prefill is not complete", lambda s: s.num_waiting),
    ("running", "Sequences that decode", lambda s: s.num_running),
    ("relegated", "Waiting sequences that were relegated", lambda s: s.num_relegated),
    ("held", "Decoding sequences that sat the last iteration out", lambda s: s.num_held),
    ("pages", "Pages of KV memory", lambda s: s.pages_total),
    ("pages_free", "Pages that are free or can be reclaimed", lambda s: s.pages_free),
    ("pages_cached", "Pages that hold prefixes for requests to come", lambda s: s.pages_cached),
    ("alpha", "Weight of work against deadline in the order of prefills", lambda s: s.alpha),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Totals], float]], ...] = (
    ("iterations", "Iterations computed", lambda s: s.num_iterations),
    ("submitted", "Sequences admitted", lambda s: s.num_submitted),
    ("finished", "Sequences ended, for whatever reason", lambda s: s.num_finished),
    (
        "failed",
        "Sequences ended because the model's logits were not finite",
        lambda s: s.num_failed,
    ),
    ("preemptions", "Times that a sequence's pages were taken", lambda s: s.num_preemptions),
    ("relegations", "Times that a sequence was relegated", lambda s: s.num_relegations),
    ("holds", "Iterations that a decoding sequence sat out", lambda s: s.num_holds),
    ("prefill_tokens", "Tokens prefilled", lambda s: s.prefill_tokens),
    ("decode_tokens", "Tokens decoded", lambda s: s.decode_tokens),
    ("cached_tokens", "Prompt tokens found in the prefix cache", lambda s: s.cached_tokens),
)
_ERRORS = {
    "ratio_p50": ("ratio", "0.5"),
    "ratio_p95": ("ratio", "0.95"),
    "error_p50": ("error", "0.5"),
    "error_p95": ("error", "0.95"),
}


class ReportedMetrics(Collector):
    """Exposes what the engine last reported of itself, and nothing while there is no engine."""

    def __init__(self) -> None:
        self.stats: EngineStats | None = None

    def collect(self) -> Iterator[Metric]:
        """Yields what is asked for at a scrape."""
        stats = self.stats
        if stats is None:
            return
        scheduler = stats.scheduler
        for name, text, gauge in _GAUGES:
            yield GaugeMetricFamily(f"niyama_scheduler_{name}", text, gauge(scheduler))
        for name, text, counter in _COUNTERS:
            yield CounterMetricFamily(f"niyama_scheduler_{name}", text, counter(scheduler.totals))
        yield CounterMetricFamily(
            "niyama_engine_compilations",
            "Times that torch.compile ran while serving: none is expected",
            stats.num_compilations,
        )
        if scheduler.latency_errors is not None:
            yield from _latency(scheduler.latency_errors.to_dict())


def _latency(errors: dict[str, float]) -> Iterator[Metric]:
    texts = {
        "ratio": "Actual over predicted duration of recent iterations, by quantile",
        "error": "Distance of that ratio from 1, by quantile",
    }
    for kind, text in texts.items():
        family = GaugeMetricFamily(f"niyama_scheduler_latency_{kind}", text, labels=["quantile"])
        for field, (of_kind, quantile) in _ERRORS.items():
            if of_kind == kind:
                family.add_metric([quantile], errors[field])
        yield family


class DroppedLines(Collector):
    """Exposes how many lines the logs of all processes of the service have lost."""

    def collect(self) -> Iterator[Metric]:
        """Yields what is asked for at a scrape."""
        text = "Lines of the log that could not be written: nobody reads it, or the disk is full"
        yield CounterMetricFamily("niyama_log_lines_dropped", text, DROPPED.total)


class EngineMetrics:
    """The metrics of the process that owns the engine."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reported = ReportedMetrics()
        registry.register(self.reported)
        registry.register(DroppedLines())
        self.losses = Counter(
            "niyama_engine_losses", "Times the engine was lost", registry=registry
        )


class QueueMetrics(Collector):
    """Exposes how full the queue is, as admission counts it. It is for the process that keeps the
    ledger.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """Yields what is asked for at a scrape."""
        for name, text, pool in (
            ("requests", "Requests that wait or run, by importance", self._admission.requests),
            ("tokens", "Tokens of work that waits, by importance", self._admission.tokens),
        ):
            family = GaugeMetricFamily(f"niyama_queue_{name}", text, labels=["importance"])
            for importance in Importance:
                family.add_metric([importance.name.lower()], pool.by_importance[importance])
            yield family
            limit = f"Most {name} in niyama_queue_{name}"
            yield GaugeMetricFamily(f"niyama_queue_{name}_limit", limit, pool.limit)


class Metrics:
    """The metrics that a front end counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.calls = self._counter("calls", "Generate calls ended, by outcome", "outcome")
        self.rpcs = self._counter(
            "rpcs", "Calls of whatever kind ended, by RPC and outcome", "rpc", "outcome"
        )
        self.completions = self._counter(
            "completions",
            "Completions finished, by tier and whether every target was met",
            *("tier", "on_time"),
        )
        self.forecasts = self._counter(
            "forecasts",
            "Calls that were admitted and have ended, by tier, by what they were promised at "
            "admission and by whether every target was met",
            *("tier", "promised", "result"),
        )
        self.refused = self._counter(
            "refused",
            "Calls that found no place in the queue or gave theirs away",
            *("tier", "importance", "reason", "tenant"),
        )
        self.relegated = self._counter(
            "relegated_completions", "Completions that were relegated on the way", "tier"
        )
        self.unread = self._counter("unread_calls", "Calls ended since their client read nothing")
        self.output_tokens = self._counter("output_tokens", "Tokens handed to clients")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of completions")
        self.in_flight = Gauge(
            "niyama_calls_in_flight",
            "Generate calls being served",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.ttft = self._histogram("ttft", "Arrival to first token", _SECONDS)
        self.worst_tbt = self._histogram(
            "worst_tbt", "Longest time between two tokens of a completion", _GAP_SECONDS
        )
        self.ttlt = self._histogram("ttlt", "Arrival to last token", _SECONDS)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"niyama_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"niyama_{name}_seconds", text, ["tier"], buckets=buckets, registry=self.registry
        )

    def count_refused(self, entry: Entry | None, reason: Refusal, share: Share) -> None:
        """Counts a call that found no place. Only tenants that the operator has named are told
        apart: there is no end of others. A call without an entry was refused before anybody knew
        what it asks for.
        """
        tier, importance = "unknown", "unknown"
        if entry is not None:
            tier, importance = entry.tier or "explicit", entry.importance.name.lower()
        self.refused.labels(tier, importance, reason.value, share.name or "other").inc()

    def count_promise(self, tier: str, is_on_time: bool, result: Result) -> None:
        """Counts a call that is over against what it was promised at its admission: to be on time,
        or late.
        """
        self.forecasts.labels(tier, "on_time" if is_on_time else "late", result.value).inc()

    def count(self, finished: Finished, tier: str, on_time: bool) -> None:
        """Counts a completion that ended by itself, with its latencies."""
        timings = finished.timings
        self.completions.labels(tier, str(on_time).lower()).inc()
        self.relegated.labels(tier).inc(finished.relegated)
        self.prompt_tokens.inc(finished.prompt_tokens)
        for histogram, seconds in (
            (self.ttft, timings.ttft_s),
            (self.worst_tbt, timings.worst_tbt_s),
            (self.ttlt, timings.ttlt_s),
        ):
            if seconds is not None:
                histogram.labels(tier).observe(seconds)
