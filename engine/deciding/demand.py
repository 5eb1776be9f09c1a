"""What requests need of the engine, and what the recent ones were like.

The unit in which deadlines are weighed is predicted seconds of engine time.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable

from engine.deciding.history import OutputLengths
from engine.deciding.latency import LatencyModel
from engine.deciding.plan import Plan, Work
from engine.deciding.sequence import Sequence

ITERATION_WEIGHT = 0.05  # of the newest iteration in the duration that is expected of the next ones
PREFILL_WEIGHT = 0.02  # of the newest iteration in how slow prefills are
LEAST_PREFILLS = 30  # iterations before which that is not known
MOST_SLOWDOWN = 4.0  # of prefills beside decodes
MOST_OVERRUN = 2.0  # of the prediction that an iteration counts as, so that a stall changes little
OUTPUT_RISK = 3.0  # an output may turn out this many times as long as the guess
WINDOW = 1000  # recent requests whose work is remembered
REQUEST_WEIGHT = 1 / 64  # of the newest request in the averages
_UNBOUNDED = 1 << 60
CALM = 0.5 * REQUEST_WEIGHT  # share of relegations that a single one falls below after 45 requests
OVERLOADED = 0.2  # share of requests, or of work, from which on relegations are many


class Demand:
    """Predicts the work of sequences in seconds, for prefills in chunks of `chunk` tokens (the size
    that a loaded engine runs).

    A decode is charged what one more sequence adds to an iteration, as iterations run anyway.
    """

    def __init__(self, latency: LatencyModel, history: OutputLengths, chunk: int) -> None:
        self._latency = latency
        self._history = history
        self.chunk = chunk
        self.iteration_s = latency.predict(Work(1, 1))  # recent duration of an iteration
        self._num_prefills = 0  # iterations that `note_prefills` was told of
        self._prefills_s = self._shares_s = 0.0  # of these; sums, weighted by recency
        self._prefill_slowdown = 1.0

    def note_iteration(self, seconds: float) -> None:
        """Takes note that an iteration took that long."""
        self.iteration_s += ITERATION_WEIGHT * (seconds - self.iteration_s)

    def note_prefills(self, plan: Plan, seconds: float) -> None:
        """Takes note that an iteration took that long which had as many prefills as there was room
        for. It had the decodes, the pace of the streams and what any iteration costs besides, so
        that the prefills took longer than as their shares of largest iterations.
        """
        seconds = min(seconds, MOST_OVERRUN * plan.predicted_s)
        num_decodes, share = len(plan.decodes), self._latency.prefill_share_seconds
        if num_decodes:
            context = plan.work.decode_context // num_decodes
            seconds -= num_decodes * self._latency.decode_seconds(context, self.chunk)
        shares_s = sum([share(c.start, c.start + c.length, self.chunk) for c in plan.chunks])
        self._num_prefills += 1
        self._shares_s += shares_s - PREFILL_WEIGHT * self._shares_s
        self._prefills_s += seconds - PREFILL_WEIGHT * self._prefills_s
        if self._num_prefills >= LEAST_PREFILLS:
            slowdown = self._prefills_s / self._shares_s
            self._prefill_slowdown = max(1.0, min(slowdown, MOST_SLOWDOWN))

    def output_left(self, sequence: Sequence) -> int:
        """Returns the tokens that are guessed to be sampled yet, at least 1."""
        expected = self._history.estimate(sequence.output_group, sequence.max_tokens)
        return max(1, expected - len(sequence.output) - sequence.num_in_flight)

    def risky_output_left(self, sequence: Sequence) -> float:
        """Returns the tokens that are to be sampled yet if the output becomes OUTPUT_RISK times as
        long as the guess, or as what there is of it: also who is past the guess may go on for long,
        though not for more than `most_risky_left`.
        """
        return self.risky_outputs_left(sequence.output_group, [sequence])[0]

    def risky_outputs_left(self, output_group: str, sequences: Iterable[Sequence]) -> list[float]:
        """Returns the same of sequences of one group."""
        guess = self._history.estimate(output_group, _UNBOUNDED)
        return [_risky_left(sequence, guess) for sequence in sequences]

    def most_risky_left(self, output_group: str) -> float:
        """Returns the most that `risky_output_left` says of a sequence of that group."""
        return OUTPUT_RISK * self._history.estimate(output_group, _UNBOUNDED)

    def prefill_s(self, sequence: Sequence, start: int | None = None) -> float:
        """Returns the seconds that prefilling takes from position `start` on; None: of what is
        uncomputed, and before it has begun, of what the prefix index did not have when it came.
        """
        if start is None:
            start = sequence.num_computed or sequence.expected_prefix
        return self._latency.prefill_seconds(start, sequence.num_known, self.chunk)

    def prefill_share_s(self, sequence: Sequence) -> float:
        """Returns the same of an engine that has other prefills besides, as slow as they are."""
        start = sequence.num_computed or sequence.expected_prefix
        share_s = self._latency.prefill_share_seconds(start, sequence.num_known, self.chunk)
        return self._prefill_slowdown * share_s

    def decodes_s(self, sequence: Sequence, most: float = math.inf) -> float:
        """Returns the seconds that the decodes after the prefill add to iterations, for as many as
        there are on average, but `most` at most.
        """
        decodes = self.decodes_left(sequence, most)
        context = sequence.num_known + int(decodes / 2)
        return decodes * self._latency.decode_seconds(context, self.chunk)

    def decodes_left(self, sequence: Sequence, most: float = math.inf) -> float:
        """Returns how many tokens of output are left on average, but `most` at most, and at least
        1.
        """
        mean = self._history.mean(sequence.output_group, sequence.max_tokens)
        return max(1.0, min(mean - sequence.num_output, most))

    def decodes_until_due_s(self, sequence: Sequence, now: float) -> float:
        """Returns what `decodes_s` does, but for no more decodes than fit before the deadline, an
        iteration each: later ones stand in nobody's way until then.
        """
        most = max(0.0, sequence.due_at - now) / max(self.iteration_s, 1e-9)
        return self.decodes_s(sequence, most)

    def seconds(self, sequence: Sequence) -> float:
        """Returns all that is left on average, prefill and decodes, so that sums over a queue are
        not biased.
        """
        return self.prefill_s(sequence) + self.decodes_s(sequence)

    def prefill_due_at(
        self,
        sequence: Sequence,
        decodes_s: float,
        now: float,
        short_s: float = 0.0,
        long_s: float = 0.0,
        is_cautious: bool = False,
    ) -> float:
        """Returns the instant by which the work of a waiting sequence is to be done, of which
        `decodes_s` is for its decodes.

        Its decodes are work for those behind it, but its first token need not wait for them. So
        the instant is later by them than the deadline of that token. With a TTLT it is earlier by
        the time in which the expected output can follow, but at most by half of the time left: the
        output may be shorter, and decodes that are in a hurry shorten iterations. It is earlier by
        `short_s` all the same, which a short output takes, and by `long_s`, which a long one does,
        within that half. Where it is cautious the expected output is given all the time that it
        takes.
        """
        due_at = sequence.due_at + decodes_s
        if sequence.request.targets.ttlt_s is None:
            return due_at
        left_s = max(0.0, sequence.due_at - now)
        decoding_s = self.decoding_s(sequence)
        half = min(left_s / 2, max(decoding_s, long_s))
        least = min(decoding_s, left_s if is_cautious else short_s)
        return due_at - max(half, least)

    def served_by(self, sequence: Sequence) -> float:
        """Returns the instant by which the prefill of a waiting sequence is best done, which says
        its place in the order.

        With a TTFT that is when it is due: being answered earlier is worth nothing. With a TTLT its
        output may be longer than the guess, OUTPUT_RISK times at most, and each second for which it
        waits is one that it may miss then: it goes earlier by that, but not before those that were
        due when it arrived.
        """
        if sequence.request.targets.ttlt_s is None:
            return sequence.prefill_due_at
        risky = sequence.due_at - OUTPUT_RISK * self.decoding_s(sequence)
        return min(sequence.prefill_due_at, max(sequence.request.arrived_at, risky))

    def decoding_s(self, sequence: Sequence) -> float:
        """Returns the time in which the output that is left can follow, a token an iteration."""
        return self.output_left(sequence) * self.iteration_s

    def short_decoding_s(self, sequence: Sequence) -> float:
        """Returns the same of an output that is shorter than nearly all of its kind."""
        left = self._history.short(sequence.output_group) - sequence.num_output
        return max(0.0, left) * self.iteration_s

    def long_decoding_s(self, sequence: Sequence) -> float:
        """Returns the same of an output that is longer than most of its kind."""
        longest = self._history.long(sequence.output_group, sequence.max_tokens)
        return max(1.0, longest - sequence.num_output) * self.iteration_s


def _risky_left(sequence: Sequence, guess: int) -> float:
    """Returns `risky_output_left` of a sequence whose group's outputs are guessed to be so long."""
    num_output = sequence.num_output
    output_left = max(1, min(sequence.max_tokens, guess) - num_output)
    return min(OUTPUT_RISK * (num_output + output_left) - num_output, OUTPUT_RISK * guess)


