"""Where every sequence in flight is: in the queue, among the running, or ending.

    wait ---> waiting ---run---> running ---stop---> ending
                 ^                  |
                 '-----preempt------'                       leave, from everywhere

`partial` are those of the waiting that hold pages: their prefill has begun. `held` are those of the
running that sit an iteration out. The policy gives the waiting their places, and is told here of
everybody who begins to wait, moves on, or waits no longer.
"""

from __future__ import annotations

from collections.abc import Sequence as ListOf

from engine.deciding.plan import Plan
from engine.deciding.policy import Policy
from engine.deciding.queue import Key, SequenceQueue
from engine.deciding.queued_work import QueuedWork
from engine.deciding.sequence import Sequence, Status
from engine.deciding.streams import Streams


class Roster:
    """All sequences of one scheduler that have not finished, by what they do."""

    def __init__(self, policy: Policy) -> None:
        self.sequences: dict[str, Sequence] = {}  # all, by the id of the request
        self.waiting = SequenceQueue()
        self.partial: dict[Sequence, None] = {}
        self.running: dict[Sequence, None] = {}
        self.held: set[Sequence] = set()
        self.context = 0  # sum of `num_known` over the running
        self._streams: Streams | None = None  # the running; None: others than were listed
        self.num_relegated = 0  # of the waiting
        self.work = QueuedWork()  # of the waiting
        self._policy = policy

    @property
    def num_started(self) -> int:
        """Returns how many have a place in the batch: they hold pages, and are not ending."""
        return len(self.running) + len(self.partial)

    @property
    def streams(self) -> Streams:
        """The running sequences: one list for as long as they are the same."""
        if self._streams is None:
            self._streams = Streams(self.running)
        return self._streams

    def last_partial(self) -> Sequence:
        """Returns the last in order of the partial ones, of which there must be some. Their number,
        not the queue's, is what this costs.
        """
        return max(self.partial, key=self.waiting.place)

    def wait(self, sequence: Sequence, now: float) -> None:
        """The sequence begins to wait, for the first time or again."""
        self.sequences[sequence.id] = sequence
        self.waiting.add(sequence, self._policy.enter(sequence, now))
        self.num_relegated += sequence.relegated
        self.work.put(sequence, self._policy.known_work_s(sequence))

    def progress(self, sequence: Sequence) -> None:
        """More of the waiting sequence is computed than before, or less: its place follows."""
        self.waiting.rekey(sequence, self._policy.progress(sequence))
        self.work.put(sequence, self._policy.known_work_s(sequence))

    def relegate(self, sequence: Sequence, key: Key) -> None:
        """The waiting sequence is relegated to the place that `key` says."""
        sequence.relegate()
        self.waiting.rekey(sequence, key)
        self.num_relegated += 1
        self.work.put(sequence, self._policy.known_work_s(sequence))

    def restore(self, sequence: Sequence, key: Key) -> None:
        """The waiting sequence is taken back to the place that `key` says."""
        sequence.restore()
        self.waiting.rekey(sequence, key)
        self.num_relegated -= 1
        self.work.put(sequence, self._policy.known_work_s(sequence))

    def run(self, sequence: Sequence) -> None:
        """The prefill of the waiting sequence is over: it decodes from now on."""
        self._leave_queue(sequence)
        self.running[sequence] = None
        self._streams = None
        self.context += sequence.num_known

    def expect_tokens(self, sequences: ListOf[Sequence], started_at: float) -> list[Sequence]:
        """The iteration that began at `started_at` samples a token of each of these, which run.
        Returns those whose last that is.
        """
        self.context += len(sequences)
        return [s for s in sequences if s.expect_token(started_at)]

    def stop(self, sequence: Sequence) -> None:
        """The running sequence decodes no more."""
        del self.running[sequence]
        self._streams = None
        self.held.discard(sequence)
        self.context -= sequence.num_known

    def preempt(self, sequence: Sequence, now: float) -> int:
        """The pages of a running or partial sequence were taken: it waits for others. Returns how
        many computed tokens were lost.
        """
        num_lost = sequence.preempt()
        if sequence in self.running:
            self.stop(sequence)
            self.wait(sequence, now)
        else:
            del self.partial[sequence]
            self.progress(sequence)
        return num_lost

    def leave(self, sequence: Sequence) -> None:
        """The sequence goes, wherever it is."""
        if sequence in self.running:
            self.stop(sequence)
        elif sequence in self.waiting:
            self._leave_queue(sequence)
        del self.sequences[sequence.id]

    def _leave_queue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self._policy.leave(sequence)
        self.partial.pop(sequence, None)
        self.num_relegated -= sequence.relegated
        self.work.drop(sequence)

    def check(self, in_flight: Plan | None) -> None:
        """Asserts what holds between any two calls of the scheduler, given the plan in flight."""
        sequences = list(self.sequences.values())
        waiting = {s for s in sequences if s.status is Status.WAITING}
        assert waiting == set(self.waiting), "queue and sequences disagree"
        self._policy.check(self.waiting)
        self.work.check(waiting)
        assert set(self.partial) == {s for s in waiting if s.pages}
        assert self.num_relegated == sum(s.relegated for s in waiting)
        assert {s for s in sequences if s.status is Status.DECODING} == set(self.running)
        assert self.streams == list(self.running)
        assert self.held <= set(self.running)
        assert self.context == sum(s.num_known for s in self.running)
        sampling = [] if in_flight is None else in_flight.sampling
        sampled = {s for s in sampling if s.status is not Status.FINISHED}
        assert all(s.num_in_flight == (s in sampled) for s in sequences)
