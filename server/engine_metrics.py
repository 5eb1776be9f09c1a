"""What the metrics say of the engine, of the queue before it, and of how both are set up.

The engine answers once a second (server/engine.py); the newest answer is what a scrape gets, and
without an engine there is none but `niyama_engine_up`. Durations are in seconds.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from engine.deciding.policy import Cause
from engine.deciding.request import Importance
from engine.deciding.stats import Counts, EngineStats, Saturation, SchedulerStats, Totals
from engine.messages import EngineInfo
from engine.processes.standard_streams import DROPPED
from engine.tiers import OTHER_TENANTS, Least, Tiers
from server.admission.admission import Admission
from server.config import ServerConfig
from server.metrics import tier_name
from server.process_metrics import ProcessMetrics

# When a series began is known to Prometheus by other means, and those would be as many again.
disable_created_metrics()

# Why somebody is relegated: such series begin at 0, so that also the first is seen to come.
REASONS = tuple(cause.value for cause in Cause if cause is not Cause.OTHER)
_COUNTERS: tuple[tuple[str, str, Callable[[Totals], float]], ...] = (
    (
        "iteration_predicted_seconds",
        "Time that iterations were predicted to take",
        lambda t: t.predicted_s,
    ),
    ("sequences_submitted", "Sequences that the engine took in", lambda t: t.num_submitted),
    ("sequences_finished", "Sequences ended, for whatever reason", lambda t: t.num_finished),
    (
        "sequences_failed",
        "Sequences ended because the model's logits were not finite",
        lambda t: t.num_failed,
    ),
    ("preemptions", "Times that a sequence's pages were taken", lambda t: t.num_preemptions),
    ("holds", "Iterations that a decoding sequence sat out", lambda t: t.num_holds),
    ("chunks", "Prefill chunks computed", lambda t: t.num_chunks),
    ("prefill_tokens", "Tokens prefilled", lambda t: t.prefill_tokens),
    ("decode_tokens", "Tokens decoded", lambda t: t.decode_tokens),
    (
        "lost_tokens",
        "Tokens that were computed and are to be computed again",
        lambda t: t.lost_tokens,
    ),
    ("prompt_tokens", "Prompt tokens that the engine took in", lambda t: t.prompt_tokens),
    (
        "prefix_hit_tokens",
        "Prompt tokens found in the prefix cache",
        lambda t: t.cached_tokens,
    ),
)


class ReportedMetrics(Collector):
    """Exposes what the engine last reported of itself (`stats`, None: it does not answer), while it
    serves, as `serves()` says; and `info`, which it, or else the last, said when it was ready.
    """

    def __init__(self, serves: Callable[[], bool]) -> None:
        self._serves = serves
        self.stats: EngineStats | None = None
        self.info: EngineInfo | None = None

    def collect(self) -> Iterator[Metric]:
        """Yields what is asked for at a scrape."""
        serves, stats, info = self._serves(), self.stats, self.info
        yield _gauge("engine_up", "Whether an engine serves", serves)
        if info is not None:
            yield from _engine_limits(info)
        if stats is None or not serves:
            return
        yield _counter(
            "engine_compilations",
            "Times that torch.compile ran while serving: none is expected",
            stats.num_compilations,
        )
        yield _counter(
            "engine_busy_seconds",
            "Wall time for which the engine has had work: its rate is the utilisation",
            stats.busy_s,
        )
        yield from _scheduler(stats.scheduler, {tier for tier, _ in stats.saturation.amounts})
        if info is not None and info.calibration is not None and stats.scheduler.speed is not None:
            yield _gauge(
                "speed_ratio",
                "Speed of recent iterations against calibration: 0.5 is half as fast",
                stats.scheduler.speed,
            )
        yield from _saturation(stats.saturation)


def _engine_limits(info: EngineInfo) -> Iterator[Metric]:
    for name, text, limit in (
        ("batch_sequences", "Most sequences in one iteration", info.max_batch_size),
        ("context_tokens", "Most tokens of prompt and output together", info.context_len),
        ("kv_tokens", "Tokens whose keys and values the memory holds", info.kv_len),
    ):
        yield _gauge(f"limit_{name}", text, limit)


def _scheduler(stats: SchedulerStats, tiers: set[str]) -> Iterator[Metric]:
    for name, text, counter in _COUNTERS:
        yield _counter(name, text, counter(stats.totals))
    yield _histogram("iteration_seconds", "Duration of iterations", stats.iterations)
    yield _histogram(
        "iteration_error_ratio", "Actual over predicted duration of iterations", stats.errors
    )
    relegations = CounterMetricFamily(
        "niyama_relegations",
        "Times that a sequence was moved behind those that can be on time",
        labels=["tier", "reason"],
    )
    for tier, reason in sorted({*stats.relegations, *itertools.product(tiers, REASONS)}):
        number = stats.relegations.get((tier, reason), 0)
        relegations.add_metric([tier_name(tier), reason], number)
    yield relegations
    work = CounterMetricFamily(
        "niyama_work_seconds",
        "Engine time that the requests which the engine took in need, as predicted, by tenant and"
        " tier",
        labels=["tenant", "tier"],
    )
    for (share, tier), seconds in sorted(stats.asked_s.items()):
        work.add_metric([share or OTHER_TENANTS, tier_name(tier)], seconds)
    yield work
    yield _gauge("held_sequences", "Decoding sequences that sat an iteration out", stats.num_held)
    yield _gauge(
        "scheduling_alpha",
        "Weight of work against deadline in the order of prefills",
        stats.alpha,
    )
    used = stats.pages_total - stats.pages_free
    pages = GaugeMetricFamily("niyama_kv_pages", "Pages of KV memory by state", labels=["state"])
    pages.add_metric(["used"], used)
    pages.add_metric(["cached"], stats.pages_idle)
    pages.add_metric(["free"], stats.pages_free - stats.pages_idle)
    yield pages
    yield _gauge("kv_usage_ratio", "Share of the KV memory in use", used / stats.pages_total)


def _saturation(saturation: Saturation) -> Iterator[Metric]:
    labels = ["tier", "state"]
    sequences = GaugeMetricFamily(
        "niyama_sequences", "Sequences in the engine, by what they do", labels=labels
    )
    work = GaugeMetricFamily(
        "niyama_queued_work_seconds", "Engine time that these need yet, as predicted", labels=labels
    )
    tokens = GaugeMetricFamily(
        "niyama_queued_tokens",
        "Tokens that these need yet: to prefill, uncached, or of running ones to decode",
        labels=labels,
    )
    for (tier, state), amount in sorted(saturation.amounts.items()):
        sequences.add_metric([tier_name(tier), state], amount.num)
        work.add_metric([tier_name(tier), state], amount.seconds)
        tokens.add_metric([tier_name(tier), state], amount.tokens)
    yield sequences
    yield work
    yield tokens
    yield _gauge(
        "kv_stream_usage_ratio",
        "Share of the KV memory that streams hold: requests with a TBT, not relegated",
        saturation.memory.usage,
    )
    yield _gauge(
        "demand_ratio",
        "Engine time that is asked for per second, over the last minute: above 1 is overload",
        saturation.demand,
    )
    headroom = GaugeMetricFamily(
        "niyama_headroom_seconds",
        "Engine time of work that could come before a typical request of the tier, which would"
        " still be called on time",
        labels=["tier"],
    )
    chance = GaugeMetricFamily(
        "niyama_forecast_late_chance",
        "Chance that a typical request of the tier would be late if it came now",
        labels=["tier"],
    )
    ahead = GaugeMetricFamily(
        "niyama_ahead_seconds",
        "Engine time of what waits and would be served before a typical request of the tier",
        labels=["tier"],
    )
    for tier, outlook in saturation.outlooks.items():
        ahead.add_metric([tier], outlook.ahead.seconds)
        headroom.add_metric([tier], outlook.headroom_s)
        chance.add_metric([tier], outlook.late_chance)
    yield headroom
    yield chance
    yield ahead


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"niyama_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"niyama_{name}", text, value)


def _histogram(name: str, text: str, counts: Counts) -> Metric:
    ends = [*map(str, counts.bounds), "+Inf"]
    buckets = list(zip(ends, itertools.accumulate(counts.numbers), strict=True))
    return HistogramMetricFamily(f"niyama_{name}", text, buckets, counts.total)


class SetupMetrics(Collector):
    """Exposes how the service is built and configured, and the targets of its tiers."""

    def __init__(
        self, config: ServerConfig, reported: ReportedMetrics, tiers: Callable[[], Tiers]
    ) -> None:
        self._config = config
        self._reported = reported
        self._tiers = tiers
        self._build = {
            "version": _version("niyama"),
            "python": platform.python_version(),
            "torch": _version("torch"),
            "grpc": _version("grpcio"),
        }

    def collect(self) -> Iterator[Metric]:
        """Yields what is asked for at a scrape."""
        yield _info("build", "What the service is built of", self._build)
        info, engine = self._reported.info, self._config.engine
        if info is not None:
            of_config = {
                "model": info.model_name,
                "policy": info.policy,
                "device": info.device,
                "dtype": info.dtype,
                "quantize": engine.quantize,
                "compile": engine.compile,
                "calibrated": str(info.calibration is not None).lower(),
                "frontends": str(self._config.frontends),
            }
            yield _info("config", "How the service is set up", of_config)
        family = GaugeMetricFamily(
            "niyama_tier_target_seconds", "Latency targets of the tiers", labels=["tier", "target"]
        )
        for name, tier in self._tiers().tiers.items():
            targets = tier.targets
            for target in ("ttft", "tbt", "ttlt"):
                if (seconds := getattr(targets, f"{target}_s")) is not None:
                    family.add_metric([name, target], seconds)
        yield family
        if info is not None and info.least is not None:
            yield _least(info.least)


def _least(least: Least) -> Metric:
    family = GaugeMetricFamily(
        "niyama_target_least_seconds",
        "What the calibrated machine takes at least, alone or under moderate load",
        labels=["target", "load"],
    )
    for load, ttft_s, tbt_s in (
        ("alone", least.alone_ttft_s, least.alone_tbt_s),
        ("moderate", least.loaded_ttft_s, least.loaded_tbt_s),
    ):
        for target, seconds in (("ttft", ttft_s), ("tbt", tbt_s), ("ttlt", ttft_s)):
            family.add_metric([target, load], seconds)
    return family


def _info(name: str, text: str, values: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(f"niyama_{name}_info", text, labels=list(values))
    family.add_metric(list(values.values()), 1)
    return family


def _version(package: str) -> str:
    """Returns its version; "" for one that is not installed, such as ours in its own folder."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


