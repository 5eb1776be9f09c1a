"""A prompt as it came: text, token ids or a conversation, and how long it may be.

A list is counted before it is looked into, and a text measured before it is tokenized, so that what
cannot fit into the model's context costs nothing. Before it is tokenized, only the size of a text
in bytes is known. So a text may have as many bytes as the longest token spells, for each token that
there is room for, times SHRINKS, since a tokenizer's normalization may shorten a text (Unicode's
forms to a quarter at most). Where a tokenizer drops or joins more than that, long runs of spaces,
say, a text may be refused that would have fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from niyama.v1 import inference_pb2 as pb
from server.violations import Violations

MAX_MESSAGES = 4096
MAX_ROLE_BYTES = 128
SHRINKS = 4
# The longest token of a tokenizer may be a special one, which spells nothing and is written out.
LEAST_TOKEN_BYTES = 32


class Bounds(NamedTuple):
    """What a prompt may hold: token ids below `vocab_size`, and at most so many tokens, or bytes of
    text; None where that is not known.
    """

    vocab_size: int
    tokens: int | None = None
    text_bytes: int | None = None

    @classmethod
    def of(cls, vocab_size: int, num_tokens: int, longest_token_bytes: int) -> Bounds:
        """Returns the bounds where context and memory hold `num_tokens`, of which none spells more
        than `longest_token_bytes`.
        """
        longest = max(longest_token_bytes, LEAST_TOKEN_BYTES)
        return cls(vocab_size, num_tokens, num_tokens * longest * SHRINKS)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Input:
    """A prompt in one of three forms: text, token ids or chat messages. `field` is the path of that
    form in the message, for errors.
    """

    field: str
    text: str | None = None
    token_ids: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()

    @property
    def operation(self) -> str:
        """Returns what it asks for, as OpenTelemetry's conventions for GenAI name it."""
        return "chat" if self.field == "input.chat" else "text_completion"


def read_input(message: pb.Input, bounds: Bounds) -> Input:
    """Returns the prompt of a message. Raises InvalidRequest."""
    reader = Violations()
    prompt = read_form(reader, message, bounds)
    reader.finish()
    return prompt


def read_form(reader: Violations, message: pb.Input, bounds: Bounds) -> Input:
    """Returns the prompt of a message; `reader` collects what is wrong with it."""
    form = message.WhichOneof("form")
    if form is None:
        reader.refuse("input", "is required: one of text, token_ids, chat")
        return Input("input")
    field = f"input.{form}"
    if form == "text":
        _check_size(reader, field, len(message.text.encode()), bounds)
        return Input(field, text=message.text)
    if form == "token_ids":
        return Input(field, token_ids=_read_ids(reader, message.token_ids, bounds))
    return Input(field, messages=_read_messages(reader, message.chat, bounds))


def _read_ids(reader: Violations, wire: pb.TokenIds, bounds: Bounds) -> tuple[int, ...]:
    count = len(wire.ids)
    if not count:
        reader.refuse("input.token_ids.ids", "must hold at least one token")
    elif bounds.tokens is not None and count > bounds.tokens:
        text = f"holds {count} tokens; there is room for {bounds.tokens}"
        reader.refuse("input.token_ids", text)
    else:
        ids = tuple(wire.ids)
        if (largest := max(ids)) >= bounds.vocab_size:
            reader.refuse(
                "input.token_ids.ids", f"must be below {bounds.vocab_size}, got {largest}"
            )
        return ids
    return ()


def _read_messages(reader: Violations, wire: pb.Chat, bounds: Bounds) -> tuple[Message, ...]:
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
    _check_size(reader, "input.chat", sum(len(m.content.encode()) for m in messages), bounds)
    return messages


def _check_size(reader: Violations, field: str, num_bytes: int, bounds: Bounds) -> None:
    if bounds.text_bytes is not None and num_bytes > bounds.text_bytes:
        text = f"{num_bytes} bytes of text cannot fit into the room for {bounds.tokens} tokens"
        reader.refuse(field, text)
