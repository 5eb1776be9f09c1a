"""Makes the token ids of a prompt, with the served model's tokenizer. Synchronous."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from engine.checkpoint.tokenizer import Tokenizer
from server.convert.input import Bounds, Input
from server.violations import InvalidRequest, Violation


class Encoder:
    """Encodes prompts of any form with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, prompt: Input, bounds: Bounds) -> Sequence[int]:
        """Returns the prompt's token ids. Raises InvalidRequest for a conversation that cannot be
        rendered within `bounds`, and for a text that the tokenizer has no tokens for.
        """
        if prompt.token_ids:
            return array("I", prompt.token_ids)
        try:
            return array("I", self._encode(prompt, bounds))
        except ValueError as error:
            raise InvalidRequest([Violation(prompt.field, str(error))]) from error

    def _encode(self, prompt: Input, bounds: Bounds) -> Sequence[int]:
        if prompt.text is not None:
            return self._tokenizer.encode(prompt.text)
        messages = [message._asdict() for message in prompt.messages]
        return self._tokenizer.encode_chat(messages, most_chars=bounds.text_bytes)
