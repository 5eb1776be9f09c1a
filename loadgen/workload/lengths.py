"""How long prompts and outputs are, in tokens. Whoever draws a length hands in the generator."""

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
    """The tokens of one request's prompt and output."""

    prompt: int
    output: int


class Lengths(Protocol):
    """A source of the lengths of a tier's requests."""

    def draw(self, rng: random.Random) -> Length:
        """Draws the lengths of one request."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A length that is always the same number of tokens. Raises ValueError below 1."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"a length is at least 1 token, got {self.tokens}")

    def draw(self, rng: random.Random) -> int:
        """Returns the number of tokens, without a use of the generator."""
        return self.tokens

    def __str__(self) -> str:
        return str(self.tokens)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A lognormal length by its median and its 90th percentile in tokens, never below 1 token.

    Raises ValueError unless 1 <= p50 <= p90.
    """

    p50: float
    p90: float

    def __post_init__(self) -> None:
        if not 1 <= self.p50 <= self.p90 <= _LONGEST:
            limit = f"1 <= p50 <= p90 <= {_LONGEST:,}"
            raise ValueError(f"lengths need {limit}, got {self.p50:g}/{self.p90:g}")

    def draw(self, rng: random.Random) -> int:
        """Draws a number of tokens."""
        sigma = math.log(self.p90 / self.p50) / _Z90
        return max(1, round(rng.lognormvariate(math.log(self.p50), sigma)))

    def __str__(self) -> str:
        return f"{self.p50:g}/{self.p90:g}"


Distribution = Fixed | Lognormal


@dataclass(frozen=True, slots=True)
class Exact:
    """What is stated of a length is the length itself, which no caller knows beforehand."""

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True, slots=True)
class AsLogged:
    """What is stated of a length is what the replayed log says; of one of which it says nothing,
    the length itself.
    """

    def __str__(self) -> str:
        return "as logged"


Stated = Fixed | Lognormal | Exact | AsLogged
# What callers state as `max_tokens`: a round number far above what they expect.
USUALLY_STATED = Fixed(2048)


def state(stated: Stated, output_len: int, room: int, rng: random.Random) -> int:
    """Returns the `max_tokens` that a caller states whose output will have that length: what is
    drawn, doubled until it is enough, but not more than `room`, which the prompt leaves.
    """
    if isinstance(stated, Exact | AsLogged):
        return output_len
    most = stated.draw(rng)
    while most < output_len:
        most *= 2
    return max(output_len, min(most, room))


@dataclass(frozen=True, slots=True)
class Independent:
    """Lengths of which prompt and output are drawn independently of each other."""

    prompt: Distribution
    output: Distribution

    def draw(self, rng: random.Random) -> Length:
        """Draws the prompt's length, then the output's."""
        return Length(self.prompt.draw(rng), self.output.draw(rng))


@dataclass(frozen=True, slots=True)
class FromTrace:
    """Lengths of a trace: those of one of its rows, each equally likely, so that a prompt keeps its
    output.
    """

    rows: tuple[Row, ...]

    def draw(self, rng: random.Random) -> Length:
        """Draws a row."""
        row = self.rows[rng.randrange(len(self.rows))]
        return Length(row.prompt_len, row.output_len)


def parse_distribution(text: str) -> Distribution:
    """Reads N, a fixed length, or P50/P90, a lognormal one. Raises ValueError."""
    p50, slash, p90 = text.partition("/")
    try:
        return Lognormal(float(p50), float(p90)) if slash else Fixed(int(text))
    except ValueError as error:
        if "length" in str(error):
            raise
        raise ValueError(
            f"{text!r} is not a length such as 100, or P50/P90 such as 80/200"
        ) from None


def parse_stated(text: str) -> Stated:
    """Reads what `parse_distribution` reads, or exact. Raises ValueError."""
    return Exact() if text == "exact" else parse_distribution(text)
