"""Every experiment of the papers: what it asks, and the lines of the table that come of it.

The figures of the papers are those of Niyama (arXiv 2503.22562) and QoServe (ASPLOS 2026), for
Llama-3-8B on A100s. Beside each stands ours as the papers run it (baselines with their chunk), then
against every baseline with its best chunk, then our share of what the engine could do at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from loadgen.paper import serving
from loadgen.paper.contender import PROFILE, Contender
from loadgen.paper.jobs import Experiment, Job
from loadgen.paper.load import Load, compute_bound, source_of
from loadgen.paper.serving import ENVELOPE, NONE_LATE, PACE, Lateness, ServedRate, Size
from loadgen.scoring.criterion import Criterion
from loadgen.silos import default_chunk
from loadgen.targets.profiles import PAPER_TIERS

NIYAMA = Contender()
FCFS, EDF, SRPF = BASELINES = (Contender("fcfs"), Contender("edf"), Contender("srpf"))
# With the chunk that a search finds to be the best for nearly every load.
TUNED_FCFS, TUNED_EDF = Contender("fcfs", 512), Contender("edf", 512)
DYNAMIC = Contender(hybrid=False, relegation=False)
RELEGATING = Contender(hybrid=False)


class Finding(NamedTuple):
    """A line of the table: what was asked, what the papers say and what ours came to."""

    experiment: str
    paper: str
    ours: str
    best_fixed: str = ""  # ours against each baseline with its best chunk
    bound: str = ""  # our share of the compute bound: of the rate, and of the work that was done
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """How long the runs are, in hours of arrivals, and how much of each experiment is run."""

    hours: float = 0.75
    variant_hours: float = 0.5
    cluster_hours: float = 0.5  # at 35 requests/s
    overload_hours: float = 2.0  # four times the longest deadline, for who is late in the end
    wave_hours: float = 4.0
    datasets: tuple[str, ...] = ("azure-code", "azure-conv", "sharegpt")
    overload_rates: tuple[float, ...] = (3.0, 3.5, 4.0, 5.0, 6.0)

    def load(self, lengths: str = "azure-code", **rest: Any) -> Load:
        """Returns a load as long as the scale says; `rest` are other fields of Load."""
        return Load(lengths, **({"hours": self.hours} | rest))


class Variant(NamedTuple):
    """A circumstance under which the main experiments are repeated."""

    name: str
    load: dict[str, Any]
    contender: dict[str, Any]
    criterion: Criterion = ENVELOPE

    def of(self, contender: Contender) -> Contender:
        """Returns the contender under this circumstance."""
        return replace(contender, **self.contender)


AS_PUBLISHED = Variant("", {}, {})
VARIANTS = (
    Variant("bursts: gamma arrivals, CV 3", {"cv": 3.0}, {}),
    Variant("TTFT 1 s", {"ttft_s": 1.0}, {}),
    Variant("5 % predictor error", {}, {"predictor_error": 0.05}),
    Variant("raw token pace", {}, {"max_gap": 1.0}, PACE),
)


def cluster(scale: Scale, variant: Variant) -> Experiment[list[Finding]]:
    """Finds how many GPUs serve Azure-Code at 35 requests/s: shared, in silos sized tier by tier as
    published, and in silos whose chunks are tuned, too.
    """
    load = scale.load(rate="35", hours=scale.cluster_hours, **variant.load)
    niyama, fcfs = variant.of(NIYAMA), variant.of(FCFS)
    shared, edf, *sizes = yield [
        Job(serving.replicas, load, niyama, variant.criterion),
        Job(serving.replicas, load, variant.of(TUNED_EDF), variant.criterion),
        *_silo_jobs(load, fcfs, variant.criterion),
    ]
    published, tuned = _published_and_tuned(sizes)
    name = _named("GPUs, Azure-Code at 35/s", variant)
    paper = "silo 13 (7+3+3), Niyama 10: 1.30x; silo with 10: 60 % late, Niyama 0 %"
    fixed = f"shared {TUNED_EDF.name}: {edf or _NONE}"
    ours = f"silo {_sizes(published)}, tuned {_sizes(tuned)}, niyama {shared or _NONE}"
    if not (shared and all(size.replicas for size in tuned)):
        return [Finding(name, paper, ours, fixed)]
    fewer = reduced([size.replicas for size in tuned], shared)
    answers = yield [
        Job(serving.lateness, load, replace(niyama, replicas=shared), variant.criterion),
        *(
            Job(
                serving.lateness,
                load,
                replace(fcfs, chunk=size.chunk, replicas=count),
                variant.criterion,
                tier.name,
            )
            for tier, size, count in zip(PAPER_TIERS, tuned, fewer, strict=True)
        ),
    ]
    late, *theirs = [Lateness(*answer) for answer in answers]
    bound = 35 / compute_bound(PROFILE.latency, load) / shared
    ratio = _times(published, shared)
    finding = Finding(
        name,
        paper,
        f"{ours}: {ratio}, tuned {_times(tuned, shared)}; tuned silo with {sum(fewer)}:"
        f" {_all_late(theirs):.1%} late, niyama {late.late:.2%}"
        f" (p99 TTFT {late.ttft_p99_s:.1f} s, TTLT {late.ttlt_p99_s:.0f} s)",
        fixed,
        f"{bound:.0%}",
        "" if variant.name else _SILO_REMARK,
    )
    return [finding]


def silo_loads(scale: Scale) -> Iterator[tuple[str, Load]]:
    """Yields the loads on which sharing is compared with tuned silos, with their names. The rates
    want about ten GPUs.
    """
    hours = scale.cluster_hours
    yield "Azure-Code at 35/s", scale.load(rate="35", hours=hours)
    yield "Azure-Conv at 45/s", scale.load("azure-conv", rate="45", hours=hours)
    yield "ShareGPT lengths at 15/s", scale.load("sharegpt", rate="15", hours=hours)
    yield "bursts (CV 4), Azure-Code at 35/s", scale.load(rate="35", cv=4.0, hours=hours)
    yield "TTFT 1 s, Azure-Code at 25/s", scale.load(rate="25", ttft_s=1.0, hours=hours)


FLEET = 4  # replicas of each silo, and of the shared engine, whose capacities are compared


def shared_or_silos(name: str, load: Load) -> Experiment[list[Finding]]:
    """Finds how many GPUs a load takes shared and in silos, in whole ones and as parts of a fleet:
    there each tier takes its rate over what one GPU of its silo serves.
    """
    niyama, fcfs = replace(NIYAMA, replicas=FLEET), replace(FCFS, replicas=FLEET)
    shared, fleet, *answers = yield [
        Job(serving.replicas, load, NIYAMA),
        Job(serving.capacity, load, niyama),
        *_silo_jobs(load, FCFS, ENVELOPE),
        *(
            Job(serving.best_chunk, replace(load, shares=alone), each)
            for each, alone in zip(_silos(fcfs), _ALONE, strict=True)
        ),
    ]
    published, tuned = _published_and_tuned(answers[:3])
    rate, most = float(load.rate), ServedRate(*fleet).rps / FLEET
    taken = [
        [rate * share * FLEET / (ServedRate(*found).rps or math.nan) for found in pair]
        for pair, share in zip(answers[3:], load.shares, strict=True)
    ]
    as_published, best = (sum(each) for each in zip(*taken, strict=True))
    ours = rate / (most or math.nan)
    finding = Finding(
        f"GPUs, shared or in silos: {name}",
        "",
        f"silo {_sizes(published)}, tuned {_sizes(tuned)}, niyama {shared or _NONE}:"
        f" {_times(published, shared)}, tuned {_times(tuned, shared)}",
        remark=f"parts of a fleet: silo {as_published:.2f}, tuned {best:.2f}, niyama {ours:.2f}:"
        f" {as_published / ours:.2f}x, tuned {best / ours:.2f}x",
    )
    return [finding]


_ALONE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def _silos(fcfs: Contender) -> list[Contender]:
    """Returns who serves in the silo of each tier, with the chunk that is published."""
    return [replace(fcfs, chunk=default_chunk(tier)) for tier in PAPER_TIERS]


def _silo_jobs(load: Load, fcfs: Contender, criterion: Criterion) -> list[Job]:
    return [
        Job(serving.silo, load, each, criterion, tier.name)
        for each, tier in zip(_silos(fcfs), PAPER_TIERS, strict=True)
    ]


def _published_and_tuned(answers: Sequence[Any]) -> tuple[list[Size], list[Size]]:
    published, tuned = zip(*answers, strict=True)
    return [Size(*each) for each in published], [Size(*each) for each in tuned]


def _sizes(silos: Sequence[Size]) -> str:
    """Writes how many replicas there are in all, in each silo, and with which chunk."""
    parts = "+".join(str(size.replicas or _NONE) for size in silos)
    chunks = "/".join(str(size.chunk) for size in silos)
    total = f"{sum(size.replicas for size in silos)} " if all(s.replicas for s in silos) else ""
    return f"{total}({parts}; chunks {chunks})"


def _times(silos: Sequence[Size], shared: int) -> str:
    """Writes how many times as many GPUs as shared ones the silos take."""
    if not (shared and all(size.replicas for size in silos)):
        return "none"
    return f"{sum(size.replicas for size in silos) / shared:.2f}x"


_NONE = "no number"
_SILO_REMARK = "a silo of chunk 2,048 loses nothing here, one of 256 a third"


def reduced(sizes: Sequence[int], total: int) -> list[int]:
    """Takes replicas from the largest silos until there are `total` in all; each keeps one."""
    left = list(sizes)
    while sum(left) > max(total, len(left)):
        left[left.index(max(left))] -= 1
    return left


def _all_late(parts: Sequence[Lateness]) -> float:
    """Returns the late share over all silos together."""
    return sum(p.late * p.num_requests for p in parts) / sum(p.num_requests for p in parts)


def goodput(scale: Scale, lengths: str, variant: Variant) -> Experiment[list[Finding]]:
    """Finds the requests/s of one replica with which at most 1 % are late."""
    load = scale.load(lengths, **variant.load)
    answers = yield [
        Job(serving.capacity, load, variant.of(NIYAMA), variant.criterion),
        *(
            Job(serving.best_chunk, load, variant.of(baseline), variant.criterion)
            for baseline in BASELINES
        ),
    ]
    ours = ServedRate(*answers[0])
    policies = [baseline.policy for baseline in BASELINES]
    small = {name: ServedRate(*pair[0]) for name, pair in zip(policies, answers[1:], strict=True)}
    best = {name: ServedRate(*pair[1]) for name, pair in zip(policies, answers[1:], strict=True)}
    at_that = replace(load, rate=repr(ours.rps or 1.0))
    work_done, most = yield [
        Job(serving.done, at_that, variant.of(NIYAMA), variant.criterion),
        Job(serving.ceiling, load, variant.of(NIYAMA), variant.criterion),
    ]
    fcfs, edf = (_ratio(ours, small[name]) for name in ("fcfs", "edf"))
    remark = "" if (fcfs >= 1.5 and edf >= 1.2) or variant.name else _goodput_remark(best)
    finding = Finding(
        _named(f"goodput, {lengths} ({source_of(lengths)})", variant),
        "1.5x to 2.4x FCFS, 1.2x to 1.4x EDF",
        f"{ours.rps:.2f}/s: " + against(ours, small),
        against(ours, best),
        f"{ours.share:.0%}; work done {work_done:.0%}, none late at most {most:.0%}",
        remark,
    )
    return [finding]


def _goodput_remark(best: dict[str, ServedRate]) -> str:
    return f"EDF with chunk {best['edf'].chunk} reaches {best['edf'].share:.0%} of the bound"


def _ratio(ours: ServedRate, theirs: ServedRate) -> float:
    return ours.rps / theirs.rps if theirs.rps else float("inf")


def against(ours: ServedRate, theirs: dict[str, ServedRate]) -> str:
    return ", ".join(
        f"{_ratio(ours, each):.2f}x {name}/{each.chunk}" if each.rps else f"{name} serves none"
        for name, each in theirs.items()
    )


def overload(scale: Scale) -> Experiment[list[Finding]]:
    """Finds the late share at several loads, and how far each contender stays without a late
    request.
    """
    contenders = [NIYAMA, *BASELINES, TUNED_EDF]
    load = scale.load()
    none_late = yield [Job(serving.capacity, load, c, NONE_LATE) for c in (NIYAMA, EDF)]
    niyama, edf = (ServedRate(*answer) for answer in none_late)
    findings = [
        Finding(
            "most load without a late request",
            "1.30x EDF",
            f"{niyama.rps:.2f}/s, {_ratio(niyama, edf):.2f}x {EDF.name}",
            bound=f"{niyama.share:.0%}",
        )
    ]
    for rate in scale.overload_rates:
        at_rate = scale.load(rate=f"{rate:g}", hours=scale.overload_hours)
        answers = yield [Job(serving.lateness, at_rate, c) for c in contenders]
        late = {c.name: Lateness(*a).late for c, a in zip(contenders, answers, strict=True)}
        fixed = f"{TUNED_EDF.name} {late.pop(TUNED_EDF.name):.1%}"
        ours = ", ".join(f"{name} {share:.1%}" for name, share in late.items())
        paper = "ten times fewer late than others" if rate == scale.overload_rates[-1] else ""
        findings.append(Finding(f"late at {rate:g}/s", paper, ours, fixed))
    return findings


def ablation(scale: Scale) -> Experiment[list[Finding]]:
    """Adds the parts of the policy one after the other, and finds goodput and late share of
    each.
    """
    parts = {
        f"EDF, chunk {EDF.chunk}": EDF,
        "+ dynamic chunks": DYNAMIC,
        "+ relegation": RELEGATING,
        "+ hybrid order": NIYAMA,
    }
    papers = (("2.75", "100 %"), ("3.3", "74 %"), ("3.6", "26 %"), ("3.65", "16 %"))
    load = scale.load()
    findings = []
    for (name, contender), (rps, late) in zip(parts.items(), papers, strict=True):
        found, share = yield [
            Job(serving.capacity, load, contender),
            Job(serving.lateness, scale.load(rate="6", hours=scale.overload_hours), contender),
        ]
        capacity, lateness = ServedRate(*found), Lateness(*share)
        findings.append(
            Finding(
                f"ablation: {name}",
                f"{rps}/s; at 6/s {late} late",
                f"{capacity.rps:.2f}/s; at 6/s {lateness.late:.1%} late",
                bound=f"{capacity.share:.0%}",
            )
        )
    return findings


def square_wave(scale: Scale) -> Experiment[list[Finding]]:
    """Finds who is late where 2 and 5 requests/s alternate every 15 minutes, a fifth of them of low
    importance.
    """
    load = scale.load(rate="2..5/15m", hours=scale.wave_hours, low=0.2)
    contenders, fixed = (NIYAMA, FCFS, EDF), (TUNED_FCFS, TUNED_EDF)
    answers = yield [Job(serving.lateness, load, each) for each in (*contenders, *fixed)]
    ours, fcfs, edf, *tuned = [Lateness(*answer) for answer in answers]
    finding = Finding(
        "square wave 2 to 5/s, 20 % low importance",
        "FCFS 81.9 %, EDF 84.1 %, Niyama 8.64 % late, 0 % of the important;"
        " slowest relegated 3,900 s",
        f"fcfs {fcfs.late:.1%}, edf {edf.late:.1%}, niyama {ours.late:.2%} late,"
        f" {ours.late_important:.2%} of the important;"
        f" slowest relegated {ours.slowest_relegated_s:,.0f} s",
        ", ".join(f"{c.name} {each.late:.1%}" for c, each in zip(fixed, tuned, strict=True)),
    )
    return [finding]


def skewed_mixes(scale: Scale) -> Experiment[list[Finding]]:
    """Finds who is late at 4.5 requests/s where most are interactive, and where most are batch."""
    findings = []
    for shares, paper in (
        ((0.7, 0.15, 0.15), "EDF 98 %, Niyama 5 % late"),
        ((0.15, 0.15, 0.7), "EDF 82.8 %, Niyama 0.5 % late"),
    ):
        load = scale.load(rate="4.5", shares=shares, hours=scale.overload_hours)
        answers = yield [Job(serving.lateness, load, c) for c in (NIYAMA, EDF, TUNED_EDF)]
        ours, edf, fixed = [Lateness(*answer) for answer in answers]
        offered = 4.5 / compute_bound(PROFILE.latency, load)
        findings.append(
            Finding(
                "mix " + "/".join(f"{share:.0%}"[:-1] for share in shares) + " at 4.5/s",
                paper,
                f"edf {edf.late:.1%}, niyama {ours.late:.2%} late",
                f"{TUNED_EDF.name} {fixed.late:.1%}",
                remark=f"the load is {offered:.0%} of the compute bound",
            )
        )
    return findings


def long_prompts(scale: Scale) -> Experiment[list[Finding]]:
    """Tries dynamic chunks alone, on 10,000-token prompts in order of arrival, all interactive.
    Without slack (`max_gap` 1) the chunk adapts to the prefill alone.
    """
    load = scale.load("10k-prompts", shares=(1.0, 0.0, 0.0))
    adaptive = replace(DYNAMIC, max_gap=1.0)
    ours, theirs, fixed = yield [
        Job(serving.capacity, load, DYNAMIC),
        Job(serving.capacity, load, adaptive),
        Job(serving.best_chunk, load, FCFS),
    ]
    found, prefill_only, best = ServedRate(*ours), ServedRate(*theirs), ServedRate(*fixed[1])
    finding = Finding(
        "dynamic chunks alone, 10k prompts",
        "0.32 against 0.26/s, 1.23x",
        f"{found.rps:.2f} against {prefill_only.rps:.2f}/s, {_ratio(found, prefill_only):.2f}x",
        f"{_ratio(found, best):.2f}x fcfs/{best.chunk}",
        f"{found.share:.0%}",
        "outputs as in ShareGPT: the papers do not say",
    )
    return [finding]


def _named(what: str, variant: Variant) -> str:
    return f"{what}; {variant.name}" if variant.name else what


def all_experiments(scale: Scale) -> Iterator[tuple[str, Experiment[list[Finding]]]]:
    """Yields every experiment with the name of the group that it belongs to."""
    yield "cluster", cluster(scale, AS_PUBLISHED)
    for lengths in scale.datasets:
        yield "goodput", goodput(scale, lengths, AS_PUBLISHED)
    yield "overload", overload(scale)
    yield "ablation", ablation(scale)
    yield "wave", square_wave(scale)
    yield "mixes", skewed_mixes(scale)
    yield "long-prompts", long_prompts(scale)
    for name, load in silo_loads(scale):
        yield "silos", shared_or_silos(name, load)
    for variant in VARIANTS:
        shorter = replace(scale, hours=scale.variant_hours)
        yield "variants", cluster(shorter, variant)
        yield "variants", goodput(shorter, "azure-code", variant)


GROUPS = (
    *("cluster", "goodput", "overload", "ablation", "wave", "mixes", "long-prompts", "silos"),
    *("rivals", "variants"),
)
