"""Makes text of token ids, as they come.

Every token id spells some bytes, and an incremental UTF-8 decoder turns their sequence into text.
So half a character is never shown, and the cost of a token does not depend on how many came before.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence

SPACE = "\u2581"  # sentencepiece's visible space
_INVALID = dict.fromkeys(range(0xDC80, 0xDD00), "\ufffd")  # bytes that are no UTF-8


class Spelling:
    """The bytes that each token id adds to a text; none for special tokens.

    `specials` says how special tokens are written, which only stop strings are compared with. Bytes
    that are no UTF-8 come out as U+FFFD: one for each byte, as sentencepiece and byte fallback have
    it, or, with `once`, one for each beginning of a character, as GPT-2's alphabet has it.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        opening: Sequence[bytes],
        specials: Mapping[int, str],
        once: bool = False,
    ) -> None:
        self._pieces = pieces
        self._opening = opening  # as the text's first: without the space the tokenizer put there
        self.specials = specials
        self.errors = "replace" if once else "surrogateescape"
        # The same as text, for where no character is open; None for those that are no whole text.
        self.texts = [_whole(piece) for piece in pieces]

    def __len__(self) -> int:
        return len(self._pieces)

    def of(self, token_id: int, opens: bool = False) -> bytes:
        """Returns the bytes of a token; none for ids that only pad the model's vocabulary."""
        pieces = self._opening if opens else self._pieces
        return pieces[token_id] if 0 <= token_id < len(pieces) else b""


def _whole(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


class Detokenizer:
    """The text of a growing output: what `feed` and `finish` return adds up to it.

    The text continues that of `prompt`, and a space between the two is kept.
    """

    def __init__(self, spelling: Spelling, prompt: Iterable[int] = ()) -> None:
        self._spelling = spelling
        self._texts = spelling.texts
        self.specials = spelling.specials
        self._utf8 = codecs.getincrementaldecoder("utf-8")(spelling.errors)
        self._opens = not any(spelling.of(token_id) for token_id in prompt)
        self._is_plain = not self._opens  # whether a token's text depends on nothing before it

    def feed(self, token_id: int) -> str:
        """Returns the text that has become certain with the token; "" in the middle of a
        character.
        """
        if self._is_plain and 0 <= token_id < len(self._texts):
            text = self._texts[token_id]
            if text is not None:
                return text
        piece = self._spelling.of(token_id, self._opens)
        self._opens = self._opens and not self._spelling.of(token_id)
        text = self._utf8.decode(piece).translate(_INVALID)
        self._is_plain = not self._opens and not self._utf8.getstate()[0]
        return text

    def finish(self) -> str:
        """Returns what an unfinished character leaves, once no more tokens come."""
        return self._utf8.decode(b"", final=True).translate(_INVALID)
