"""How long prompts and outputs are, in tokens. Draws come from a generator that is passed in."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from loadgen.workload.traces import Row

# 90 % of a standard normal distribution lies below this.
_Z90 = 1.2815515655446004
_LONGEST = 1_000_000_000  # tokens; no draw from such a distribution overflows


class Length(NamedTuple):
    """One request's lengths."""

    prompt: int
    output: int


class Lengths(Protocol):
    """Where the lengths of a class of requests come from."""

    def draw(self, rng: random.Random) -> Length: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same number of tokens."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"a length is at least 1 token, got {self.tokens}")

    def draw(self, rng: random.Random) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Lognormal by its median and its 90th percentile; never below 1 token."""

    p50: float
    p90: float

    def __post_init__(self) -> None:
        if not 1 <= self.p50 <= self.p90 <= _LONGEST:
            limit = f"1 <= p50 <= p90 <= {_LONGEST:,}"
            raise ValueError(f"lengths need {limit}, got {self.p50:g}/{self.p90:g}")

    def draw(self, rng: random.Random) -> int:
        sigma = math.log(self.p90 / self.p50) / _Z90
        return max(1, round(rng.lognormvariate(math.log(self.p50), sigma)))


Distribution = Fixed | Lognormal


@dataclass(frozen=True, slots=True)
class Independent:
    """Prompt and output drawn apart."""

    prompt: Distribution
    output: Distribution

    def draw(self, rng: random.Random) -> Length:
        return Length(self.prompt.draw(rng), self.output.draw(rng))


@dataclass(frozen=True, slots=True)
class FromTrace:
    """The pair of a row of a trace, each row equally likely: prompt and output stay together."""

    rows: tuple[Row, ...]

    def draw(self, rng: random.Random) -> Length:
        row = self.rows[rng.randrange(len(self.rows))]
        return Length(row.prompt_len, row.output_len)


def parse_distribution(text: str) -> Distribution:
    """N for a fixed length, P50/P90 for a lognormal one. Raises ValueError."""
    p50, slash, p90 = text.partition("/")
    try:
        return Lognormal(float(p50), float(p90)) if slash else Fixed(int(text))
    except ValueError as error:
        if "length" in str(error):
            raise
        raise ValueError(
            f"{text!r} is not a length such as 100, or P50/P90 such as 80/200"
        ) from None