class RecentRequests:
    """Knows of the recent requests with targets how costly and how hurried they were, and how many
    of them had to be relegated. The policy says of which.
    """

    def __init__(self) -> None:
        self.num_noted = 0
        self.last_at = -math.inf  # when the last request with targets came, or came back
        self._num_since_stream = WINDOW
        self.shortest_ttft_s = math.inf  # asked for lately; it is forgotten slowly
        self._relegated_share = 0.0  # weighted by recency
        self._work_s = self._relegated_s = 0.0  # of all; sums, weighted by recency
        self._works_s: deque[float] = deque()  # of the last WINDOW, the oldest first
        self._sorted: list[float] = []  # the same, the smallest first

    def note_arrival(self, is_stream: bool) -> None:
        """Takes note of a request, whatever it asks for; `is_stream`: with a TBT."""
        self._num_since_stream = 0 if is_stream else self._num_since_stream + 1

    @property
    def has_streams(self) -> bool:
        """Whether one of the last WINDOW requests had a TBT."""
        return self._num_since_stream < WINDOW

    def note_work(self, work_s: float, now: float) -> None:
        """Takes note of the work of a request with targets that comes now, or comes back after it
        lost its pages, whoever sends it.
        """
        self.last_at = now
        self._relegated_s *= 1 - REQUEST_WEIGHT
        self._work_s += work_s - REQUEST_WEIGHT * self._work_s

    def note_given_up(self, work_s: float) -> None:
        """Takes note that a request with targets was relegated, with that much work left."""
        self._relegated_s += work_s

    def note(self, work_s: float, ttft_s: float | None) -> None:
        """Takes note of a request with that much work, and with that TTFT target if it has one."""
        self.num_noted += 1
        self._relegated_share *= 1 - REQUEST_WEIGHT
        self.shortest_ttft_s *= 1 + REQUEST_WEIGHT
        if ttft_s is not None:
            self.shortest_ttft_s = min(self.shortest_ttft_s, ttft_s)
        if len(self._works_s) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._works_s.popleft())]
        self._works_s.append(work_s)
        insort(self._sorted, work_s)

    def note_relegation(self) -> None:
        """Takes note that one of the requests was relegated."""
        self._relegated_share += REQUEST_WEIGHT

    @property
    def is_calm(self) -> bool:
        """Whether nobody had to be relegated lately, so that the queue counts as feasible."""
        return self._relegated_share <= CALM

    @property
    def is_overloaded(self) -> bool:
        """Whether so many had to be relegated lately that who is begun should be on time as
        expected, and not in the best case alone.
        """
        return self._relegated_share >= OVERLOADED

    @property
    def much_is_given_up(self) -> bool:
        """Whether so much of the work was relegated lately that doing it all the same would slow
        the others down.
        """
        return self._relegated_s >= OVERLOADED * self._work_s > 0

    @property
    def costliest_s(self) -> float:
        """The work in seconds of the costliest of them; 0 before the first."""
        return self._sorted[-1] if self._sorted else 0.0

    def costly_s(self, share: float) -> float:
        """Returns the work in seconds that the costliest `share` of them reach or exceed; inf while
        too few are known to tell.
        """
        if len(self._sorted) < WINDOW // 10:
            return math.inf
        return self._sorted[int((1 - share) * len(self._sorted))]
