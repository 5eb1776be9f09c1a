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

from engine.deciding.outcome import Fate
from engine.deciding.plan import Accepted
from engine.deciding.request import BEST_EFFORT, EVERYBODY_ELSE, Importance, TargetKind
from engine.deciding.sequence import FinishReason
from engine.inferring.calls import CallSite, Coming
from engine.tiers import Resolved
from niyama.v1 import inference_pb2 as pb
from server import errors
from server.admission.ledger import LedgerLink
from server.admission.places import Entry
from server.convert import outbound
from server.convert.gateway import NOTHING, Heard
from server.convert.inbound import Asked
from server.convert.trace_context import TraceContext
from server.errors import CallError, Refusal, Refused
from server.fate import End, Progress, fate, is_expired, progress
from server.generation import Ended, Generation, Output, Piece, RelegatedAt
from server.identity.identities import ANYBODY, Identity
from server.listening.deliveries import DISPLACED_S, Delivery
from server.metrics import Metrics

log = structlog.get_logger()

GENERATING = frozenset({"Generate", "GenerateStream", "vllm.grpc.engine.VllmEngine/Generate"})
# Why the engine is told to end what is left of a call, by the call's outcome; else CANCELLED.
_REASONS = {"DEADLINE_EXCEEDED": FinishReason.TIMEOUT, "INTERNAL": FinishReason.ERROR}
# Outcomes of calls that nobody should have made: they are no arrivals.
_INVALID = frozenset({"INVALID_ARGUMENT", "ALREADY_EXISTS", "UNAUTHENTICATED", "PERMISSION_DENIED"})

