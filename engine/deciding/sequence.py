"""The engine's token state for one request. Owned by the scheduler; the executor only reads it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from engine.deciding.request import Request


class Status(Enum):
    WAITING = "waiting"  # some known tokens have no KV yet: prompt, or output lost to a preemption
    DECODING = "decoding"  # all known tokens but the last sampled one have KV
    ENDING = "ending"  # its last token is in flight: nothing is left to compute
    FINISHED = "finished"


class FinishReason(Enum):
    STOP = "stop"  # a stop token, or (found by the front end) a stop string
    LENGTH = "length"  # max_tokens, or the context length
    CANCELLED = "cancelled"  # the caller left
    TIMEOUT = "timeout"  # the RPC's own deadline passed
    DISPLACED = "displaced"  # it waited, and gave its place to more important work
    ERROR = "error"  # the engine could not go on with it; never silent


@dataclass(eq=False, slots=True)
class Sequence:
    """`num_computed` KV positions of the `num_known` = prompt + output tokens are in `pages`.

    A token in flight is being computed: which it is nobody here can say, but it counts as known,
    since its position is certain and the executor has it on the device for the next iteration.
    """

    request: Request
    admitted_at: float  # when the engine took it in (>= request.arrived_at)
    output: list[int] = field(default_factory=list)
    num_in_flight: int = 0  # 0 or 1: the output token after those of `output`
    num_computed: int = 0
    pages: list[int] = field(default_factory=list)  # page table: ids in order of position
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    relegated: bool = False  # now; a request may be taken back
    num_relegations: int = 0
    prompt_len: int = field(init=False)
    # Deadline of the next token that is not in flight; for a TTLT target, of the last.
    due_at: float = field(init=False)
    in_flight_due_at: float = field(init=False)  # of the one that is
    prefill_due_at: float = field(init=False)  # instant by which to be prefilled to meet due_at
    num_cached: int = 0  # prompt tokens taken from the prefix index instead of computed
    num_preemptions: int = 0
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    worst_tbt_s: float = 0.0
    num_late_tokens: int = 0  # tokens after their deadline (interactive), or late last token
    finished_at: float | None = None

    def __post_init__(self) -> None:
        self.prompt_len = len(self.request.prompt)
        due_at = self.request.token_due_at(len(self.output) + 1)
        self.due_at = self.in_flight_due_at = self.prefill_due_at = due_at

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def num_output(self) -> int:
        return len(self.output) + self.num_in_flight

    @property
    def num_known(self) -> int:
        return self.prompt_len + len(self.output) + self.num_in_flight

    @property
    def num_uncomputed(self) -> int:
        """Known tokens without KV: 1 for a decode, more (or a whole prompt) while waiting."""
        return self.prompt_len + len(self.output) + self.num_in_flight - self.num_computed

    def token_at(self, position: int) -> int:
        prompt = self.request.prompt
        n = len(prompt)
        return prompt[position] if position < n else self.output[position - n]

    def tokens(self, start: int, stop: int) -> list[int]:
        """Known token ids of positions [start, stop)."""
        prompt, n = self.request.prompt, len(self.request.prompt)
        if stop <= n:
            return list(prompt[start:stop])
        return [*prompt[start:n], *self.output[max(0, start - n) : stop - n]]

    def anew(self) -> Sequence:
        """The same request with the same output, of which nothing is computed yet."""
        return replace(
            self,
            output=list(self.output),
            num_in_flight=0,
            num_computed=0,
            num_cached=0,
            pages=[],
            status=Status.WAITING,
        )

    def check(self, page_size: int) -> None:
        """Assert what holds of a sequence in flight between any two calls of the scheduler."""
        if self.status is Status.ENDING:
            assert self.num_in_flight == 1
            assert not self.pages
            return
        assert self.num_computed <= len(self.pages) * page_size
        assert self.num_uncomputed >= 1
        if self.status is Status.DECODING:
            assert self.num_uncomputed == 1

    def __repr__(self) -> str:
        return (
            f"<Sequence {self.id} {self.status.value} {self.num_computed}/{self.num_known}"
            f" pages={len(self.pages)}>"
        )
