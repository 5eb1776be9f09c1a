"""When one contender is better than another by more than noise.

Both serve the same requests, once per seed, so that what is compared is the difference of each
pair. Better is:
* fewer late, of all requests or of the most important ones, or fewer with a gap that `--max-gap`
  rules out: at every seed, by 1 % of the requests and by 5 % of ours on the average over the seeds,
  and by two standard errors of that average;
* a tail: at every seed ours is beyond its target, and half as long again as theirs or more; a
  target that theirs keeps counts as if it were just kept. Best effort, which has no target, is long
  from a minute on;
* throughput: at every seed 1 % more tokens per second, 3 % on the average, where work was left when
  the last request arrived, and nobody was turned away.

With one seed (to choose whom to try again) the same holds but for the standard error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from statistics import mean, stdev

from loadgen.adversary.trial import Figures

_LATE, _OF_OURS, _ERRORS = 0.01, 0.05, 2.0
_TAIL, _LONG_S = 1.5, 60.0
_MORE_EACH, _MORE = 1.01, 1.03


class Measure(Enum):
    """What a contender can be better in; the value is the field of Figures."""

    LATE = "late"
    LATE_IMPORTANT = "late_important"
    TTFT_TAIL = "ttft_tail"
    TTLT_TAIL = "ttlt_tail"
    BEST_EFFORT = "best_effort_s"
    THROUGHPUT = "tokens_per_s"
    GAPS = "gaps"

    def of(self, figures: Figures) -> float:
        """Returns this figure."""
        return float(getattr(figures, self.value))


SHARES = frozenset((Measure.LATE, Measure.LATE_IMPORTANT, Measure.GAPS))


def better(theirs: Sequence[Figures], ours: Sequence[Figures]) -> frozenset[Measure]:
    """Returns in what `theirs` are better than `ours` by more than noise; both are by seed."""
    return frozenset(measure for measure in Measure if _is_better(measure, theirs, ours))


def _is_better(measure: Measure, theirs: Sequence[Figures], ours: Sequence[Figures]) -> bool:
    pairs = [(measure.of(a), measure.of(b)) for a, b in zip(theirs, ours, strict=True)]
    if measure in SHARES:
        gains = [b - a for a, b in pairs]
        least = max(_LATE, _OF_OURS * mean(b for _, b in pairs))
        error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        return min(gains) > 0 and mean(gains) >= max(least, _ERRORS * error)
    if measure is Measure.THROUGHPUT:
        if not all(a and b for a, b in pairs):
            return False
        more = [a / b for a, b in pairs]
        return min(more) >= _MORE_EACH and mean(more) >= _MORE
    least = _LONG_S if measure is Measure.BEST_EFFORT else 1.0
    return all(b > _TAIL * max(a, least) for a, b in pairs)


def excuses(measure: Measure, worse: frozenset[Measure]) -> frozenset[Measure]:
    """Returns what makes a gain in the measure a trade, of what a contender is worse in. Who is
    late, and who has a gap that was ruled out, counts first: no tail and no throughput excuses more
    of them.
    """
    return worse & SHARES if measure in SHARES else worse


def is_perfect(ours: Figures) -> bool:
    """Says whether nobody can be better than this by more than noise."""
    is_late = max(ours.late, ours.late_important, ours.gaps) >= _LATE
    has_tail = max(ours.ttft_tail, ours.ttlt_tail) > _TAIL or ours.best_effort_s > _TAIL * _LONG_S
    return not (is_late or has_tail or ours.tokens_per_s)
