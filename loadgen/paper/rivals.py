"""Every policy that is known on every load, over several seeds: who is late, who waits longest, who
gets the most done, and where Niyama stands.

All contenders see the same requests of a seed, so that a difference between two is taken seed by
seed, and what the seeds have in common falls out of it. A contender is ahead of another where its
late share is smaller
* by more than DIFFERENCE on average, one request in a thousand, and
* by more than chance: the mean of the differences is more than t standard errors, with the t that
  chance exceeds in one case of twenty (Student's, one-sided). With one seed nothing is known of
  chance, and only the first counts.
Anything else is within noise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from loadgen.paper import serving
from loadgen.paper.contender import Contender
from loadgen.paper.experiments import BASELINES, EDF, NIYAMA, Scale
from loadgen.paper.jobs import Experiment, Job
from loadgen.paper.load import Load
from loadgen.paper.serving import Lateness

# Those with a fixed chunk have one or two that serve them well.
RIVALS = (
    NIYAMA,
    *(Contender(policy) for policy in ("edf-dynamic", "edf-reject")),
    *(Contender(policy) for policy in ("qoserve", "slidingserve", "fairbatching")),
    *(Contender(each.policy, 512) for each in reversed(BASELINES)),
    EDF,
)
DIFFERENCE = 0.001
# Student's t that chance exceeds in one case of twenty, by the degrees of freedom; then the normal.
_T = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83)
_T_MANY = 1.64


def rival_loads(scale: Scale) -> Iterator[tuple[str, Load]]:
    """Yields loads with their names: those of the papers' evaluation in which some are late, and
    bursts and close deadlines. One replica serves 4/s of Azure-Code with 1 % late, 1.7/s of
    ShareGPT lengths; the others are beyond that, but for bursts.
    """
    overload, short = scale.overload_hours, scale.hours
    yield "Azure-Code at 4/s", scale.load(rate="4", hours=short)
    yield "Azure-Code at 5/s", scale.load(rate="5", hours=overload)
    yield "Azure-Code at 6/s", scale.load(rate="6", hours=overload)
    wave = scale.load(rate="2..5/15m", low=0.2, hours=overload)
    yield "square wave 2 to 5/s, a fifth of low importance", wave
    for shares in ((0.7, 0.15, 0.15), (0.15, 0.15, 0.7)):
        named = "/".join(f"{share:.0%}"[:-1] for share in shares)
        yield f"mix {named} at 4.5/s", scale.load(rate="4.5", shares=shares, hours=overload)
    yield "bursts (CV 4), Azure-Code at 4/s", scale.load(rate="4", cv=4.0, hours=short)
    yield "TTFT 1 s, Azure-Code at 2.3/s", scale.load(rate="2.3", ttft_s=1.0, hours=short)
    yield "ShareGPT lengths at 2/s", scale.load("sharegpt", rate="2", hours=short)
    close = {"ttlt_s": (5.0, 20.0), "hours": short}
    yield "TTLT 5 and 20 s, Azure-Conv at 4.2/s", scale.load("azure-conv", rate="4.2", **close)
    yield "TTLT 5 and 20 s, ShareGPT at 1.4/s", scale.load("sharegpt", rate="1.4", **close)


@dataclass(frozen=True, slots=True)
class Standing:
    """What became of a load with every contender (by its name), a figure for each seed."""

    load: str
    results: Mapping[str, Sequence[Lateness]]

    def late(self, name: str) -> list[float]:
        """Returns a contender's late shares."""
        return [each.late for each in self.results[name]]

    def ahead_of(self, name: str) -> list[str]:
        """Returns who is ahead of a contender by more than noise, the best first."""
        late = self.late(name)
        ahead = [other for other in self.results if is_smaller(self.late(other), late)]
        return sorted(ahead, key=lambda other: statistics.fmean(self.late(other)))

    def num_fewer(self, name: str) -> int:
        """Counts who has a smaller mean than a contender, be it by chance."""
        own = statistics.fmean(self.late(name))
        return sum(statistics.fmean(self.late(other)) < own for other in self.results)


