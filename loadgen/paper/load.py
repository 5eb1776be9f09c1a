"""What the experiments send: request lengths, tiers and arrivals. Seconds, tokens, requests/s."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from engine.deciding.latency import LatencyModel, LatencyProfile, add_chunk
from engine.deciding.plan import Work
from loadgen.targets.profiles import PAPER_TIERS
from loadgen.workload import traces
from loadgen.workload.arrivals import Process, Rate, parse_rate
from loadgen.workload.lengths import Fixed, FromTrace, Independent, Lengths, Lognormal
from loadgen.workload.plan import Arrivals, TierLoad, Workload, plan
from niyama.client.values import Importance

# The Azure LLM inference traces of 2023, as the Azure Public Dataset publishes them.
TRACES = Path("../shared/traces")
TRACE_FILES = {"azure-code": "azure-2023-code.csv", "azure-conv": "azure-2023-conv.csv"}
# Quantiles that the papers publish (p50 and p90 of prompts and outputs), for where there is no
# trace; and long prompts with the outputs of ShareGPT.
PUBLISHED: dict[str, Lengths] = {
    "sharegpt": Independent(Lognormal(1730, 5696), Lognormal(415, 834)),
    "azure-conv": Independent(Lognormal(928, 3830), Lognormal(41, 342)),
    "azure-code": Independent(Lognormal(1930, 6251), Lognormal(8, 43)),
    "10k-prompts": Independent(Fixed(10_000), Lognormal(415, 834)),
}
# Longer than the model's 8,192, so that no row of a trace is cut.
CONTEXT_LEN = 16_384
_BOUND_REQUESTS = 15_000  # about as many are drawn for their mean work
THIRDS = (1 / 3, 1 / 3, 1 / 3)


@dataclass(frozen=True, slots=True)
class Load:
    """Everything about the requests of an experiment but, where it is searched, their rate."""

    lengths: str = "azure-code"
    hours: float = 1.0
    rate: str = ""  # as `--rps` takes it
    shares: tuple[float, float, float] = THIRDS  # of the tiers
    cv: float = 1.0  # coefficient of variation of the gaps; 1 is Poisson
    ttft_s: float = 6.0
    ttlt_s: tuple[float, float] = (600.0, 1800.0)  # of the two tiers that have one
    low: float = 0.0  # share of low importance
    seed: int = 0

    def workload(self, rate: float | None = None) -> Workload:
        """Returns the workload at the load's own rate, or at another constant one (requests/s)."""
        importance = {Importance.LOW: self.low, Importance.NORMAL: 1 - self.low}
        interactive, *others = (tier.targets for tier in PAPER_TIERS)
        targets = [replace(interactive, ttft=self.ttft_s)]
        targets += [replace(o, ttlt=s) for o, s in zip(others, self.ttlt_s, strict=True)]
        tiers = tuple(
            TierLoad(
                tier.name,
                share,
                each,
                lengths_of(self.lengths),
                importance=importance if self.low else {},
            )
            for tier, each, share in zip(PAPER_TIERS, targets, self.shares, strict=True)
            if share
        )
        process = Process.POISSON if self.cv == 1 else Process.GAMMA
        shape = parse_rate(self.rate) if rate is None else Rate(rate, rate)
        arrivals = Arrivals(shape, process, self.cv)
        return Workload(arrivals, tiers, self.hours * 3600, self.seed, context_length=CONTEXT_LEN)


@cache
def lengths_of(name: str) -> Lengths:
    """Returns the lengths of a named dataset: from its trace where that is present, else
    lognormal.
    """
    file = TRACES / TRACE_FILES.get(name, "")
    return FromTrace(traces.load(file)) if file.is_file() else PUBLISHED[name]


def source_of(name: str) -> str:
    """Says where the lengths of a dataset come from, in a word."""
    return "trace" if isinstance(lengths_of(name), FromTrace) else "lognormal"


def compute_bound(profile: LatencyProfile, load: Load) -> float:
    """Returns the requests/s that no policy can exceed: every prefill in chunks of the most
    efficient size, every decode beside one, and no iteration for a decode's sake.
    """
    requests = list(plan(replace(load, hours=1.0).workload(_BOUND_REQUESTS / 3600)))
    seconds = sum(pure_seconds(profile, r.prompt_len, r.output_len) for r in requests)
    return len(requests) / seconds


def pure_seconds(profile: LatencyProfile, prompt_len: int, output_len: int) -> float:
    """Returns the seconds that one request's work takes at least. Its first token comes with the
    prefill; the k-th further one reads prompt + k positions.
    """
    segment = profile.segments[-1]
    decodes = output_len - 1
    positions = decodes * prompt_len + decodes * (decodes + 1) // 2
    prefill_s = prompt_len * _least_token_s(profile)
    return prefill_s + decodes * segment.decode + positions * segment.decode_context


def _token_s(profile: LatencyProfile, chunk: int) -> float:
    return LatencyModel(profile).predict(add_chunk(Work(), 0, chunk)) / chunk


@cache
def most_efficient_chunk(profile: LatencyProfile) -> int:
    """Returns the chunk size with which prompts that are computed alone take the least time per
    token.
    """
    return min(range(64, profile.max_chunk + 1, 64), key=lambda n: _token_s(profile, n))


@cache
def _least_token_s(profile: LatencyProfile) -> float:
    return _token_s(profile, most_efficient_chunk(profile))
