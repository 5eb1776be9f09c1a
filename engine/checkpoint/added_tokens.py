"""Added tokens: texts that become one token wherever they stand, before anything else is looked at.

The rules are those of Hugging Face's tokenizers (`added_vocabulary.rs`), written again for models
that sentencepiece reads: the first match counts, of several there the longest; `single_word` drops
a match that touches a word; `lstrip` and `rstrip` take the white space beside a match with it.
Tokens that are `normalized` are looked for in what the others leave.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Unicode's White_Space; Python's own has four control characters more.
_WHITE_SPACE = frozenset(
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
_WORD_CATEGORIES = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"})
_JOINERS = "\u200c\u200d"
_LETTER_SYMBOLS = ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A text that becomes one token, and how it is matched. A `special` one is spelled as nothing.

    `id` is None where the vocabulary states it.
    """

    content: str
    id: int | None = None
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def as_json(tokens: Mapping[str, tuple[AddedToken, int]]) -> list[dict[str, Any]]:
    """Returns tokens by their ids, as tokenizer.json lists them."""
    return [
        {
            "id": token_id,
            "content": content,
            "single_word": token.single_word,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": token.normalized,
            "special": token.special,
        }
        for content, (token, token_id) in sorted(tokens.items(), key=lambda entry: entry[1][1])
        if content
    ]


class AddedTokens:
    """Takes the added tokens out of a text, with the ids that they become."""

    def __init__(self, ids: Iterable[tuple[AddedToken, int]]) -> None:
        tokens = [(token, token_id) for token, token_id in ids if token.content]
        stages = ([t for t in tokens if t[0].normalized is stage] for stage in (False, True))
        self._stages = [_Stage(stage) for stage in stages if stage]
        self._any = _pattern(token.content for token, _ in tokens)

    def occur_in(self, text: str) -> bool:
        """Returns whether the text may hold an added token. It is quick for texts that hold
        none.
        """
        return self._any.search(text) is not None

    def split(self, text: str) -> list[str | int]:
        """Returns the parts of the text in order, with ids where added tokens stood, and no empty
        part.
        """
        parts: list[str | int] = [text] if text else []
        for stage in self._stages:
            parts = [
                piece
                for part in parts
                for piece in (stage.split(part) if isinstance(part, str) else [part])
            ]
        return parts


class _Stage:
    """Added tokens that are looked for in one pass over a text."""

    def __init__(self, tokens: Sequence[tuple[AddedToken, int]]) -> None:
        self._tokens = {token.content: (token, token_id) for token, token_id in tokens}
        self._pattern = _pattern(self._tokens)

    def split(self, text: str) -> Iterator[str | int]:
        """Yields the parts of the text, with ids where these tokens stood."""
        done = 0
        for match in self._pattern.finditer(text):
            token, token_id = self._tokens[match[0]]
            start, end = match.span()
            if token.single_word and (
                _is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])
            ):
                continue
            while token.rstrip and end < len(text) and text[end] in _WHITE_SPACE:
                end += 1
            if token.lstrip:
                start = max(done, _start_of_space(text, start, done))
                if start == end:  # it was white space that the one before took with it
                    continue
            if done < start:
                yield text[done:start]
            yield token_id
            done = end
        if done < len(text):
            yield text[done:]


def _start_of_space(text: str, end: int, least: int) -> int:
    while end > least and text[end - 1] in _WHITE_SPACE:
        end -= 1
    return end


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern that matches the longest of the texts that begin first; nothing, where
    there are no texts.
    """
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _is_word(char: str) -> bool:
    r"""Whether \w of Unicode's regular expressions (UTS 18) matches; "" is none."""
    if not char:
        return False
    if unicodedata.category(char) in _WORD_CATEGORIES or char in _JOINERS:
        return True
    return any(first <= ord(char) <= last for first, last in _LETTER_SYMBOLS)