class DroppedLines(Collector):
    """Exposes how many lines the logs of all processes of the service have lost."""

    def collect(self) -> Iterator[Metric]:
        """Yields what is asked for at a scrape."""
        text = "Lines of the log that could not be written: nobody reads it, or the disk is full"
        yield _counter("log_lines_dropped", text, DROPPED.total)


class ReloadMetrics:
    """Exposes whether the operator's files were good when they were last read, and when they last
    were. It is for the process that reads them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._successful = Gauge(
            "niyama_config_last_reload_successful",
            "Whether the configuration was good when it was last read",
            registry=registry,
        )
        self._succeeded_at = Gauge(
            "niyama_config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read, in Unix time",
            registry=registry,
        )

    def told(self, is_good: bool, unix_s: float) -> None:
        """Notes what came of reading it."""
        self._successful.set(is_good)
        if is_good:
            self._succeeded_at.set(unix_s)


class EngineMetrics:
    """The metrics of the process that owns the engine. `tiers()` are those in force, and `serves()`
    says whether the engine does.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        config: ServerConfig,
        tiers: Callable[[], Tiers],
        serves: Callable[[], bool],
    ) -> None:
        self.reported = ReportedMetrics(serves)
        registry.register(self.reported)
        registry.register(SetupMetrics(config, self.reported, tiers))
        registry.register(ProcessMetrics())
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
        requests, tokens = self._admission.requests, self._admission.tokens
        for name, limit, text, pool in (
            ("requests", "requests", "Requests that wait or run, by importance", requests),
            ("tokens", "queued_tokens", "Tokens of work that waits, by importance", tokens),
        ):
            family = GaugeMetricFamily(f"niyama_queue_{name}", text, labels=["importance"])
            for importance in Importance:
                family.add_metric([importance.name.lower()], pool.by_importance[importance])
            yield family
            yield _gauge(f"limit_{limit}", f"Most {name} in niyama_queue_{name}", pool.limit)