_ASKED_OFTEN = frozenset({"GetLoad", "GetLoads", "HealthCheck"})  # by each balancer
# What these are answered as a rule; that nobody serves stands in the log by itself.
_EXPECTED = frozenset({"OK", "UNAVAILABLE"})


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
        allowed_s: float | None,
        raw: bytes | None = None,
        identity: Identity = ANYBODY,
    ) -> None:
        """`allowed_s` is the time that its client gave it, counted from its beginning, if any;
        `raw` its message, None where none has come; `identity` who makes it.
        """
        self.rpc = rpc
        self.generates = rpc in GENERATING
        self.is_streamed = rpc == "GenerateStream"  # its output, as far as that is known
        self.stated_id = ""  # by its caller, and perhaps another call's too
        self.num_aborts = 0  # of that id, while it was in flight
        self.arrived_at = arrived_at
        self.context = context
        self.has_come = raw is not None
        self.raw = raw or b""  # until it has been read: nobody else is to hold on to it
        self.num_bytes = len(self.raw)
        self.request_id = ""
        self.identity = identity
        self.tenant = identity.tenant  # on whose behalf
        self.share = EVERYBODY_ELSE  # of the tenant
        self.heard = Heard()  # who may say something of it
        self.gateway = NOTHING  # what one says of it
        self.trace: TraceContext | None = None  # that it is a part of
        self.span: Any = None  # its own in it, where there is one
        self.outcome = ""  # name of the status it ended with
        self.error = ""  # and the message with it
        self.end: End | None = None  # how it came to its end, once it is closed
        self.fate: Fate | None = None  # what became of it, once it is closed; None of no arrival
        self.refusal: Refusal | None = None  # why it found no place in the queue, or lost it
        self.quality: Resolved | None = None  # what it asks for, once that has been read
        self.site: CallSite | None = None  # where it comes from, of one that states nothing
        self.coming = Coming()
        self.shadow: Resolved | None = None  # what is inferred and not used
        self.entry: Entry | None = None  # what the ledger is told of it
        self.is_entered = False
        self.is_admitted = False
        self.is_closed = False
        self.has_started = False
        self.is_awaited = True  # its output, and does not itself wait for its client to read
        self.ended: CallError | None = None  # what it is to end with, whatever it was at
        self._reading: asyncio.Task[object] | None = None  # its handler, while its prompt is read
        self._metrics = metrics
        self._allowed_s = allowed_s
        self.progress: list[Progress] = []  # of each completion, once they are known
        self._ended: list[Ended] = []
        self._has_left = False  # its client, of its own accord
        self.is_unread = False  # its client took nothing of what it was sent, and so has left
        self._is_late = False  # a completion that has ended missed a target

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
        self.quality = asked.quality
        self.progress = [progress(asked.quality.targets) for _ in range(asked.n)]
        await ledger.enter(entry, self.displace)
        self.is_entered = True

    def displace(self, error: Refused) -> None:
        """Ends the call with this error, however far it has come: its place is another's now."""
        self._end_with(error, FinishReason.DISPLACED)

    def abort(self) -> None:
        """Ends the call since its caller has said so, as if that had left; one that is over, or as
        good as over, is left alone.
        """
        is_done = self.is_admitted and self.generation.is_done
        if not (self.outcome or self.ended or is_done):
            self._has_left = True
            self._end_with(errors.cancelled("aborted by its caller"), FinishReason.CANCELLED)

    def _end_with(self, error: CallError, reason: FinishReason) -> None:
        self.ended = error
        self.delivery.patience_s = DISPLACED_S
        if self.is_admitted:
            self.generation.abandon(error, reason)
        elif self._reading is not None:
            self._reading.cancel()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Opens a block in which the prompt waits to be read and is read.

        A call that is displaced or aborted does not wait for that any longer: then the block raises
        the error that it is to end with.
        """
        self._raise_if_ended()
        self._reading = task = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:  # by `_end_with`, unless gRPC has cancelled it as well
            if self.ended is None or task is None or task.uncancel():
                raise
            raise self.ended from None
        finally:
            self._reading = None

    def resize(self, tokens: int) -> None:
        """Tells the ledger the call's work, known exactly since its prompt has been tokenized.

        Raises the error that the call is to end with, if any.
        """
        self._raise_if_ended()
        assert self.entry is not None
        self._ledger.resize(self.entry.key, tokens)

    def begin(self, generation: Generation) -> None:
        """Notes that the engine has the call's requests."""
        self.generation = generation
        self.is_admitted = True

    def start(self) -> None:
        """Keeps the call's place for good, before the first of its output is written.

        Raises the error that the call is to end with, if any.
        """
        self._raise_if_ended()
        assert self.entry is not None
        self.has_started = True
        self._ledger.start(self.entry.key)

    def add(self, piece: Piece) -> None:
        """Notes that new output is about to be handed out. Raises the error that the call was
        displaced with, if it was before its first.
        """
        if not self.has_started:
            self.start()
        if piece.tokens:
            lived_s = time.monotonic() - self.arrived_at
            self.progress[piece.completion].add(len(piece.tokens), lived_s, self.is_awaited)

    def restart(self, completion: int) -> None:
        """Notes that what came of a completion is void: the engine begins it again."""
        self.progress[completion] = progress(self.asked.quality.targets)

    def _raise_if_ended(self) -> None:
        if self.ended is not None:
            raise self.ended

    def to_message(self, output: Output) -> pb.GenerateStreamResponse:
        """Returns the message of a stream for one output. Raises the error that the call was
        displaced with, if it was before its first output.
        """
        if isinstance(output, Piece):
            self.add(output)
            return outbound.to_piece(*output)
        if isinstance(output, Ended):
            return pb.GenerateStreamResponse(finished=self.finish(output))
        if isinstance(output, Accepted):
            accepted = outbound.to_accepted(
                self.request_id,
                self.asked.quality,
                self.generation.prompt_len,
                output,
                self.shadow,
            )
            return pb.GenerateStreamResponse(accepted=accepted)
        assert isinstance(output, RelegatedAt)  # what is streamed is not begun again
        return pb.GenerateStreamResponse(relegated=outbound.to_relegated(*output))

    def finish(self, ended: Ended) -> pb.Finished:
        """Returns the message for the end of one completion, which is counted."""
        self._ended.append(ended)
        finished = outbound.to_finished(*ended)
        self.progress[ended.completion].has_ended = True
        self._is_late |= not all(target.met for target in finished.targets)
        self._metrics.observe(self.asked.quality.tier, ended.finished.timings)
        return finished

    def cost(self) -> dict[str, float]:
        """Returns what the call has cost, by names, once all of its output has been handed out."""
        generation = self.generation
        return {"prompt_tokens": generation.prompt_len, "output_tokens": generation.num_tokens}

    def finish_reasons(self) -> list[str]:
        """Returns why those of its completions ended that did so by themselves."""
        return [ended.finished.reason.value for ended in self._ended]

    def close(self) -> None:
        """Frees what engine and ledger still hold, counts the call and logs it."""
        self.is_closed = True
        self.delivery.patience_s = math.inf  # what it still has to send keeps nobody's place
        if self.is_admitted:
            if not self.generation.is_done:
                self.generation.close(_REASONS.get(self.outcome, FinishReason.CANCELLED))
            self._metrics.output_tokens.inc(self.generation.num_tokens)
        if self.entry is not None and self.is_entered:
            self._ledger.leave(self.entry.key)
        if self.ended is not None:  # though its client left, or did not read why
            self.refusal = self.ended.refusal
        outcome, lived_s = self.outcome or "OK", time.monotonic() - self.arrived_at
        self._metrics.rpcs.labels(self.rpc, outcome).inc()
        for key, why in self.gateway.ignored:
            self._metrics.gateway_ignored.labels(key, why.value).inc()
        if self.refusal is not None:
            self._metrics.count_refused(*self._class, self.share, self.refusal)
        story: dict[str, object] = {"rpc": self.rpc, "outcome": outcome}
        self.fate = self._fate(lived_s)
        if self.fate is not None:
            self._count(self.fate, lived_s)
            story["result"] = self.fate.value
        is_often = self.rpc.rpartition("/")[2] in _ASKED_OFTEN
        is_told = not is_often or outcome not in _EXPECTED
        say = log.info if is_told else log.debug
        say("call", **story, tenant=self.tenant, **self._story(lived_s))

    def _fate(self, lived_s: float) -> Fate | None:
        """Returns what became of the call; None where it is no arrival."""
        end = self.end = self._end()
        is_arrival = self.has_come or end in (End.REFUSED, End.EXPIRED)
        if not (self.generates and is_arrival) or self.outcome in _INVALID:
            return None
        quality = self.quality
        has_targets = quality is not None and quality.targets.kind is not TargetKind.BEST_EFFORT
        # Who takes nothing of what it is sent is late by its own doing.
        is_late = self._is_late or (
            not self.is_unread and any(each.is_overdue(lived_s) for each in self.progress)
        )
        return fate(end, has_targets, is_late)

    def _end(self) -> End:
        """Returns how the call came to its end."""
        if self.refusal is not None:
            return End.REFUSED
        if not self.outcome:
            return End.COMPLETE
        if self.outcome == grpc.StatusCode.DEADLINE_EXCEEDED.name:
            return End.EXPIRED
        return End.LEFT if self._has_left else End.BROKEN

    @property
    def _class(self) -> tuple[str | None, Importance | None]:
        """Returns the call's tier and importance, None where nobody has read them."""
        if self.quality is None:
            return None, None
        return self.quality.tier, self.quality.importance

    def _count(self, result: Fate, lived_s: float) -> None:
        """Counts the call, and what it was promised, if anything."""
        tier, importance = self._class
        self._metrics.count(tier, importance, self.share, result)
        if self.is_admitted and self.generation.promised is not None:
            self._metrics.count_promise(tier, self.generation.promised, result)
        if result is Fate.EXPIRED or (result is Fate.LATE and self._has_left):
            for each in self.progress or [progress(BEST_EFFORT)]:
                if not each.has_ended:
                    self._metrics.observe_cut(tier, each, lived_s)

    def fail(self, error: CallError) -> None:
        """Notes the error that the call is about to end with."""
        self.refusal = error.refusal
        self.outcome, self.error = error.code.name, error.message

    def about(self) -> dict[str, str]:
        """Returns what its client is told of it where it fails, as far as that is known."""
        about = {"request_id": self.request_id} if self.request_id else {}
        if self.quality is not None:
            about["importance"] = self.quality.importance.name.lower()
            if self.quality.tier:
                about["tier"] = self.quality.tier
        return about

    def give_up(self) -> None:
        """Notes that the call is about to be cancelled, since its client takes nothing of what it
        is sent.
        """
        self._metrics.unread.inc()
        self.is_unread = self._has_left = True
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
        if self.has_expired():
            self.outcome = grpc.StatusCode.DEADLINE_EXCEEDED.name
        else:
            self.outcome = grpc.StatusCode.CANCELLED.name
            self._has_left = True

    def has_expired(self) -> bool:
        """Says whether a call that is over before its status has come to its deadline."""
        remaining_s, allowed_s = self.context.time_remaining(), self._allowed_s
        if remaining_s is None or allowed_s is None:
            return False
        return is_expired(allowed_s, remaining_s)

    def cut(self) -> None:
        """Notes that the call ends before its status, since the server does."""
        if not self.outcome:
            self.outcome = grpc.StatusCode.CANCELLED.name
            self.error = "the server has ended"

    def _story(self, lived_s: float) -> dict[str, object]:
        """Returns the fields of the call's log line that depend on how far it has come."""
        story: dict[str, object] = {"duration_ms": round(lived_s * 1000, 1)}
        if self.request_id:
            story["request_id"] = self.request_id
        if self.trace is not None:
            story |= {"trace_id": self.trace.trace_id, "span_id": self.trace.span_id}
        if self.error:
            story["error"] = self.error
        if self.identity != ANYBODY and self.identity.tenant != self.tenant:
            story["caller"] = self.identity.tenant or "operator"  # who speaks for the tenant
        if self.quality is not None:
            story["tier"] = self.quality.tier
            story["importance"] = self.quality.importance.name.lower()
        if self.gateway.keys:
            story["gateway"] = ", ".join(self.gateway.keys)
        if self.gateway.ignored:
            ignored = [f"{key} ({why.value})" for key, why in self.gateway.ignored]
            story["gateway_ignored"] = ", ".join(ignored)
        if self.entry is not None:
            story["application"] = self.asked.application
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
            story["relegated"] = ended.finished.relegated
            story["ttft_ms"] = None if ttft_s is None else round(ttft_s * 1000, 1)
        return story
