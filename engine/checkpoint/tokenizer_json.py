"""Reads `tokenizer.json` with the `tokenizers` package (extra `hf`).

The file is followed as it is written, as by transformers 4, and by 5 except for the class
LlamaTokenizer, which that builds anew from the vocabulary. The file's `truncation`, `padding` and
`dropout` are for training and never apply to a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from engine.checkpoint.added_tokens import AddedToken
from engine.checkpoint.detokenizer import SPACE, Spelling
from engine.checkpoint.json_file import CheckpointError, Keys, shown
from engine.checkpoint.source import Source
from engine.checkpoint.special_tokens import TokenizerSettings, check_id

FILE = "tokenizer.json"
MAX_BYTES = 256 << 20  # of the file; the largest in use has an eighth
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class _Decoder:
    """How tokenizer.json has its tokens spelled: by bytes in GPT-2's alphabet, or as text."""

    byte_level: bool = False
    replaced: tuple[tuple[str, str], ...] = ()  # in every token, in this order
    byte_fallback: bool = False  # "<0x0A>" is that byte
    joins: bool = False  # nothing after this looks at tokens
    strips_space: bool = False  # the text's first

    def spell(self, token: str) -> bytes:
        """Returns the bytes that a token stands for."""
        if self.byte_level:
            return _spell_bytes(token)
        for old, new in self.replaced:
            token = token.replace(old, new)
        if self.byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.encode()


class HuggingFace:
    """The tokenizer of a tokenizer.json. Raises CheckpointError for a file that cannot be read, and
    ImportError without `tokenizers`.
    """

    named: Mapping[str, AddedToken]
    around: tuple[Sequence[int], Sequence[int]]

    def __init__(self, source: Source, settings: TokenizerSettings) -> None:
        path = source.place(FILE)
        raw = source.json(FILE, MAX_BYTES)
        made = _read(source, path)
        made.no_truncation()
        made.no_padding()
        self.splits_special = made.encode_special_tokens = settings.splits_special
        if getattr(made.model, "dropout", None):
            made.model.dropout = None
        self._tokenizer = made
        if not made.get_vocab_size():
            raise CheckpointError(f"{path} has no tokens")
        self.named = settings.named(made.get_vocab(with_added_tokens=True))
        self._add_tokens(settings)
        vocabulary = made.get_vocab(with_added_tokens=True)
        decoder = _read_decoder(Keys(raw, path.name).table("decoder"))
        self.spelling = self._spelling(vocabulary, decoder, path)
        self.around = self._around(path)
        self.bos_id = self._id_of("bos_token", vocabulary)
        if self.bos_id is None and "bos_token" not in settings.stated and self.around[0]:
            self.bos_id = self.around[0][0]
        self.eos_id = self._id_of("eos_token", vocabulary)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, with nothing added to it. Raises ValueError where it has
        none.
        """
        try:
            # Not `encode`, which also keeps where in the text each token stands: many times the
            # memory, with Python's lock held.
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        except BaseException as error:
            if not _is_the_library_s(error):
                raise
            raise ValueError(f"the tokenizer cannot encode the text: {error}") from error
        ids: list[int] = encoding.ids
        return ids

    @property
    def tokens(self) -> dict[str, tuple[AddedToken, int]]:
        """The tokens that are taken out of a text first, with their ids, by their text."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: (_from_library(token), i) for i, token in sorted(added.items())}

    def _add_tokens(self, settings: TokenizerSettings) -> None:
        """Adds the tokens that the files beside it list. What they say of a token counts for more
        than what tokenizer.json says.

        A token is left out if the vocabulary would not give it the id that is stated.
        """
        made = self._tokenizer
        size, listed = made.get_vocab_size(), []
        for token in sorted(settings.added, key=lambda token: token.id or 0):
            known_id = made.token_to_id(token.content)
            if token.id == (size if known_id is None else known_id):
                listed.append(_to_library(token))
                size += known_id is None
        made.add_tokens(listed)  # at once: each time it makes its search for all of them anew
        added = {token.content for token in made.get_added_tokens_decoder().values()}
        named = [
            _to_library(token)
            for token in [*self.named.values(), *settings.extra]
            if token.content not in added and made.token_to_id(token.content) is not None
        ]
        made.add_tokens(named)

    def _id_of(self, name: str, vocabulary: Mapping[str, int]) -> int | None:
        token = self.named.get(name)
        return vocabulary.get(token.content) if token else None

    def _around(self, path: Path) -> tuple[list[int], list[int]]:
        """Returns what the file puts before and after a prompt."""
        if not self._tokenizer.num_special_tokens_to_add(False):
            return [], []
        try:
            bare = self.encode("a")
            full = self._tokenizer.encode("a", add_special_tokens=True).ids
        except BaseException as error:
            if not _is_the_library_s(error):
                raise
            raise CheckpointError(f"{path} cannot encode a text: {error}") from error
        at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), len(full))
        return (full[:at], full[at + len(bare) :]) if bare else (full, [])

    def _spelling(self, vocabulary: Mapping[str, int], decoder: _Decoder, path: Path) -> Spelling:
        added = self._tokenizer.get_added_tokens_decoder()
        largest = max(vocabulary, key=lambda text: vocabulary[text])
        pieces = [b""] * (check_id(vocabulary[largest], path, largest) + 1)
        for text, token_id in vocabulary.items():
            if token_id not in added:
                pieces[token_id] = decoder.spell(text)
            elif not added[token_id].special:  # as it was normalized, if it was
                text = self._tokenizer.id_to_token(token_id) or text
                pieces[token_id] = text.encode() if decoder.byte_level else decoder.spell(text)
        strips = decoder.strips_space
        opening = [piece.removeprefix(b" ") for piece in pieces] if strips else pieces
        specials = {i: token.content for i, token in added.items() if token.special}
        return Spelling(pieces, opening, specials, once=decoder.byte_level)


