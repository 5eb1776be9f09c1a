"""The search: conditions are drawn, everybody serves them, and who was better than ours is tried
again on other requests. Deterministic for a seed, whatever the number of processes.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mean

from engine.deciding.policies import ORDERS, POLICIES
from loadgen.adversary.condition import Condition, draw
from loadgen.adversary.shrink import shrink
from loadgen.adversary.trial import Figures, Trial
from loadgen.adversary.verdict import Measure, better, excuses, is_perfect
from loadgen.silos import CHUNKS

RIVALS = tuple(policy for policy in POLICIES if policy not in ORDERS)
SEEDS = 3  # other requests, on which what was found must show again
Run = Callable[[Sequence[Trial]], Sequence[Figures]]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Find:
    """A condition in which a baseline is better than ours by more than noise."""

    condition: Condition
    contender: str
    measure: Measure  # in which it was seen to be better
    ours: tuple[Figures, ...]  # by seed
    theirs: tuple[Figures, ...]

    @property
    def gains(self) -> frozenset[Measure]:
        """Returns in what the baseline is better."""
        return better(self.theirs, self.ours)

    @property
    def price(self) -> frozenset[Measure]:
        """Returns in what the baseline is worse that excuses ours; nothing for an outright loss."""
        return excuses(self.measure, better(self.ours, self.theirs))

    @property
    def seeds(self) -> range:
        """Returns the seeds on which it was found."""
        return _seeds(self.condition)


def _seeds(condition: Condition) -> range:
    return range(condition.seed + 1, condition.seed + 1 + SEEDS)


@dataclass(slots=True)
class Search:
    """A search for conditions in which `policy` loses. `run` simulates; `say` tells of progress."""

    run: Run
    say: Say
    policy: str = "niyama"
    rivals: tuple[str, ...] = RIVALS
    orders: tuple[str, ...] = tuple(ORDERS)  # of the baselines with a fixed chunk
    most_steps: int = 40  # trials of simpler conditions, per find
    is_outright: bool = False  # finds with a price are left out
    finds: list[Find] = field(default_factory=list)  # so far
    num_conditions: int = 0
    virtual_s: float = 0.0  # arrivals of the conditions drawn

    def search(self, seed: int, virtual_s: float) -> None:
        """Searches until conditions of that much virtual time were drawn."""
        for condition in drawn(seed):
            if self.virtual_s >= virtual_s:
                return
            self.try_one(condition)

    def try_one(self, condition: Condition) -> None:
        """Tries one condition, and keeps what is found in it."""
        self.num_conditions += 1
        self.virtual_s += condition.duration_s
        (ours,) = self.run([Trial(condition, self.policy, condition.seed)])
        rest = ", ".join(f"{name} {value:.3g}" for name, value in ours._asdict().items() if value)
        self.say(f"{self.num_conditions}: {self.policy}: {rest}")
        if is_perfect(ours):
            return
        theirs = self._screen(condition)
        seen: set[Measure] = set()
        for measure in Measure:
            name = _candidate(measure, ours, theirs)
            if name is None or measure in seen:
                continue
            if self.is_outright and excuses(measure, better([ours], [theirs[name]])):
                continue
            find = self.confirm(measure, name, condition, self.is_outright)
            if find is not None:
                seen |= find.gains
                self._keep(find)

    def _screen(self, condition: Condition) -> dict[str, Figures]:
        """Returns what every baseline makes of the condition. The chunk of those that have a fixed
        one is the best that the first of them finds.
        """
        first, *others = self.orders
        chunks = [f"{first}/{chunk}" for chunk in CHUNKS]
        theirs = self._each(condition, chunks)
        best = min(chunks, key=lambda name: (theirs[name].late, -theirs[name].tokens_per_s))
        tuned = [best.replace(first, order) for order in others]
        return theirs | self._each(condition, [*tuned, *self.rivals])

    def _each(self, condition: Condition, names: Sequence[str]) -> dict[str, Figures]:
        names = [name for name in names if name != self.policy]
        answers = self.run([Trial(condition, name, condition.seed) for name in names])
        return dict(zip(names, answers, strict=True))

    def _keep(self, find: Find) -> None:
        """Keeps a find, and shrinks it where it has no price."""
        self.finds.append(find)
        self.say("found:\n" + "\n".join(lines(find, self.policy)))
        if find.price:
            return
        again = partial(self.confirm, find.measure, find.contender, is_free=True)
        find = shrink(find.condition, find, again, self.most_steps)
        self.finds.pop()
        if all((find.condition, find.measure) != (f.condition, f.measure) for f in self.finds):
            self.finds.append(find)
            self.say("shrunk:\n" + "\n".join(lines(find, self.policy)))

    def confirm(
        self, measure: Measure, contender: str, condition: Condition, is_free: bool = False
    ) -> Find | None:
        """Says whether the contender is better on other requests, too (`is_free`: and in nothing
        worse); None where it is not.
        """
        ours: list[Figures] = []
        theirs: list[Figures] = []
        for seed in _seeds(condition):
            pair = [Trial(condition, name, seed) for name in (self.policy, contender)]
            for kept, figures in zip((ours, theirs), self.run(pair), strict=True):
                kept.append(figures)
            if measure not in better(theirs[-1:], ours[-1:]):
                return None
        find = Find(condition, contender, measure, tuple(ours), tuple(theirs))
        return find if measure in find.gains and not (is_free and find.price) else None


def drawn(seed: int) -> Iterator[Condition]:
    """Yields the conditions of a seed, without end."""
    number = 0
    while True:
        yield draw(random.Random(f"{seed}/{number}"))
        number += 1


def _candidate(measure: Measure, ours: Figures, theirs: dict[str, Figures]) -> str | None:
    """Returns who is better than ours in the measure, if anybody: of those the one that is worse in
    least, and then the one with the fewest late.
    """
    found = [name for name, each in theirs.items() if measure in better([each], [ours])]
    return min(found, default=None, key=lambda n: (len(better([ours], [theirs[n]])), theirs[n]))


def command(find: Find, policy: str) -> str:
    """Returns the command line that repeats a find on the first of its seeds."""
    trial = Trial(find.condition, f"{policy},{find.contender}", find.seeds[0])
    return shlex.join(["python", "-m", "loadgen", *trial.command])


def lines(find: Find, policy: str) -> list[str]:
    """Tells a find: who was better in what, both's figures, and the command line."""
    gains, price = (", ".join(sorted(m.value for m in each)) for each in (find.gains, find.price))
    told = [f"{find.contender} beats {policy}: {gains}" + (f"; worse: {price}" if price else "")]
    for who, by_seed in ((policy, find.ours), (find.contender, find.theirs)):
        values = " ".join(f"{find.measure.of(each):.3g}" for each in by_seed)
        means = Figures(*(mean(each) for each in zip(*by_seed, strict=True)))
        rest = ", ".join(f"{name} {value:.3g}" for name, value in means._asdict().items())
        told.append(f"  {who}: {find.measure.value} {values} by seed; means: {rest}")
    return [*told, f"  {command(find, policy)}"]
