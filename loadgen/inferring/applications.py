"""Applications of which no call states what it needs, each with the tier that it really needs.

People come by themselves, wait for as long as they like, and leave. Programs send many calls at
once, or one as soon as the one before is served. What an application needs stands in `meant` and is
told to nobody; what it does follows from that only as far as it does in life. Seconds, tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from loadgen.workload.lengths import Distribution, Fixed, Lognormal
from niyama.client.values import Targets

# The server's tiers; the first is the default one.
TIERS = {
    "interactive": Targets(ttft=1.0, tbt=0.1),
    "completion": Targets(ttlt=1.0),
    "standard": Targets(ttlt=10.0),
    "batch": Targets(ttlt=60.0),
}


class Comes(Enum):
    """Who sends an application's calls."""

    PEOPLE = "people"  # Poisson, `rate` a second
    ROWS = "rows"  # `num` workers, each sends as soon as it has an answer, after `pause_s`
    TOGETHER = "together"  # `num` at once, and again once all are answered, after `pause_s`


@dataclass(frozen=True, slots=True)
class Application:
    """One application. `patience_s` and `typing_s` are medians of lognormal times: for which it
    waits for the first token (of a unary call: for the answer), and after which people have typed
    on, `typed_on` of them. `stops_midway` of its readers leave with half of a stream.
    """

    name: str
    meant: str
    is_stream: bool
    comes: Comes
    prompt: Distribution
    output_len: int  # stated as max_tokens, too, as code does
    is_named: bool = True  # whether its calls name it
    rate: float = 0.0
    num: int = 0
    pause_s: float = 0.0
    timeout_s: float | None = None
    patience_s: float | None = None
    typed_on: float = 0.0
    typing_s: float = 0.4
    stops_midway: float = 0.0


_PEOPLE, _ROWS, _TOGETHER = Comes.PEOPLE, Comes.ROWS, Comes.TOGETHER
_CHAT, _PAGE, _LINE = Lognormal(60, 150), Lognormal(150, 400), Fixed(120)

APPLICATIONS = (
    Application(
        *("desk", "interactive", True, _PEOPLE, _CHAT, 48),
        rate=1.2,
        timeout_s=120.0,
        patience_s=8.0,
        stops_midway=0.1,
    ),
    Application(
        *("forum, unnamed", "interactive", True, _PEOPLE, _CHAT, 40),
        is_named=False,
        rate=0.8,
        patience_s=15.0,
        stops_midway=0.03,
    ),
    Application(  # a chat whose backend does not stream: nothing but its callers' leaving tells it
        *("kiosk, unnamed", "interactive", False, _PEOPLE, _CHAT, 24),
        is_named=False,
        rate=0.4,
        timeout_s=30.0,
        patience_s=8.0,
    ),
    Application(
        *("editor, unnamed", "completion", True, _PEOPLE, _LINE, 8),
        is_named=False,
        rate=1.5,
        timeout_s=2.0,
        typed_on=0.35,
    ),
    Application(
        *("forms", "standard", False, _ROWS, _PAGE, 16), num=3, timeout_s=60.0, pause_s=0.005
    ),
    Application(  # a service of its own, for nobody in particular
        *("mail, unnamed", "standard", False, _PEOPLE, _PAGE, 16),
        is_named=False,
        rate=0.4,
        timeout_s=60.0,
    ),
    Application(  # steps between which a tool runs
        *("agents", "standard", False, _ROWS, _PAGE, 24), num=4, timeout_s=120.0, pause_s=0.6
    ),
    Application(
        *("nightly", "batch", False, _TOGETHER, _PAGE, 32), num=24, timeout_s=600.0, pause_s=2.0
    ),
    Application(
        *("evaluation, unnamed", "batch", False, _ROWS, _CHAT, 12),
        is_named=False,
        num=4,
        pause_s=0.005,
    ),
    Application(  # streams because its library does
        *("digest", "batch", True, _PEOPLE, _PAGE, 32), rate=0.3
    ),
)


@dataclass(eq=False, slots=True)
class Call:
    """A call that is sent at `at`, and what became of it. Instants from the start of the run."""

    application: Application
    number: int
    at: float
    prompt_len: int
    leaves_s: float = math.inf  # after which its caller leaves, whatever has come
    gives_up_s: float = math.inf  # after which it leaves if nothing has come
    leaves_after: int | None = None  # tokens
    token_at: list[float] = field(default_factory=list)
    ended_at: float = math.inf
    is_complete: bool = False
    tier: str = ""  # that it was served with
    inferred: str = ""  # that was inferred for it, used or not; "" if none


class Caller:
    """Sends the calls of one application, the same for the same seed and answers."""

    def __init__(self, application: Application, duration_s: float, load: float, seed: int) -> None:
        """`load` is how many times as much work people and programs send."""
        self.application = application
        self.calls: list[Call] = []
        self._rng = random.Random(f"{seed}/{application.name}")
        self._duration_s = duration_s
        self._load = load
        self._num_waited = 0

    def first(self) -> Iterator[Call]:
        """Yields the calls that wait for no answer, in order of time."""
        own = self.application
        if own.comes is Comes.PEOPLE:
            at = 0.0
            while (at := at + self._rng.expovariate(own.rate * self._load)) < self._duration_s:
                yield self._call(at)
        elif own.comes is Comes.ROWS:
            for _ in range(self._num):
                yield self._call(self._rng.random())
        else:
            yield from self._together(self._rng.uniform(0, 5))

    def answered(self, call: Call) -> Iterator[Call]:
        """Yields the calls that are sent since this one has ended."""
        own, now = self.application, call.ended_at
        if own.comes is Comes.ROWS:
            yield from self._later(now + own.pause_s * self._rng.lognormvariate(0, 0.5))
        elif own.comes is Comes.TOGETHER:
            self._num_waited -= 1
            if not self._num_waited and now + own.pause_s < self._duration_s:
                yield from self._together(now + own.pause_s)

    @property
    def _num(self) -> int:
        return max(1, round(self.application.num * self._load))

    def _later(self, at: float) -> Iterator[Call]:
        if at < self._duration_s:
            yield self._call(at)

    def _together(self, at: float) -> Iterator[Call]:
        self._num_waited = self._num
        for _ in range(self._num):
            yield self._call(at)

    def _call(self, at: float) -> Call:
        own, rng = self.application, self._rng
        call = Call(own, len(self.calls), at, own.prompt.draw(rng))
        if own.patience_s is not None:
            call.gives_up_s = rng.lognormvariate(math.log(own.patience_s), 0.6)
        if rng.random() < own.typed_on:
            call.leaves_s = rng.lognormvariate(math.log(own.typing_s), 0.5)
        if rng.random() < own.stops_midway:
            call.leaves_after = own.output_len // 2
        self.calls.append(call)
        return call


def tiers_toml() -> str:
    """Returns the server's file, of the tiers alone."""
    said = ['default_tier = "interactive"']
    for name, targets in TIERS.items():
        said.append(f"[tiers.{name}]")
        for field_name in ("ttft", "tbt", "ttlt"):
            value = getattr(targets, field_name)
            said += [] if value is None else [f"{field_name}_s = {value}"]
    return "\n".join(said) + "\n"
