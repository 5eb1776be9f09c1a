"""The engine's state of one request, and the moves by which alone it changes.

What is known of a sequence is the tokens of its prompt, those that were sampled (`output`), and at
most one token in flight: an iteration samples it right now. Which token that is nobody here can
say, but it counts as known, since its position is certain and the executor has it on the device for
the next iteration. Keys and values (KV) are computed position by position, from the first on:

    | prompt              | output          | in flight |
    0                     prompt_len        ^           num_known
    | computed                       | uncomputed       |
    0                                num_computed       num_known

A sequence waits while more than its newest token is uncomputed: its prompt, or all that it had when
its pages were taken. It decodes while nothing but its newest token is, and it is ending when its
last token is in flight, as then nothing is left to compute. The moves and what each needs:

    move          from                        to                        only if
    ----          ----                        --                        -------
    take_prefix   waiting                     waiting                   nothing is computed
    prefill       waiting                     waiting                   a known token is left
    expect_token  waiting, decoding           decoding, ending if last  no token is in flight
    take_token    waiting, decoding, ending   as it was                 a token is in flight
    preempt       waiting, decoding           waiting                   it holds no pages any more
    prefill_by    waiting                     waiting
    count_as      waiting                     waiting
    relegate      waiting                     waiting                   it is not relegated
    restore       waiting                     waiting                   it is relegated
    restart       waiting, decoding, ending   finished; a copy waits    it holds no pages any more
    finish        waiting, decoding, ending   finished                  it holds no pages any more

A move that is not in the table raises IllegalMove and changes nothing. The scheduler makes the
moves, but for `prefill_by` and `count_as`, by which the policy says when the prefill is due and how
much the request matters. Only `pages` is not changed by moves: the page pool adds to that list and
empties it. Everybody else only reads.

Instants and durations are in seconds, on the clock of `Request.arrived_at`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from engine.deciding.request import Pace, Request


class Status(Enum):
    """The states of a sequence; the module says what they mean."""

    WAITING = "waiting"
    DECODING = "decoding"
    ENDING = "ending"
    FINISHED = "finished"


# Every token passes here. Looking up `Status.DECODING` is slow in Python 3.11, so each status has a
# name of its own; and a tuple has the likeliest first, as Enum's comparison finds all others.
_WAITING, _DECODING, _ENDING, _FINISHED = Status
_UNTIL_ENDING = (_DECODING, _WAITING)


class FinishReason(Enum):
    """Why a request ended."""

    STOP = "stop"  # a stop token, or (found by the front end) a stop string
    LENGTH = "length"  # max_tokens, or the context length
    CANCELLED = "cancelled"  # the caller left
    TIMEOUT = "timeout"  # the RPC's own deadline passed
    DISPLACED = "displaced"  # it waited, and others had its place: in the queue, or for too long
    REJECTED = "rejected"  # never admitted: by its policy, it could not be served in time
    WOULD_BE_LATE = "would_be_late"  # never admitted: by its forecast, and it asked for that
    ERROR = "error"  # the engine could not go on with it; never silent


_STOP, _LENGTH = FinishReason.STOP, FinishReason.LENGTH


class IllegalMove(Exception):
    """A sequence was asked for a move that its state does not allow: a fault of the caller."""


@dataclass(eq=False, slots=True)
class Sequence:
    """The state of one request, as the module describes it.

    A sequence in the middle of its life, of which a prefix is computed already, is made by stating
    its `pages` and `num_computed`: calibration measures with such.
    """

    request: Request
    admitted_at: float  # when the engine took it in (>= request.arrived_at)
    output: list[int] = field(default_factory=list)
    num_in_flight: int = 0  # 0 or 1
    num_computed: int = 0
    pages: list[int] = field(default_factory=list)  # page table: ids in order of position
    status: Status = _WAITING
    finish_reason: FinishReason | None = None
    relegated: bool = False  # now; a request may be taken back
    num_relegations: int = 0
    # Of the request, which is asked for every token:
    id: str = field(init=False)
    prompt_len: int = field(init=False)
    max_tokens: int = field(init=False)
    stop_token_ids: frozenset[int] = field(init=False)
    tbt_s: float | None = field(init=False)
    pace: Pace | None = field(init=False)
    output_group: str = field(init=False)
    first_due_at: float = field(init=False)  # deadline of the first token
    # Deadline of the next token that is not in flight; for a TTLT target, of the last.
    due_at: float = field(init=False)
    in_flight_due_at: float = field(init=False)  # deadline of the token in flight
    prefill_due_at: float = field(init=False)  # instant by which to be prefilled to meet due_at
    importance: int = field(init=False)  # what it counts as: the request's, or less
    expected_prefix: int = 0  # prompt tokens that the prefix index had when it came
    num_cached: int = 0  # prompt tokens taken from the prefix index instead of computed
    num_preemptions: int = 0
    first_scheduled_at: float | None = None  # start of the first iteration that computed any of it
    first_token_at: float | None = None
    last_token_at: float | None = None
    worst_tbt_s: float = 0.0
    num_late_tokens: int = 0  # tokens after the first that came after their deadline
    # The TBT that would have made none of them late, with a TTFT that was met; None: none was.
    tbt_needed_s: float | None = None
    finished_at: float | None = None

    def __post_init__(self) -> None:
        request, sampling = self.request, self.request.sampling
        self.id, self.prompt_len = request.id, len(request.prompt)
        self.max_tokens, self.stop_token_ids = sampling.max_tokens, sampling.stop_token_ids
        self.tbt_s, self.first_due_at = request.targets.tbt_s, request.token_due_at(1)
        self.pace = None if self.tbt_s is None else Pace(self.tbt_s, request.targets.max_gap)
        self.output_group = request.output_group
        due_at = request.token_due_at(len(self.output) + 1)
        self.due_at = self.in_flight_due_at = self.prefill_due_at = due_at
        self.importance = request.importance

    # What is known and what is computed

    @property
    def num_output(self) -> int:
        """Returns the number of output tokens, the one in flight among them."""
        return len(self.output) + self.num_in_flight

    @property
    def num_known(self) -> int:
        return self.prompt_len + len(self.output) + self.num_in_flight

    @property
    def num_uncomputed(self) -> int:
        """Returns how many known tokens have no KV: 1 for a decode, more (or all) while waiting."""
        return self.prompt_len + len(self.output) + self.num_in_flight - self.num_computed

    def token_at(self, position: int) -> int:
        prompt = self.request.prompt
        n = len(prompt)
        return prompt[position] if position < n else self.output[position - n]

    def tokens(self, start: int, stop: int) -> list[int]:
        """Returns the token ids of positions [start, stop), none of them in flight."""
        prompt, n = self.request.prompt, len(self.request.prompt)
        if stop <= n:
            return list(prompt[start:stop])
        return [*prompt[start:n], *self.output[max(0, start - n) : stop - n]]

    # Moves

    def take_prefix(self, length: int) -> None:
        """The KV of the first `length` prompt tokens lies in pages that it has come to share."""
        if self.status is not _WAITING or self.num_computed or not 0 < length < self.prompt_len:
            raise self._illegal(f"take a prefix of {length}")
        self.num_computed = length
        self.num_cached = max(self.num_cached, length)

    def prefill(self, length: int, started_at: float) -> None:
        """An iteration that began at `started_at` computes the next `length` tokens, which leaves
        at least one known token for a later one.
        """
        if self.status is not _WAITING or not 0 < length < self.num_uncomputed:
            raise self._illegal(f"prefill {length} tokens")
        if self.first_scheduled_at is None:
            self.first_scheduled_at = started_at
        self.num_computed += length

    def expect_token(self, started_at: float) -> bool:
        """An iteration that began at `started_at` computes all that is uncomputed and samples the
        next token, so that what is due next is the token after it. Returns whether there can be
        none after it, as then nothing is left to compute.
        """
        if self.num_in_flight or self.status not in _UNTIL_ENDING:
            raise self._illegal("expect a token")
        if self.status is _WAITING:
            self.status = _DECODING
            if self.first_scheduled_at is None:
                self.first_scheduled_at = started_at
        num_output = len(self.output)
        self.num_computed = self.prompt_len + num_output
        self.num_in_flight = 1
        self.in_flight_due_at = self.due_at
        num_output += 1
        if self.tbt_s is not None:  # Request.token_due_at, without the way there
            self.due_at = self.first_due_at + num_output * self.tbt_s
        if num_output < self.max_tokens:
            return False
        self.status = _ENDING
        return True

    def take_token(self, token_id: int, now: float) -> FinishReason | None:
        """The token in flight came out at `now`. Returns why it is the last, None if it is not."""
        if not self.num_in_flight or self.status is _FINISHED:
            raise self._illegal("take a token")
        self.num_in_flight = 0
        output, stops, last = self.output, self.stop_token_ids, self.last_token_at
        output.append(token_id)
        if last is None:
            self.first_token_at = now
        else:
            if now - last > self.worst_tbt_s:
                self.worst_tbt_s = now - last
            if now > self.in_flight_due_at:
                self._note_late(now)
        self.last_token_at = now
        count = len(output)
        if stops and token_id in stops and count > self.request.sampling.min_tokens:
            return _STOP
        return None if count < self.max_tokens else _LENGTH

    def _note_late(self, now: float) -> None:
        """A token after the first came late."""
        self.num_late_tokens += 1
        if self.tbt_s is not None and self.first_token_at is not None:
            since = max(self.first_due_at, self.first_token_at)
            needed_s = (now - since) / (len(self.output) - 1)
            self.tbt_needed_s = max(self.tbt_needed_s or 0.0, needed_s)

    def preempt(self) -> int:
        """Its pages were taken: all is to be computed again. Returns how many tokens were lost."""
        if self.status not in _UNTIL_ENDING or self.pages:
            raise self._illegal("be preempted")
        num_lost, self.num_computed = self.num_computed, 0
        self.status = _WAITING
        self.num_preemptions += 1
        return num_lost

    def prefill_by(self, due_at: float) -> None:
        """Its policy has found out when it must be prefilled to meet its target."""
        if self.status is not _WAITING:
            raise self._illegal("be given a deadline for its prefill")
        self.prefill_due_at = due_at

    def count_as(self, importance: int) -> None:
        """Its policy has found out how much it matters: as its request says, or less."""
        if self.status is not _WAITING or importance > self.request.importance:
            raise self._illegal(f"count as {importance}")
        self.importance = importance

    def relegate(self) -> None:
        """It is moved behind those that are not relegated."""
        if self.status is not _WAITING or self.relegated:
            raise self._illegal("be relegated")
        self.relegated = True
        self.num_relegations += 1

    def restore(self) -> None:
        """It is taken back among those that are not relegated."""
        if self.status is not _WAITING or not self.relegated:
            raise self._illegal("be restored")
        self.relegated = False

    def restart(self) -> Sequence:
        """It is begun again: returns a copy with the same output, of which nothing is computed, and
        is finished itself, so that an iteration in flight that has it computes for nobody.
        """
        if self.status is _FINISHED or self.pages:
            raise self._illegal("be restarted")
        again = replace(
            self,
            output=list(self.output),
            num_in_flight=0,
            num_computed=0,
            expected_prefix=0,
            num_cached=0,
            pages=[],
            status=_WAITING,
        )
        self.status, self.finish_reason = _FINISHED, FinishReason.ERROR
        return again

    def finish(self, reason: FinishReason, now: float) -> None:
        """Its request has ended, for that reason."""
        if self.status is _FINISHED or self.pages:
            raise self._illegal(f"finish ({reason.value})")
        self.status, self.finish_reason, self.finished_at = _FINISHED, reason, now

    def _illegal(self, move: str) -> IllegalMove:
        return IllegalMove(f"{self!r} cannot {move}")

    def check(self, page_size: int) -> None:
        """Asserts what holds of a sequence in flight between any two calls of the scheduler."""
        if self.status is _ENDING:
            assert self.num_in_flight == 1
            assert not self.pages
            return
        assert self.num_computed <= len(self.pages) * page_size
        assert self.num_uncomputed >= 1
        if self.status is _DECODING:
            assert self.num_uncomputed == 1

    def __repr__(self) -> str:
        in_flight = " +1 in flight" if self.num_in_flight else ""
        return (
            f"<Sequence {self.id} {self.status.value} {self.num_computed}/{self.num_known}"
            f"{in_flight} pages={len(self.pages)}>"
        )
