"""What a front end counts itself, in Prometheus form, in a registry of the server's own.

Several front ends count in files of a folder (prometheus_client's multiprocess mode), and the
supervisor adds them up for one scrape. What the engine counts stands in engine_metrics.py.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from engine.deciding.outcome import Fate
from engine.deciding.plan import Timings
from engine.deciding.request import Importance, Share
from engine.tiers import EXPLICIT, OTHER_TENANTS, UNREAD, Tiers
from server.errors import Refusal
from server.fate import Progress

# Upper bounds of the histograms' buckets: whole hours and days too, as a target may be that long.
_TTFT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_GAP_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 15, 60)
_TTLT_SECONDS = (
    *(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 10_800, 43_200),
    86_400,
)


class Metrics:
    """The metrics that a front end counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = self._counter(
            "requests",
            "Calls that generate and have arrived, by what became of them",
            *("tier", "importance", "tenant", "result"),
        )
        self.refused = self._counter(
            "refused",
            "Calls of whatever kind that found no place or gave theirs away, by the reason",
            *("tier", "importance", "reason", "tenant"),
        )
        self.forecasts = self._counter(
            "forecasts",
            "Calls that were admitted and have ended, by what they were promised at admission and "
            "by what became of them",
            *("tier", "promised", "result"),
        )
        self.inferences = self._counter(
            "inferences",
            "Calls that state no targets, by the tier that was inferred for them",
            *("inferred", "used"),
        )
        self.rpcs = self._counter(
            "rpcs", "Calls of whatever kind ended, by RPC and outcome", "rpc", "outcome"
        )
        self.unread = self._counter("unread_calls", "Calls ended since their client read nothing")
        self.output_tokens = self._counter("output_tokens", "Tokens handed to clients")
        self.gateway_ignored = self._counter(
            "gateway_metadata_ignored",
            "Metadata of gateways that counted for nothing, by key and reason",
            *("key", "reason"),
        )
        self.in_flight = Gauge(
            "niyama_calls_in_flight",
            "Generate calls being served",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._latencies = {
            "ttft": self._histogram("ttft", "Arrival to first token", _TTFT_SECONDS),
            "worst_tbt": self._histogram(
                "worst_tbt", "Longest time between two tokens of a completion", _GAP_SECONDS
            ),
            "ttlt": self._histogram("ttlt", "Arrival to last token", _TTLT_SECONDS),
        }
        self.lower_bounds = self._counter(
            "latency_lower_bounds",
            "Latencies in the histograms of which no more is known than that they were longer",
            *("tier", "latency"),
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"niyama_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"niyama_{name}_seconds",
            f"{text} of completions; those that were cut short when overdue count with their time",
            ["tier"],
            buckets=buckets,
            registry=self.registry,
        )

    def expect(self, tiers: Tiers) -> None:
        """Has the counts of these tiers begin at 0: Prometheus sees no rise in a count that it sees
        for the first time.
        """
        for tier in tiers.tiers.values():
            for result in Fate:
                importance = tier.importance.name.lower()
                self.requests.labels(tier.name, importance, OTHER_TENANTS, result.value)

    def count(
        self, tier: str | None, importance: Importance | None, share: Share, result: Fate
    ) -> None:
        """Counts a call that is over; tier and importance are None where it was never read. Only
        tenants that the operator has named are told apart: there is no end of others.
        """
        labels = (tier_name(tier), importance_name(importance), tenant_name(share))
        self.requests.labels(*labels, result.value).inc()

    def count_inference(self, tier: str | None, is_used: bool) -> None:
        """Counts a call that states no targets; `tier` was inferred for it, None where too little
        is known.
        """
        self.inferences.labels(tier_name(tier), "yes" if is_used else "no").inc()

    def count_refused(
        self, tier: str | None, importance: Importance | None, share: Share, reason: Refusal
    ) -> None:
        """Counts a call that found no place; the arguments are as for `count`."""
        labels = (tier_name(tier), importance_name(importance), reason.value)
        self.refused.labels(*labels, tenant_name(share)).inc()

    def count_promise(self, tier: str | None, is_on_time: bool, result: Fate) -> None:
        """Counts a call that is over against what it was promised at its admission: to be on time,
        or late.
        """
        promised = "on_time" if is_on_time else "late"
        self.forecasts.labels(tier_name(tier), promised, result.value).inc()

    def observe(self, tier: str, timings: Timings) -> None:
        """Counts the latencies of a completion that ended by itself."""
        self._observe(tier_name(tier), "ttft", timings.ttft_s)
        self._observe(tier_name(tier), "worst_tbt", timings.worst_tbt_s)
        self._observe(tier_name(tier), "ttlt", timings.ttlt_s)

    def observe_cut(self, tier: str | None, progress: Progress, lived_s: float) -> None:
        """Counts the latencies of a completion that was cut short after so many seconds, when it
        was overdue: what it had still to wait for took longer. `tier` is None where nobody knows.
        """
        name, has_begun = tier_name(tier), progress.num_tokens > 0
        self._observe(name, "ttft", min(progress.first_s, lived_s), is_bound=not has_begun)
        if has_begun:
            worst_s = max(progress.worst_gap_s, lived_s - progress.last_s)
            self._observe(name, "worst_tbt", worst_s, is_bound=True)
        self._observe(name, "ttlt", lived_s, is_bound=True)

    def _observe(
        self, tier: str, latency: str, seconds: float | None, is_bound: bool = False
    ) -> None:
        if seconds is not None:
            self._latencies[latency].labels(tier).observe(seconds)
            if is_bound:
                self.lower_bounds.labels(tier, latency).inc()


def tier_name(tier: str | None) -> str:
    """Returns a tier's name as metrics have it: "" is that of targets that a request states, and
    None of what nobody has read.
    """
    return UNREAD if tier is None else tier or EXPLICIT


def importance_name(importance: Importance | None) -> str:
    """Returns an importance as metrics have it; None is that of what nobody has read."""
    return UNREAD if importance is None else importance.name.lower()


def tenant_name(share: Share) -> str:
    """Returns the name of a tenant that the operator has named; of all others, one for them."""
    return share.name or OTHER_TENANTS