def _read(source: Source, path: Path) -> Any:
    import tokenizers

    text = source.text(FILE, MAX_BYTES)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:
        if not _is_the_library_s(error):
            raise
        raise CheckpointError(f"{path} is unreadable: {error}") from error


def _is_the_library_s(error: BaseException) -> bool:
    """Returns whether the library raised the error. It raises nothing more precise than Exception,
    and, as it is written in Rust, for a mistake of its own what is no Exception, of a class that
    cannot be imported.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _to_library(token: AddedToken) -> Any:
    import tokenizers

    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _from_library(token: Any) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _read_decoder(raw: Keys) -> _Decoder:
    """Returns how tokens are spelled by tokenizer.json's `decoder`, which the library has read
    before.

    Raises CheckpointError for what is not followed here, since tokens would be spelled otherwise
    than is meant.
    """
    match raw.raw:
        case {"type": "ByteLevel"} | {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}:
            return _Decoder(byte_level=True)
        case {"type": "Sequence", "decoders": [*steps]}:
            pass
        case only:
            steps = [only]
    decoder = _Decoder()
    for step in steps:
        decoder = _follow(decoder, step) or _refuse(raw, step)
    return decoder if steps else _refuse(raw, steps)


def _refuse(raw: Keys, step: object) -> NoReturn:
    raise raw.wrong("type", f"is not supported with {shown(step)}")


def _follow(decoder: _Decoder, step: object) -> _Decoder | None:
    """Returns the decoder with one step more; None where that is not followed here. Before "Fuse"
    the steps change every token, after it the text.
    """
    match step:
        case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
            strips = decoder.strips_space or start == 1
            return replace(decoder, strips_space=strips) if decoder.joins else None
        case _ if decoder.joins:
            return None
        case {"type": "Fuse"}:
            return replace(decoder, joins=True)
        case {"type": "ByteFallback"}:
            return replace(decoder, byte_fallback=True)
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return replace(decoder, replaced=(*decoder.replaced, (old, new)))
        case {"type": "Metaspace", **stated}:
            replaced = (*decoder.replaced, (str(stated.get("replacement", SPACE)), " "))
            strips = stated.get("prepend_scheme", "always") != "never"
            return replace(decoder, replaced=replaced, strips_space=strips)
    return None


def _byte_alphabet() -> dict[str, int]:
    """Returns the byte of each printable character that GPT-2 has for a byte (openai/gpt-2,
    src/encoder.py).
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _spell_bytes(token: str) -> bytes:
    if all(char in _BYTE_OF for char in token):
        return bytes(_BYTE_OF[char] for char in token)
    return token.encode()
