"""Reads `tokenizer.model` (https://github.com/google/sentencepiece) and the tokens added beside it.

Between added tokens sentencepiece encodes. Where the checkpoint names the class LlamaTokenizer,
that class's rules hold, as in transformers 5: nothing is normalized, text that begins with a space
gets none before it, and what follows an added token gets one only where `legacy` says so. In all
other cases sentencepiece's own rules hold, and what follows an added token gets a space unless
`legacy` is off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import sentencepiece

from engine.checkpoint.added_tokens import AddedToken, AddedTokens
from engine.checkpoint.detokenizer import SPACE, Spelling
from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.source import Source
from engine.checkpoint.special_tokens import TokenizerSettings

FILE = "tokenizer.model"
MAX_BYTES = 64 << 20  # of the file; the largest in use has a tenth
# Fields of a second normalizer_spec; protobuf merges it into the model's own.
_NO_PREFIX = b"\x18\x00"  # add_dummy_prefix: false
_NO_RULES = b"\x12\x00\x20\x00"  # precompiled_charsmap: "", remove_extra_whitespaces: false


class SentencePiece:
    """The tokenizer of a tokenizer.model. Raises CheckpointError for a file that is no
    sentencepiece model.
    """

    named: Mapping[str, AddedToken]
    around: tuple[Sequence[int], Sequence[int]]
    tokens: Mapping[str, tuple[AddedToken, int]]  # taken out of a text first, with their ids

    def __init__(self, source: Source, settings: TokenizerSettings) -> None:
        path = source.place(FILE)
        model = _load(source.data(FILE, MAX_BYTES), path)
        is_llama = settings.is_llama
        self._model = model
        self.serialized: bytes = model.serialized_model_proto()
        self.is_llama = is_llama
        self.splits_special = settings.splits_special
        rules = _NO_RULES if is_llama else b""
        self._plain = _changed(model, rules + _NO_PREFIX)
        has_prefix = settings.add_prefix_space is not False or not is_llama
        self._prefixed = _changed(model, rules) if has_prefix else self._plain
        self.prefixes_all = not is_llama if settings.legacy is None else settings.legacy
        pieces = _pieces(model, path)
        self.named = settings.named(pieces) | dict(_own_names(model, settings))
        tokens = self.tokens = self._tokens(pieces, settings)
        self._added = AddedTokens(
            (token, token_id)
            for token, token_id in tokens.values()
            if not (token.special and settings.splits_special)
        )
        self.spelling = self._spelling(tokens)
        ids = pieces | {content: token_id for content, (_, token_id) in tokens.items()}
        self.bos_id = self._id_of("bos_token", ids, model.bos_id())
        self.eos_id = self._id_of("eos_token", ids, model.eos_id())
        # transformers 5 adds none where add_bos_token is not stated; 4.x does, and models want it.
        self.around = ([] if self.bos_id is None else [self.bos_id], [])

    def encode(self, text: str) -> list[int]:
        if not self._added.occur_in(text):
            ids: list[int] = self._encoder(text, is_first=True).encode(text)
            return ids
        ids = []
        for index, part in enumerate(self._added.split(text)):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encoder(part, index == 0).encode(part)
        return ids

    @property
    def has_prefix(self) -> bool:
        """Returns whether a text gets a space before it."""
        return bool(self._prefixed.normalize("a") != self._plain.normalize("a"))

    def plainly(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts as they stand in a normalized one: with nothing changed in them
        and no added token sought.
        """
        model = _changed(self._model, _NO_RULES + _NO_PREFIX)
        ids: list[list[int]] = model.encode(list(texts), num_threads=1)
        return ids

    def _encoder(self, text: str, is_first: bool) -> sentencepiece.SentencePieceProcessor:
        if self.is_llama and text.startswith((" ", SPACE)):
            return self._plain
        return self._prefixed if is_first or self.prefixes_all else self._plain

    def _id_of(self, name: str, ids: dict[str, int], own_id: int) -> int | None:
        """Returns the id of a special token by its name; else that of the model's own, which
        sentencepiece gives as -1 where there is none.
        """
        token = self.named.get(name)
        token_id = ids.get(token.content, own_id) if token else -1
        return token_id if token_id >= 0 else None

    def _tokens(
        self, pieces: dict[str, int], settings: TokenizerSettings
    ) -> dict[str, tuple[AddedToken, int]]:
        """Returns the added tokens by their text. Of several with one text, the later ones
        count.
        """
        tokens = {
            piece: (AddedToken(piece, special=True), token_id)
            for piece, token_id in pieces.items()
            if self._model.is_control(token_id)
        }
        for token in settings.added:
            assert token.id is not None
            tokens[token.content] = (token, token.id)
        for token in [*self.named.values(), *settings.extra]:
            _, token_id = tokens.get(token.content, (token, pieces.get(token.content)))
            if token_id is not None:
                tokens[token.content] = (token, token_id)
        if not settings.is_llama:  # there the text is not yet normalized when they are looked for
            return {text: (replace(t, normalized=False), i) for text, (t, i) in tokens.items()}
        return tokens

    def _spelling(self, tokens: dict[str, tuple[AddedToken, int]]) -> Spelling:
        pieces = [self._spell(i) for i in range(self._model.get_piece_size())]
        for content, (token, token_id) in tokens.items():
            pieces.extend([b""] * (token_id + 1 - len(pieces)))
            pieces[token_id] = b"" if token.special else content.replace(SPACE, " ").encode()
        specials = {i: content for content, (token, i) in tokens.items() if token.special}
        if not self.has_prefix:
            return Spelling(pieces, pieces, specials)
        opening = [self._open(i, piece) for i, piece in enumerate(pieces)]
        return Spelling(pieces, opening, specials)

    def _spell(self, token_id: int) -> bytes:
        model = self._model
        if model.is_control(token_id):
            return b""
        if model.is_unknown(token_id):
            return str(model.decode([token_id])).encode()
        piece = model.id_to_piece(token_id)
        if model.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def _open(self, token_id: int, piece: bytes) -> bytes:
        """Returns the piece as the text's first, without the space that is its own, but with a
        space that is spelled as a byte.
        """
        if token_id < self._model.get_piece_size() and self._model.is_byte(token_id):
            return piece
        return piece.removeprefix(b" ")


