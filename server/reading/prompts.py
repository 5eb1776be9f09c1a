"""Parses messages, and makes token ids of their inputs.

What is short is done at once, on the event loop: parsing a message of up to SHORT_BYTES, taking
token ids as they are, encoding a text of up to LONG_TEXT. All else is done by a process that can be
held up or lost without any other call noticing (`server.reading.lanes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from engine.checkpoint.tokenizer import Tokenizer
from niyama.v1 import inference_pb2 as pb
from server import defects
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
    Parse,
    Start,
    Task,
    counted,
)

LONG_TEXT = 4096  # bytes; encoding so many takes one or two milliseconds
# The most that may wait to be read.
SHORT_QUOTA_BYTES = 8 << 20
LONG_QUOTA = 16  # times the most bytes in one message
CALL_BYTES = 1024  # of a call beside its message


class Received(NamedTuple):
    """A message that was parsed. `raw` is the whole of it. A long one is parsed without its input,
    and then `prompt` says only which field that is.
    """

    message: Any
    raw: bytes
    parse: Parse
    prompt: Input | None = None


class Prompts:
    """Reads the messages and prompts of one front end, between `start` and `stop`.

    `bounds` is what a message's input may hold at most.
    """

    def __init__(self, tokenizer: Tokenizer, config: ServerConfig) -> None:
        self._encoder = Encoder(tokenizer)
        most = config.max_message_bytes
        start = Start(config.engine.model, config.read_s, MEMORY_BYTES + MEMORY_PER_BYTE * most)
        self._quota = Quota("bytes of short messages", SHORT_QUOTA_BYTES)
        self._long_quota = Quota("bytes of long messages", LONG_QUOTA * most, 2 * most)
        self.short = Lane("short", start)
        self.long = Lane("long", start)

    def start(self) -> None:
        """Starts the processes that read what is long."""
        for lane in (self.short, self.long):
            lane.start()

    async def stop(self) -> None:
        """Ends those processes."""
        for lane in (self.short, self.long):
            await lane.stop()

    def hold(self, raw: bytes, caller: Caller) -> AbstractContextManager[None]:
        """Opens a block in which a message is read, from before `receive` to its token ids.

        Entering it raises CallError where too much is being read.
        """
        quota = self._quota if len(raw) <= SHORT_BYTES else self._long_quota
        return quota.hold(caller, len(raw) + CALL_BYTES)

    async def receive(self, parse: Parse, raw: bytes, caller: Caller, bounds: Bounds) -> Received:
        """Parses a message, by `parse`. Raises InvalidRequest and CallError."""
        if len(raw) <= SHORT_BYTES:
            return Received(parse(raw), raw, parse)
        job = Job(Task.OUTLINE, parse, raw, bounds)
        reply = await self._do(self.long, caller, job)
        assert isinstance(reply, Outline)
        message = getattr(pb, reply.kind).FromString(reply.rest)
        return Received(message, raw, parse, Input(reply.field))

    async def encode(
        self, received: Received, prompt: Input, caller: Caller, bounds: Bounds
    ) -> Sequence[int]:
        """Returns the token ids of a message's input. Raises InvalidRequest and CallError."""
        if received.prompt is None and _is_quick(prompt):
            return self._encoder.encode(prompt, bounds)
        reply = await self._read(Task.ENCODE, received, prompt.field, caller, bounds)
        assert isinstance(reply, Encoded)
        return reply.ids

    async def count(
        self, received: Received, prompt: Input, caller: Caller, bounds: Bounds
    ) -> bytes:
        """Returns the answer to CountTokens for a message's input, on the wire. Raises as `encode`
        does.
        """
        if received.prompt is None and _is_quick(prompt):
            return counted(self._encoder.encode(prompt, bounds)).response
        reply = await self._read(Task.COUNT, received, prompt.field, caller, bounds)
        assert isinstance(reply, Counted)
        return reply.response

    async def _read(
        self, task: Task, received: Received, field: str, caller: Caller, bounds: Bounds
    ) -> Any:
        lane = self.short if len(received.raw) <= SHORT_BYTES else self.long
        return await self._do(lane, caller, Job(task, received.parse, received.raw, bounds, field))

    async def _do(self, lane: Lane, caller: Caller, job: Job) -> Any:
        reply = await lane.do(caller, job)
        if isinstance(reply, Broken):
            raise defects.noted(reply.trace, lane=lane.name)
        return reply


def _is_quick(prompt: Input) -> bool:
    """Returns whether the event loop may make the token ids itself."""
    text = prompt.text
    if text is None:
        return bool(prompt.token_ids)
    return len(text) <= LONG_TEXT and (text.isascii() or len(text.encode()) <= LONG_TEXT)
