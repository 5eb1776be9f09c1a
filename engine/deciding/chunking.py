"""How large the next prefill chunk is, and which decodes sit an iteration out.

The budget. An iteration has the decodes, and a prefill chunk in what room they leave. How long it
may take is said by pace.py: no running stream may get a token late. Besides, nobody who arrives
while it runs may wait too long for its end (`response_s`), but for that an iteration is never
shorter than LOST_GAP times what the decodes need by themselves. The largest chunk whose predicted
duration keeps the budget is latency.py's to find; none is larger than the size at which throughput
saturates, since beyond it a chunk only delays the others. While the queue is light there is no
hurry, and no raw gap between two tokens may exceed the stream's TBT target.

Thrift. Often it is a stream with a TBT target that limits the chunk. It gets a token from each
iteration, whether that has a chunk or not. So what a chunk of n tokens costs is the time that it
adds, t(n) - t(0), and its yield is

    n / (t(n) - t(0))    tokens per second of slack

With t linear in n the yield is the same for every n, and taking all that fits is right. But t is
linear only within the segments of the profile, and jumps between them: matrix units like some sizes
better. So the yield can be clearly better (by the factor THRIFT) at the first size of some segment,
or at the largest:

    yield better at a smaller size    take that one; the slack that it leaves is kept for later
    yield better at a larger size     take none now: an iteration of decodes alone is shorter than
                                      the TBT, so it adds slack, until the larger size fits. It must
                                      be able to fit, within the longest gap that is allowed

The yields are compared rather than the tokens that fit now, as how much fits depends also on the
margin for errors of prediction, and on how much slack the stream happens to have.

Wishes. A stream that only has a deadline for its last token (TTLT) has all its tokens after

    its tokens * t(0)  +  the prefill work that is done meanwhile

and whoever waits for that work loses by waiting what the stream gains by putting it off. So to put
it off saves no time in sum; and iterations that are hardly longer than t(0) compute so few prefill
tokens that less may be served than arrives, whereupon every stream is a hurried one: a collapse.
What does save time is to do the work where a token of it delays the streams least. So where such a
stream would be late with a longer iteration (`wished_s`, its output being OUTPUT_RISK times as long
as the guess, or as what there is of it), the iteration is the one with the best yield, the largest
of those that are about as good. It takes LONGEST_WISH t(0) at most, by when three quarters of the
time are for prefills, and LOST_GAP t(0) at least, and no stream makes it shorter, however little
time it has left.

Crowds. Where somebody could be computed, but finds no place in the batch or no memory, it is the
decodes for which everybody waits: a place is free once an output has ended. Large chunks fill the
places quickly, with many who begin together and end together, and between that the iterations are
decodes alone, in which the engine has time for prefills and nobody to compute. So as long as places
are scarce all streams are taken to wish for the shortest iteration: the chunk is that of the best
yield, and prefills are spread beside the decodes. Places are scarce for as long as the output takes
of who found none: until then most of those that were in its way have ended, and let somebody in.
They are only where some iterations had nothing but decodes lately for want of a place (STARVED): a
memory can be full while there always is a prefill to do, and it is prefills that all wait for.

All that is said of whom the engine promised to have on time. Where much work is given up, the
others (the background) have what is left over, and nothing is where it may take a deadline of
somebody else:

    a stream's     their chunk ends where one would be late for a longer iteration, as above but
                   without a floor. So there is no time for them while a stream is in a hurry, which
                   is so until its deadline
    an arrival's   their iterations are short (LEFT_OVER), so that it hardly waits for the end of
                   one; and they leave the streams with a TBT the slack that it takes to have one
                   long iteration for it

Holding. Decodes that only have a deadline for their last token (TTLT) sit out, those with the most
time for each token that they have left first,

    where the decodes alone take longer than an interactive stream allows, as no chunk size helps
    then: as many as it takes, of those with time for twice as many iterations as they need
    where prefills are in danger, the waiting work being a good part of the slack that it has: all
    that have time for twice as many iterations, as long as iterations are of late, even if their
    output is OUTPUT_RISK times as long as the guess

One that sits out has its turn later: that saves no work, but puts off what has time for the sake of
what has none. Streams with a TBT always decode; what slack they have is spent on longer iterations.

Who waits for a prefill today runs tomorrow, and those that sat out run with it. The decodes of all
must not come to take longer than the pace that some of them were promised: so nobody sits out for
prefills where they take more than AMPLE of it, and then it is the decodes that slow the prefills.
Nor does anybody unless the last iteration had prefills, as it may be memory that they wait for; for
the same reason those that sit out, which keep their pages, may have only so many together.
"""

from __future__ import annotations

import math

