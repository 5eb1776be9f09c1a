"""From a message's bytes to what it asks, and from its input to token ids.

What is short is done at once, on the event loop: parsing a message of up to SHORT_BYTES, token ids
as they are, a text of up to LONG_TEXT. All else a process does that can be held up and lost without
anybody else noticing (`server.reading.lanes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import structlog

from engine.checkpoint.tokenizer import Tokenizer
from server import errors
from server.admission.quota import Caller, Quota
from server.config import ServerConfig
from server.convert.input import Bounds, Input
from server.reading.encoder import Encoder
from server.reading.lanes import Lane
from server.reading.messages import (
    MEMORY_BYTES,
    MEMORY_PER_BYTE,
    SHORT_BYTES,
    Broken,
    Counted,
    Encoded,
    Job,
    Outline,
    Start,
    Task,
    counted,
    parse,
)

log = structlog.get_logger()

LONG_TEXT = 4096  # bytes; encoding so many takes one or two milliseconds
# What waits to be read, at most.
SHORT_QUOTA_BYTES = 8 << 20
LONG_QUOTA = 16  # times the most bytes in one message
CALL_BYTES = 1024  # of a call beside its message


class Received(NamedTuple):
    """A message; of a long one without its input, of which `prompt` knows the field alone."""

    message: Any
    raw: bytes
    prompt: Input | None = None


class Prompts:
    """Of one front end: `start`, `stop`. An input is checked against `bounds`."""

    def __init__(self, tokenizer: Tokenizer, config: ServerConfig) -> None:
        self._encoder = Encoder(tokenizer)
        most = config.max_message_bytes
        start = Start(config.engine.model, config.read_s, MEMORY_BYTES + MEMORY_PER_BYTE * most)
        self._quota = Quota("bytes of short messages", SHORT_QUOTA_BYTES)
        self._long_quota = Quota("bytes of long messages", LONG_QUOTA * most, 2 * most)
        self.short = Lane("short", start)
        self.long = Lane("long", start)

    def start(self) -> None:
        for lane in (self.short, self.long):
            lane.start()

    async def stop(self) -> None:
        for lane in (self.short, self.long):
            await lane.stop()

    def hold(self, raw: bytes, caller: Caller) -> AbstractContextManager[None]:
        """While a message is being read: from before `receive` until its token ids are there.
        Entering it raises CallError where too much is.
        """
        quota = self._quota if len(raw) <= SHORT_BYTES else self._long_quota
        return quota.hold(caller, len(raw) + CALL_BYTES)

    async def receive(self, kind: Any, raw: bytes, caller: Caller, bounds: Bounds) -> Received:
        """A message of the type `kind`. Raises InvalidRequest and CallError."""
        if len(raw) <= SHORT_BYTES:
            return Received(parse(kind, raw), raw)
        name = kind.DESCRIPTOR.name
        job = Job(Task.OUTLINE, name, raw, bounds)
        reply = await self._do(self.long, caller, job)
        assert isinstance(reply, Outline)
        return Received(kind.FromString(reply.rest), raw, Input(reply.field))

    async def encode(
        self, received: Received, prompt: Input, caller: Caller, bounds: Bounds
    ) -> Sequence[int]:
        """The token ids of its input. Raises InvalidRequest and CallError."""
        if received.prompt is None and _is_quick(prompt):
            return self._encoder.encode(prompt, bounds)
        reply = await self._read(Task.ENCODE, received, prompt.field, caller, bounds)
        assert isinstance(reply, Encoded)
        return reply.ids

    async def count(
        self, received: Received, prompt: Input, caller: Caller, bounds: Bounds
    ) -> bytes:
        """The same as the answer to CountTokens, on the wire."""
        if received.prompt is None and _is_quick(prompt):
            return counted(self._encoder.encode(prompt, bounds)).response
        reply = await self._read(Task.COUNT, received, prompt.field, caller, bounds)
        assert isinstance(reply, Counted)
        return reply.response

    async def _read(
        self, task: Task, received: Received, field: str, caller: Caller, bounds: Bounds
    ) -> Any:
        lane = self.short if len(received.raw) <= SHORT_BYTES else self.long
        kind = received.message.DESCRIPTOR.name
        return await self._do(lane, caller, Job(task, kind, received.raw, bounds, field))

    async def _do(self, lane: Lane, caller: Caller, job: Job) -> Any:
        reply = await lane.do(caller, job)
        if isinstance(reply, Broken):
            log.error("reader failed", lane=lane.name, trace=reply.trace)
            raise errors.reader_failed()
        return reply


def _is_quick(prompt: Input) -> bool:
    text = prompt.text
    if text is None:
        return bool(prompt.token_ids)
    return len(text) <= LONG_TEXT and (text.isascii() or len(text.encode()) <= LONG_TEXT)
