"""A condition: everything that a simulated load is made of, drawn at random, as the command line
that repeats it. Seconds, tokens, requests/s.

Numbers are drawn with the two digits with which the command line has them, so that what was found
is what is printed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import NamedTuple, TypeVar

from engine.deciding.latency import add_chunk
from engine.deciding.plan import Work
from loadgen.arguments import parse, to_spec
from loadgen.opening import Opener
from loadgen.paper.load import pure_seconds
from loadgen.targets import profiles
from loadgen.targets.profiles import Profile
from loadgen.workload.plan import plan
from loadgen.workload.spec import build

_MODELS = Path(__file__).parent / "models"


def _roofline(device: str, model: str) -> str:
    path = _MODELS / f"{model}.json"
    here = Path.cwd()
    return f"roofline:{device}:{path.relative_to(here) if path.is_relative_to(here) else path}"


PROFILES = {
    profiles.A100.name: 0.6,
    _roofline("h200", "llama-3-8b"): 0.15,
    _roofline("h200", "qwen2.5-0.5b"): 0.1,
    _roofline("l4", "qwen2.5-0.5b"): 0.15,
}
T = TypeVar("T")
_SAMPLE = 200  # requests whose mean work is that of the load
# How long a condition is: as many arrivals and iterations as are simulated in seconds.
_ARRIVALS, _ITERATIONS, _LEAST_S, _MOST_S = 800, 5000, 30.0, 600.0
_ITERATION_TOKENS = 512


class Part(NamedTuple):
    """One tier of a condition, in the words of the flags."""

    name: str
    targets: str  # as `--tier` has them: 1s/50ms, 600s, none
    percent: int  # of the requests
    prompt: str
    output: str


@dataclass(frozen=True, slots=True)
class Condition:
    """A load and the engine that it meets. None, 0 and "" stand for what is usual."""

    profile: str
    parts: tuple[Part, ...]
    rps: float
    duration_s: float
    swing: float = 0.0  # the rate alternates between 1 - swing and 1 + swing times its mean
    cv: float = 1.0
    tenants: str = ""
    importance: str = ""
    kv_tokens: int | None = None
    max_batch_size: int | None = None
    predictor_error: float = 0.0
    cancel_rate: float = 0.0
    max_gap: float = math.inf
    seed: int = 0

    def flags(self) -> list[str]:
        """Returns the flags of `python -m loadgen` that send this load."""
        flags = ["--simulate", self.profile, "--duration", f"{self.duration_s:g}s"]
        flags += ["--rps", self._rate(), "--max-gap", f"{self.max_gap:g}"]
        mix = [f"{part.name}:{part.percent / 100:g}" for part in self.parts]
        flags += ["--mix", ",".join(mix)]
        for part in self.parts:
            flags += ["--tier", f"{part.name}={part.targets}"]
            flags += ["--prompt-tokens", f"{part.name}:{part.prompt}"]
            flags += ["--output-tokens", f"{part.name}:{part.output}"]
        if self.cv != 1:
            flags += ["--cv", f"{self.cv:g}"]
        for name in ("tenants", "importance", "kv_tokens", "max_batch_size"):
            if value := getattr(self, name):
                flags += [f"--{name.replace('_', '-')}", str(value)]
        for name in ("predictor_error", "cancel_rate"):
            if value := getattr(self, name):
                flags += [f"--{name.replace('_', '-')}", f"{value:g}"]
        return flags

    def _rate(self) -> str:
        if not self.swing:
            return f"{self.rps:g}"
        low, high = (_round(self.rps * factor) for factor in (1 - self.swing, 1 + self.swing))
        return f"{low:g}..{high:g}/{self.duration_s / 4:g}s"

    def offering(self, load: float) -> Condition:
        """Returns the condition at a rate of that share of what the device could compute at
        most.
        """
        return replace(self, rps=_round(load / mean_work_s(self)))

    @property
    def load(self) -> float:
        """Returns the offered work as a share of what the device could compute at most."""
        return self.rps * mean_work_s(self)


def profile_of(condition: Condition) -> Profile:
    """Returns the simulated device of a condition."""
    simulation = parse(condition.flags()).simulation
    assert simulation is not None
    return simulation.profile()


def mean_work_s(condition: Condition) -> float:
    """Returns the mean seconds that one request of a condition takes at least."""
    one_a_second = replace(condition, rps=1.0, duration_s=_SAMPLE, swing=0.0, cv=1.0, seed=0)
    return _mean_work_s(one_a_second)


@cache
def _mean_work_s(condition: Condition) -> float:
    arguments = parse(condition.flags())
    spec = to_spec(arguments)
    with Opener(arguments, spec).opened() as target:
        requests = plan(build(spec, target.info()))
    latency = profile_of(condition).latency
    return mean(pure_seconds(latency, r.prompt_len, r.output_len) for r in requests)


def draw(rng: random.Random) -> Condition:
    """Draws a condition."""
    name = _chosen(rng, PROFILES)
    profile = profiles.load(name)
    common = _lengths(rng, profile.context_len) if rng.random() < 0.5 else None
    kinds = [rng.choices("iiidb", k=1)[0], *rng.choices("iiddddb", k=rng.randrange(4))]
    shares = percents([rng.randint(1, 6) for _ in kinds])
    parts = tuple(
        Part(
            f"{_KINDS[kind]}{number}",
            _targets(rng, kind),
            share,
            *(common or _lengths(rng, profile.context_len)),
        )
        for number, (kind, share) in enumerate(zip(kinds, shares, strict=True), start=1)
    )
    found = Condition(
        name,
        parts,
        rps=1.0,
        duration_s=_MOST_S,
        swing=_maybe(rng, 0.2, rng.choice((0.3, 0.5, 0.9)), 0.0),
        cv=_maybe(rng, 0.4, rng.choice((2.0, 3.0, 4.0, 6.0)), 1.0),
        tenants=_maybe(rng, 0.25, _TENANTS, ""),
        importance=_maybe(rng, 0.25, rng.choice(_IMPORTANCES), ""),
        kv_tokens=_maybe(rng, 0.25, _memory(rng, profile), None),
        max_batch_size=_maybe(rng, 0.15, rng.choice((16, 32, 64, 128)), None),
        predictor_error=_maybe(rng, 0.2, rng.choice((0.02, 0.05, 0.1, 0.2)), 0.0),
        cancel_rate=_maybe(rng, 0.15, rng.choice((0.02, 0.1, 0.3)), 0.0),
        max_gap=rng.choice((math.inf, math.inf, math.inf, 2.0, 1.0)),
    )
    found = found.offering(rng.uniform(*rng.choice(((0.5, 0.9), (0.8, 1.2), (0.8, 1.2), (1.2, 2)))))
    return replace(found, duration_s=_duration_s(found, profile), seed=rng.randrange(1000))


_KINDS = {"i": "chat", "d": "report", "b": "free"}
_TENANTS = "a:0.55,b:0.15,c:0.15,d:0.15"
_IMPORTANCES = ("low:0.2,normal:0.8", "low:0.3,normal:0.5,high:0.2", "normal:0.5,high:0.5")


def _chosen(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices([*shares], [*shares.values()])[0]


def _maybe(rng: random.Random, share: float, value: T, usual: T) -> T:
    return value if rng.random() < share else usual


def _round(value: float) -> float:
    """Rounds to two digits."""
    return float(f"{value:.2g}")


def _between(rng: random.Random, low: float, high: float) -> float:
    """Draws from a range of which each doubling is equally likely, with two digits."""
    return _round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _targets(rng: random.Random, kind: str) -> str:
    if kind == "i":
        return f"{_between(rng, 0.3, 10):g}s/{_between(rng, 20, 200):g}ms"
    return "none" if kind == "b" else f"{_between(rng, 2, 3600):g}s"


def _lengths(rng: random.Random, context_len: int) -> tuple[str, str]:
    """Draws how long prompts and outputs are; one in six has prompts near the context."""
    context_len = min(context_len, 16_384)
    output, spread = _between(rng, 3, 600), rng.choice((1.0, 1.5, 3.0, 6.0))
    if rng.random() < 1 / 6:
        prompt, most = context_len // 2, int(0.9 * context_len)
    else:
        prompt = int(_between(rng, 40, context_len / 3))
        most = int(prompt * rng.choice((1.0, 1.5, 3.0, 6.0)))
    return f"{prompt}/{most}", f"{output:g}/{_round(output * spread):g}"


def _memory(rng: random.Random, profile: Profile) -> int:
    """Draws a smaller memory, in which the longest request still fits."""
    least = 1.2 * profile.context_len
    return int(_between(rng, least, max(2 * least, profile.kv_tokens / 2)))


def _duration_s(condition: Condition, profile: Profile) -> float:
    """Returns for how long requests arrive, so that the simulation takes seconds."""
    iteration_s = profile.latency.seconds(add_chunk(Work(), 0, _ITERATION_TOKENS))
    seconds = min(_ARRIVALS / condition.rps, _ITERATIONS * iteration_s, _MOST_S)
    return max(_LEAST_S, round(seconds / 30) * 30.0)


def percents(parts: Sequence[int]) -> list[int]:
    """Turns numbers of equal parts into whole percents that add up to 100."""
    total, found = sum(parts), []
    for number in range(len(parts)):
        before, after = sum(parts[:number]), sum(parts[: number + 1])
        found.append(round(100 * after / total) - round(100 * before / total))
    return found


def same_load(condition: Condition, simpler: Condition) -> Condition:
    """Returns the simpler condition at the rate that offers as much work."""
    return simpler.offering(condition.load)