from engine.deciding.demand import Demand
from engine.deciding.latency import LatencyModel, add_chunk
from engine.deciding.pace import (
    LOST_GAP,
    Budget,
    PaceConfig,
    Urgent,
    deadline_budget,
    iteration_budget,
    most_urgent,
    spare_slack_s,
    wished_s,
)
from engine.deciding.plan import Work
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams

THRIFT = 1.05  # another size of chunk must be at least this much more efficient
LIGHT = 0.05  # load of the queue below which there is no hurry
ENDANGERED = 0.5  # load of the queue from which decodes that have time sit out for it
PATIENCE = 2.0  # who sits out has time for this many times the iterations that it needs
AMPLE = 0.75  # of a pace: as long as all decodes take no more, some may sit out for prefills
LEFT_OVER = 3 / 5  # of the longest iteration after which arrivals are answered in time
STARVED = 0.05  # share of the iterations that have decodes alone, for want of places
STARVED_WEIGHT = 0.02  # of the newest iteration in that share
_ONE_DECODE = Work(1, 1)
LONGEST_WISH = 4.0  # longest iteration that grants a wish, in units of the decodes alone


class Chunking:
    """Decides on the room for prefills in one iteration at a time; `begin` is called for each."""

    def __init__(
        self, pace: PaceConfig, latency: LatencyModel, demand: Demand, max_held_pages: int
    ) -> None:
        """No chunk is larger than `demand.chunk` tokens."""
        self._latency = latency
        self._demand = demand
        self._max_held_pages = max_held_pages
        self._crowded_until = -math.inf
        self._starved_share = 0.0  # STARVED, of recent iterations
        self._finds_no_place = False  # somebody, since the last launch
        self._pace = pace
        # Of the present iteration:
        # What `hold` saw of those who run: the most urgent of each pace, and what they take.
        self._looked: tuple[float, Streams, list[Urgent], float] | None = None
        self._decodes, self._now = Streams(), 0.0
        self._response_s = math.inf
        self._idle_s = 0.0  # what the decodes alone take
        self._budget = Budget(math.inf, None)
        self._wished_s = math.inf
        self._is_crowded = False
        self.has_wish = False  # of the present iteration, or the last

    def hold(
        self, running: Streams, work: Work, now: float, load: float, prefills_go: bool
    ) -> list[Sequence]:
        """Returns the running sequences that sit this iteration out, as the module says.

        `work` is that of all of them, and `load` what it is in `begin`; `prefills_go` says whether
        the last iteration had any.
        """
        self._looked = None
        if not running.by_pace or not running.elastic_by_group:
            return []
        predict, margin = self._latency.predict, self._latency.margin
        urgent, expected_s = most_urgent(running, now), predict(work)
        self._looked = now, running, urgent, expected_s
        budget_s = iteration_budget(self._pace, urgent, 0.0, now).seconds
        endangered = load >= ENDANGERED and prefills_go
        if endangered:
            shortest_s = min([pace.tbt_s for pace in running.by_pace])
            endangered = expected_s * margin <= AMPLE * shortest_s
        if not endangered and expected_s * margin <= budget_s:
            return []
        iteration_s = max(expected_s, self._demand.iteration_s)
        left, risky_left = self._demand.output_left, self._demand.risky_outputs_left
        spare = []
        for group, (_, streams) in running.elastic_by_group.items():
            elastic = [s for s in streams if s.due_at > now]
            for s, tokens in zip(elastic, risky_left(group, elastic), strict=True):
                spare.append((deadline_budget(s.due_at, tokens, now), s.id, s))
        held: list[Sequence] = []
        pages = 0
        for per_token_s, _, sequence in sorted(spare, reverse=True):
            pages += len(sequence.pages)
            if predict(work) * margin > budget_s:
                has_time = (
                    deadline_budget(sequence.due_at, left(sequence), now) >= PATIENCE * expected_s
                )
            else:
                has_time = endangered and per_token_s >= PATIENCE * iteration_s
            if not has_time or pages > self._max_held_pages:
                break
            held.append(sequence)
            work = work._replace(
                num_decodes=work.num_decodes - 1,
                decode_context=work.decode_context - sequence.num_known,
            )
        return held

    def begin(
        self, decodes: Streams, work: Work, load: float, response_s: float, now: float
    ) -> None:
        """An iteration with these decodes, and so with that work, is planned for the instant `now`.

        `load` is the waiting work over the slack that it has. An iteration of `response_s` seconds
        is the longest after which those who arrive meanwhile can still be answered in time.
        """
        looked = self._looked
        if looked is not None and looked[0] == now and looked[1] is decodes:  # nobody sits out
            _, _, urgent, floor_s = looked
        else:
            urgent, floor_s = most_urgent(decodes, now), self._latency.predict(work)
        self._idle_s = floor_s
        self._decodes, self._now = decodes, now
        self._response_s = response_s
        most_gap = 1.0 if load < LIGHT else math.inf
        least_s = self._latency.predict(_ONE_DECODE)
        budget = iteration_budget(self._pace, urgent, floor_s, now, most_gap, least_s)
        longest_s = max(response_s, LOST_GAP * floor_s)
        if longest_s < budget.seconds:
            budget = budget._replace(seconds=longest_s)
        self._budget = budget
        left, most_left = self._demand.risky_output_left, self._demand.most_risky_left
        self._wished_s = wished_s(decodes, left, most_left, self._budget.seconds, now)
        self._is_crowded = now < self._crowded_until and self._starved_share >= STARVED
        self.has_wish = self._wished_s < self._budget.seconds

    def crowded_out(self, sequence: Sequence, now: float) -> None:
        """Takes note that neither batch nor memory has a place for the sequence, see the module."""
        self._crowded_until = now + self._demand.decoding_s(sequence)
        self._finds_no_place = True

    def launched(self, has_prefills: bool) -> None:
        """Takes note that an iteration with or without prefills was launched."""
        is_starved = self._finds_no_place and not has_prefills
        self._starved_share += STARVED_WEIGHT * (is_starved - self._starved_share)
        self._finds_no_place = False

    def room(self, work: Work, start: int, num_left: int, left_over: bool = False) -> int:
        """Returns how many tokens, from position `start` on, of a prefill with `num_left` tokens
        left may join the iteration that has `work` so far. One that is to have what is `left_over`
        makes no stream late.
        """
        limit = min(self._demand.chunk - work.num_prefill, num_left)
        if limit <= 0:
            return 0
        granted_s = 0.0 if self._is_crowded else self._wished_s
        shortest_s = max(granted_s, self._latency.margin * (LOST_GAP * self._idle_s))
        if shortest_s < self._budget.seconds and not work.num_prefill:
            seconds = max(granted_s, self._cheapest_s(work, start))
            if seconds < self._budget.seconds:
                self._budget = Budget(seconds, None)
        longest_s = self._budget.seconds
        if left_over:
            longest_s = min(longest_s, self._wished_s, self._left_over_s)
        if longest_s == math.inf:
            return limit
        length = self._latency.largest_chunk(work, start, limit, longest_s)
        if length == 0 and not work.num_tokens:
            return 1  # an iteration computes something, however little time there is
        if left_over:
            return length
        if 0 < length < limit and not work.num_prefill and self._budget.tbt_s is not None:
            return self._thrifty(work, start, length, self._budget.tbt_s)
        return length

    @property
    def _left_over_s(self) -> float:
        """How long the iteration may take for a prefill that was given up, margin included."""
        if self._response_s == math.inf:
            return math.inf  # nobody asks for a TTFT
        short_s = max(LEFT_OVER * self._response_s, LOST_GAP * self._idle_s)
        spare_s = spare_slack_s(self._pace, self._decodes, self._now)
        return min(short_s, spare_s - self._response_s)

    def _cheapest_s(self, work: Work, start: int) -> float:
        """Returns how long the iteration takes in which prefill tokens from position `start` on
        delay the decodes least, margin included.
        """
        predict, margin = self._latency.predict, self._latency.margin
        idle_s = self._idle_s
        longest_s = margin * LONGEST_WISH * idle_s
        most = self._latency.largest_chunk(work, start, self._demand.chunk, longest_s)
        steps = [n for n in self._latency.chunk_steps(work, self._demand.chunk) if n <= most]
        sizes = {most, *steps, *(n - 1 for n in steps)} - {0}
        took_s = {n: predict(add_chunk(work, start, n)) for n in sizes}
        rates = {n: n / max(s - idle_s, 1e-9) for n, s in took_s.items()}
        best = max(rates.values(), default=0.0)
        good = max((n for n, rate in rates.items() if THRIFT * rate >= best), default=0)
        return margin * max(LOST_GAP * idle_s, took_s.get(good, 0.0))

    def _thrifty(self, work: Work, start: int, length: int, tbt_s: float) -> int:
        """Returns how many of the `length` tokens that fit to take, where a stream with that TBT is
        what limits.
        """
        predict, margin = self._latency.predict, self._latency.margin
        idle_s = self._idle_s
        took_s = predict(add_chunk(work, start, length))
        clearly_better = THRIFT * (length / max(took_s - idle_s, 1e-9))
        best, best_rate = length, clearly_better
        longest_s = min(self._budget.max_gap * tbt_s, self._response_s)
        for size in self._latency.chunk_steps(work, self._demand.chunk):
            took_s = predict(add_chunk(work, start, size))
            rate = size / max(took_s - idle_s, 1e-9)
            if size <= length:
                if rate > best_rate:
                    best, best_rate = size, rate
            elif rate > clearly_better and idle_s < tbt_s < took_s and margin * took_s <= longest_s:
                return 0
        return best