def is_smaller(some: Sequence[float], others: Sequence[float]) -> bool:
    """Says whether the first late shares are smaller by more than noise; there is one of each for
    every seed, in the same order.
    """
    differences = [other - one for one, other in zip(some, others, strict=True)]
    mean, num = statistics.fmean(differences), len(differences)
    if mean <= DIFFERENCE or num == 1:
        return mean > DIFFERENCE
    t = _T[num - 2] if num - 2 < len(_T) else _T_MANY
    return mean > t * statistics.stdev(differences) / math.sqrt(num)


def rivals(name: str, load: Load, num_seeds: int) -> Experiment[Standing]:
    """Measures everybody on a load, with as many seeds."""
    loads = [replace(load, seed=load.seed + n) for n in range(num_seeds)]
    answers = yield [Job(serving.lateness, each, rival) for rival in RIVALS for each in loads]
    results = [Lateness(*answer) for answer in answers]
    parts = [results[n : n + num_seeds] for n in range(0, len(results), num_seeds)]
    return Standing(name, {r.name: part for r, part in zip(RIVALS, parts, strict=True)})


def markdown(standings: Sequence[Standing]) -> str:
    """Writes a table of late shares with Niyama's place, one of the tail and one of what was done,
    a row for each load and a column for each contender. The best of a row is bold.
    """
    names = list(standings[0].results)
    own = NIYAMA.name

    def table(title: str, extra: str, row: Callable[[Standing], Iterator[str]]) -> Iterator[str]:
        columns = [title, *names[:1], *filter(None, [extra]), *names[1:]]
        yield "| " + " | ".join(columns) + " |"
        yield "|" + "---|" * len(columns)
        for standing in standings:
            yield f"| {standing.load} | " + " | ".join(row(standing)) + " |"

    def late(standing: Standing) -> Iterator[str]:
        means = {name: statistics.fmean(standing.late(name)) for name in names}
        for name in names:
            yield _bold(_shares(standing.late(name)), means[name] == min(means.values()))
            if name == own:
                yield place(standing)

    def tail(standing: Standing) -> Iterator[str]:
        means = _means(standing, lambda result: result.ttft_p99_s)
        best = min(means.values())
        yield from (_bold(f"{mean:,.1f} s", mean == best) for mean in means.values())

    def goodput(standing: Standing) -> Iterator[str]:
        means = _means(standing, lambda result: result.goodput_tokens_per_s)
        best = max(means.values())
        yield from (_bold(f"{mean:,.0f}", mean == best) for mean in means.values())

    return "\n".join(
        [
            *table("late", f"its rank of {len(names)}", late),
            "",
            *table("p99 of TTFT", "", tail),
            "",
            *table("tokens/s on time", "", goodput),
        ]
    )


def place(standing: Standing) -> str:
    """Says where Niyama stands: how many are ahead by more than noise, or only by chance."""
    ahead, fewer = standing.ahead_of(NIYAMA.name), standing.num_fewer(NIYAMA.name)
    if ahead:
        return f"{len(ahead) + 1}, behind {', '.join(ahead)}"
    return "1" if not fewer else f"1, within noise of {fewer}"


def _means(standing: Standing, figure: Callable[[Lateness], float]) -> dict[str, float]:
    return {name: statistics.fmean(map(figure, each)) for name, each in standing.results.items()}


def _shares(shares: Sequence[float]) -> str:
    """Writes the mean and the standard deviation of shares, with a digit more below 1 %."""
    mean = statistics.fmean(shares)
    digits = 2 if 0 < mean < 0.01 else 1
    text = f"{mean * 100:.{digits}f}"
    if len(shares) > 1:
        text += f" ±{statistics.stdev(shares) * 100:.{digits}f}"
    return f"{text} %"


def _bold(text: str, is_best: bool) -> str:
    return f"**{text}**" if is_best else text
