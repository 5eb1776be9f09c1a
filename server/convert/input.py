"""A prompt as it came: text, token ids or a conversation, and how long it may be.

A list is counted before it is looked into, and a text measured before it is tokenized, so that what
cannot fit into the model's context costs nothing. Of a text only its bytes are known by then: a
token spells at most so many (`Room.text_bytes`), times SHRINKS for what a tokenizer's normalization
may make shorter: Unicode's forms shrink a text to a quarter at most. Where a tokenizer drops or
joins more than that (long runs of spaces, say), a text may be refused that would have fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from proto.niyama.v1 import inference_pb2 as pb
from server.convert.violations import Violations

MAX_MESSAGES = 4096
MAX_ROLE_BYTES = 128
SHRINKS = 4
# The longest token of a tokenizer may be a special one, which spells nothing and is written out.
LEAST_TOKEN_BYTES = 32


class Room(NamedTuple):
    """What a prompt can hold at most; None where that is not known."""

    tokens: int | None
    text_bytes: int | None

    @classmethod
    def of(cls, num_tokens: int, longest_token_bytes: int) -> Room:
        """Where context and memory hold so many tokens, of which none spells more bytes."""
        longest = max(longest_token_bytes, LEAST_TOKEN_BYTES)
        return cls(num_tokens, num_tokens * longest * SHRINKS)


UNBOUNDED = Room(None, None)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Input:
    """A prompt: one of text, token ids, messages. `field` is the form's path, for errors."""

    field: str
    text: str | None = None
    token_ids: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()


def read_input(message: pb.Input, vocab_size: int, room: Room = UNBOUNDED) -> Input:
    """Raises InvalidRequest."""
    reader = Violations()
    prompt = read_form(reader, message, vocab_size, room)
    reader.finish()
    return prompt


def read_form(reader: Violations, message: pb.Input, vocab_size: int, room: Room) -> Input:
    """What is wrong with it `reader` is told."""
    form = message.WhichOneof("form")
    if form is None:
        reader.refuse("input", "is required: one of text, token_ids, chat")
        return Input("input")
    field = f"input.{form}"
    if form == "text":
        _check_size(reader, field, len(message.text.encode()), room)
        return Input(field, text=message.text)
    if form == "token_ids":
        return Input(field, token_ids=_read_ids(reader, message.token_ids, vocab_size, room))
    return Input(field, messages=_read_messages(reader, message.chat, room))


def _read_ids(
    reader: Violations, wire: pb.TokenIds, vocab_size: int, room: Room
) -> tuple[int, ...]:
    count = len(wire.ids)
    if not count:
        reader.refuse("input.token_ids.ids", "must hold at least one token")
    elif room.tokens is not None and count > room.tokens:
        text = f"holds {count} tokens; there is room for {room.tokens}"
        reader.refuse("input.token_ids", text)
    else:
        ids = tuple(wire.ids)
        if (largest := max(ids)) >= vocab_size:
            reader.refuse("input.token_ids.ids", f"must be below {vocab_size}, got {largest}")
        return ids
    return ()


def _read_messages(reader: Violations, wire: pb.Chat, room: Room) -> tuple[Message, ...]:
    if (count := len(wire.messages)) > MAX_MESSAGES:
        text = f"must be at most {MAX_MESSAGES} messages, got {count}"
        reader.refuse("input.chat.messages", text)
        return ()
    messages = tuple(Message(m.role, m.content) for m in wire.messages)
    if not messages:
        reader.refuse("input.chat.messages", "must hold at least one message")
    for i, message in enumerate(messages):
        if not message.role:
            reader.refuse(f"input.chat.messages[{i}].role", "is required")
        elif len(message.role.encode()) > MAX_ROLE_BYTES:
            text = f"must be at most {MAX_ROLE_BYTES} bytes"
            reader.refuse(f"input.chat.messages[{i}].role", text)
    _check_size(reader, "input.chat", sum(len(m.content.encode()) for m in messages), room)
    return messages


def _check_size(reader: Violations, field: str, num_bytes: int, room: Room) -> None:
    if room.text_bytes is not None and num_bytes > room.text_bytes:
        text = f"{num_bytes} bytes of text cannot fit into the room for {room.tokens} tokens"
        reader.refuse(field, text)
