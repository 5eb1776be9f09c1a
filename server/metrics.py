"""What a front end counts itself, in Prometheus form, in a registry of the server's own.

Several front ends count in files of a folder (prometheus_client's multiprocess mode), and the
supervisor adds them up for one scrape. What the engine counts stands in engine_metrics.py.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from engine.deciding.plan import Finished
from engine.deciding.request import Share
from server.admission.places import Entry
from server.errors import Refusal
from server.promises import Result

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_GAP_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)


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
        for histogram, seconds in (
            (self.ttft, timings.ttft_s),
            (self.worst_tbt, timings.worst_tbt_s),
            (self.ttlt, timings.ttlt_s),
        ):
            if seconds is not None:
                histogram.labels(tier).observe(seconds)