def _load(data: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(data)  # which, unlike `model_proto`, refuses an empty one
        return model
    except (RuntimeError, OSError, UnicodeDecodeError) as error:  # the last of its own message
        raise CheckpointError(
            f"{path} is not a sentencepiece model (one of another kind, such as tiktoken's, needs a"
            f" tokenizer.json beside it): {error}"
        ) from error


def _pieces(model: sentencepiece.SentencePieceProcessor, path: Path) -> dict[str, int]:
    try:
        return {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} has a piece that is no text: {error}") from error


def _changed(
    model: sentencepiece.SentencePieceProcessor, fields: bytes
) -> sentencepiece.SentencePieceProcessor:
    """Returns the same model with other fields in its normalizer_spec (field 3 of the model)."""
    if not fields:
        return model
    proto = model.serialized_model_proto() + b"\x1a" + bytes([len(fields)]) + fields
    return sentencepiece.SentencePieceProcessor(model_proto=proto)


def _own_names(
    model: sentencepiece.SentencePieceProcessor, settings: TokenizerSettings
) -> Iterator[tuple[str, AddedToken]]:
    """Yields the model's own tokens, with their names, where no file beside it states these
    names.
    """
    ids = {"bos_token": model.bos_id(), "eos_token": model.eos_id(), "unk_token": model.unk_id()}
    for name, token_id in ids.items():
        if token_id >= 0 and name not in settings.stated:
            yield name, AddedToken(model.id_to_piece(token_id), special=True)
