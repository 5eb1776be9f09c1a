"""One call: its state, its metrics, its log line, and the messages of one that generates."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import grpc
import structlog

from engine.deciding.plan import Accepted
from engine.deciding.request import EVERYBODY_ELSE
from engine.deciding.sequence import FinishReason
from proto.niyama.v1 import inference_pb2 as pb
from server.admission.ledger import LedgerLink
from server.admission.places import Entry
from server.convert import outbound
from server.convert.inbound import Asked
from server.errors import CallError, Refusal, Refused
from server.generation import Ended, Generation, Output, Piece, RelegatedAt
from server.listening.deliveries import DISPLACED_S, Delivery
from server.metrics import Metrics
from server.promises import is_overdue, result

log = structlog.get_logger()

# The client's clock for its deadline runs a little ahead of ours: its cancellation comes first.
DEADLINE_SKEW_S = 0.05
GENERATING = frozenset({"Generate", "GenerateStream"})
# Why the engine is told to end what is left of a call, by the call's outcome; else CANCELLED.
_REASONS = {"DEADLINE_EXCEEDED": FinishReason.TIMEOUT, "INTERNAL": FinishReason.ERROR}


class Call:
    """A call of the RPC `rpc`, from its arrival on.

    One that generates goes through `enter` when it asks for a place in the queue, `begin` when the
    engine has it, and `start` when something of it is about to be sent. `close` comes at the end,
    whatever happened.
    """

    asked: Asked
    generation: Generation
    delivery: Delivery

    def __init__(
        self,
        rpc: str,
        arrived_at: float,
        context: grpc.aio.ServicerContext[Any, Any],
        metrics: Metrics,
        raw: bytes = b"",
    ) -> None:
        self.rpc = rpc
        self.generates = rpc in GENERATING
        self.arrived_at = arrived_at
        self.context = context
        self.num_bytes = len(raw)
        self.raw = raw  # its message, until that has been read: nobody else is to hold on to it
        self.request_id = ""
        self.tenant = ""
        self.share = EVERYBODY_ELSE  # of the tenant
        self.outcome = ""  # name of the status it ended with
        self.error = ""  # and the message with it
        self.refusal: Refusal | None = None  # why it found no place in the queue, or lost it
        self.entry: Entry | None = None  # what the ledger is told of it
        self.is_entered = False
        self.is_admitted = False
        self.is_closed = False
        self.has_started = False
        self.displaced: Refused | None = None  # it gave its place to another's
        self._reading: asyncio.Task[object] | None = None  # its handler, while its prompt is read
        self._metrics = metrics
        self._ended: list[Ended] = []
        self._is_on_time = True  # every target of every completion that has ended
        self._is_unread = False  # its client took nothing of what it was sent

    def timeout_s(self) -> float | None:
        """Returns the seconds from the call's arrival to its deadline; None where it has none.

        They count from the arrival, as targets do, so that a message which waits to be read makes
        no target earlier.
        """
        remaining = self.context.time_remaining()
        return None if remaining is None else remaining + time.monotonic() - self.arrived_at

    async def enter(self, asked: Asked, entry: Entry, ledger: LedgerLink) -> None:
        """Enters the call in the ledger. Raises Refused or DuplicateRequest."""
        self.asked, self.entry, self._ledger = asked, entry, ledger
        await ledger.enter(entry, self.displace)
        self.is_entered = True

    def displace(self, error: Refused) -> None:
        """Ends the call with this error, however far it has come: its place is another's now."""
        self.displaced = error
        self.delivery.patience_s = DISPLACED_S
        if self.is_admitted:
            self.generation.abandon(error, FinishReason.DISPLACED)
        elif self._reading is not None:
            self._reading.cancel()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Opens a block in which the prompt waits to be read and is read.

        A call that is displaced does not wait for that any longer: then the block raises the error
        that it was displaced with.
        """
        self._raise_if_displaced()
        self._reading = task = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:  # by `displace`, unless gRPC has cancelled it as well
            if self.displaced is None or task is None or task.uncancel():
                raise
            raise self.displaced from None
        finally:
            self._reading = None

    def resize(self, tokens: int) -> None:
        """Tells the ledger the call's work, known exactly since its prompt has been tokenized.

        Raises the error that the call was displaced with, if it was.
        """
        self._raise_if_displaced()
        assert self.entry is not None
        self._ledger.resize(self.entry.key, tokens)

    def begin(self, generation: Generation) -> None:
        """Notes that the engine has the call's requests."""
        self.generation = generation
        self.is_admitted = True

    def start(self) -> None:
        """Keeps the call's place for good, before the first of its output is written.

        Raises the error that the call was displaced with, if it was.
        """
        self._raise_if_displaced()
        assert self.entry is not None
        self.has_started = True
        self._ledger.start(self.entry.key)

    def _raise_if_displaced(self) -> None:
        if self.displaced is not None:
            raise self.displaced

    def to_message(self, output: Output) -> pb.GenerateStreamResponse:
        """Returns the message of a stream for one output. Raises the error that the call was
        displaced with, if it was before its first output.
        """
        if isinstance(output, Piece):
            if not self.has_started:
                self.start()
            return outbound.to_piece(*output)
        if isinstance(output, Ended):
            return pb.GenerateStreamResponse(finished=self.finish(output))
        if isinstance(output, Accepted):
            accepted = outbound.to_accepted(
                self.request_id, self.asked.quality, self.generation.prompt_len, output
            )
            return pb.GenerateStreamResponse(accepted=accepted)
        assert isinstance(output, RelegatedAt)  # what is streamed is not begun again
        return pb.GenerateStreamResponse(relegated=outbound.to_relegated(*output))

    def finish(self, ended: Ended) -> pb.Finished:
        """Returns the message for the end of one completion, which is counted."""
        self._ended.append(ended)
        finished = outbound.to_finished(*ended)
        is_on_time = all(target.met for target in finished.targets)
        self._is_on_time &= is_on_time
        self._metrics.count(ended.finished, self._tier, is_on_time)
        return finished

    @property
    def _tier(self) -> str:
        """Returns the call's tier as metrics name it."""
        return self.asked.quality.tier or "explicit"

    def close(self) -> None:
        """Frees what engine and ledger still hold, counts the call and logs it."""
        self.is_closed = True
        self.delivery.patience_s = math.inf  # what it still has to send keeps nobody's place
        if self.is_admitted:
            if not self.generation.is_done:
                self.generation.close(_REASONS.get(self.outcome, FinishReason.CANCELLED))
            self._metrics.output_tokens.inc(self.generation.num_tokens)
            self._count_promise()
        if self.entry is not None and self.is_entered:
            self._ledger.leave(self.entry.key)
        if self.displaced is not None:  # though its client left, or did not read that it was
            self.refusal = self.displaced.reason
        if self.refusal is not None:
            self._metrics.count_refused(self.entry, self.refusal, self.share)
        outcome = self.outcome or "OK"
        self._metrics.rpcs.labels(self.rpc, outcome).inc()
        if self.generates:
            self._metrics.calls.labels(outcome).inc()
        log.info("call", rpc=self.rpc, outcome=outcome, tenant=self.tenant, **self._story())

    def _count_promise(self) -> None:
        """Counts what came of what the caller was promised, if it was promised anything."""
        promised = self.generation.promised
        if promised is None:
            return
        lived_s = time.monotonic() - self.arrived_at
        tokens = self.generation.num_tokens  # of all completions, which excuses a few of several
        has_left = self.outcome == grpc.StatusCode.CANCELLED.name and self.displaced is None
        was_overdue = is_overdue(self.asked.quality.targets, tokens, lived_s)
        num_missing = self.asked.n - len(self._ended)
        came = result(num_missing, self._is_on_time, has_left, was_overdue and not self._is_unread)
        self._metrics.count_promise(self._tier, promised, came)

    def fail(self, error: CallError) -> None:
        """Notes the error that the call is about to end with."""
        self.refusal = error.reason if isinstance(error, Refused) else None
        self.outcome, self.error = error.code.name, error.message

    def give_up(self) -> None:
        """Notes that the call is about to be cancelled, since its client takes nothing of what it
        is sent.
        """
        self._metrics.unread.inc()
        self._is_unread = True
        self.outcome = grpc.StatusCode.CANCELLED.name
        self.error = "the client did not read"
        if self.is_closed:
            log.info("answer not read", request_id=self.request_id, rpc=self.rpc)

    def leave(self) -> None:
        """Notes that the call ends before its status, since the client left or its deadline passed.

        A client that leaves once it has the last message, which says that it is the last, was
        served.
        """
        if self.outcome or (self.is_admitted and len(self._ended) == self.asked.n):
            return
        remaining = self.context.time_remaining()
        is_late = remaining is not None and remaining <= DEADLINE_SKEW_S
        self.outcome = "DEADLINE_EXCEEDED" if is_late else "CANCELLED"

    def _story(self) -> dict[str, object]:
        """Returns the fields of the call's log line that depend on how far it has come."""
        lived_s = time.monotonic() - self.arrived_at
        story: dict[str, object] = {"duration_ms": round(lived_s * 1000, 1)}
        if self.request_id:
            story["request_id"] = self.request_id
        if self.error:
            story["error"] = self.error
        if self.entry is not None:
            story |= {
                "tier": self.asked.quality.tier,
                "importance": self.asked.quality.importance.name.lower(),
                "application": self.asked.application,
            }
        if self.refusal is not None:
            story["refused"] = self.refusal.value
        if not self.is_admitted:
            return story
        story |= {
            "prompt_tokens": self.generation.prompt_len,
            "output_tokens": self.generation.num_tokens,
        }
        if self.generation.is_restarted:
            story["restarted"] = True
        for ended in self._ended[:1]:
            ttft_s = ended.finished.timings.ttft_s
            story["reason"] = ended.finished.reason.value
            story["on_time"] = self._is_on_time
            story["relegated"] = ended.finished.relegated
            story["ttft_ms"] = None if ttft_s is None else round(ttft_s * 1000, 1)
        return story
