"""From a request's input to token ids, off the event loop when that takes long."""

from __future__ import annotations

import asyncio

from engine.tokenizer import Tokenizer
from server.convert.input import Input
from server.convert.violations import InvalidRequest, Violation

# Encoding this much text takes about a millisecond; longer texts go to a thread.
LONG_TEXT = 4096


class Prompts:
    """Encodes inputs with the served model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def encode(self, asked: Input) -> list[int]:
        """Raises InvalidRequest for a conversation that cannot be rendered."""
        length = len(asked.text or "") + sum(len(m.content) for m in asked.messages)
        if length > LONG_TEXT:
            return await asyncio.to_thread(self._encode, asked)
        return self._encode(asked)

    def _encode(self, asked: Input) -> list[int]:
        if asked.text is not None:
            return self._tokenizer.encode(asked.text)
        if asked.messages:
            return self._encode_chat(asked)
        return list(asked.token_ids)

    def _encode_chat(self, asked: Input) -> list[int]:
        messages = [message._asdict() for message in asked.messages]
        try:
            return self._tokenizer.encode_chat(messages)
        except ValueError as error:
            raise InvalidRequest([Violation(asked.field, str(error))]) from error
