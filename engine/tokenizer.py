"""Between text and token ids: sentencepiece's `tokenizer.model`, or a `tokenizer.json`.

No torch in here: the front end runs it. Reading back goes through bytes: every token id spells
some bytes, and an incremental UTF-8 decoder turns their sequence into text, so that half a
character is never shown and the cost of a token does not depend on how many came before.

Special tokens written out in a text ("<|im_start|>") become their ids, as with Hugging Face's
tokenizers; spelled back they are empty.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from engine.chat import ChatTemplate
from engine.computing.config import CheckpointError, read_json

SPACE = "\u2581"  # sentencepiece's visible space
# A second normalizer_spec {add_dummy_prefix: false}; protobuf merges it into the model's own.
_NO_PREFIX = b"\x1a\x02\x18\x00"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_INVALID = dict.fromkeys(range(0xDC80, 0xDD00), "\ufffd")  # bytes that are no UTF-8


class Spelling:
    """What each token id contributes to a text, as bytes; b"" for special tokens.

    `specials` are what those are written as; only stop strings are compared with it.
    """

    def __init__(
        self, pieces: Sequence[bytes], opening: Sequence[bytes], specials: Mapping[int, str]
    ) -> None:
        self._pieces = pieces
        self._opening = opening  # as the text's first: without the space the tokenizer put there
        self.specials = specials
        # The same as text, for where no character is open; None for those that are no whole text.
        self.texts = [_whole(piece) for piece in pieces]

    def __len__(self) -> int:
        return len(self._pieces)

    def of(self, token_id: int, opens: bool = False) -> bytes:
        """Empty for ids beyond the vocabulary: models pad theirs."""
        pieces = self._opening if opens else self._pieces
        return pieces[token_id] if 0 <= token_id < len(pieces) else b""


def _whole(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


class Detokenizer:
    """Text of a growing output: what `feed` and `finish` return adds up to its text.

    The text continues that of `prompt`: a space between the two is kept. Bytes that are no UTF-8
    come out as one U+FFFD each.
    """

    def __init__(self, spelling: Spelling, prompt: Iterable[int] = ()) -> None:
        self._spelling = spelling
        self._texts = spelling.texts
        self.specials = spelling.specials
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._opens = not any(spelling.of(token_id) for token_id in prompt)
        self._is_plain = not self._opens  # whether a token's text depends on nothing before it

    def feed(self, token_id: int) -> str:
        """The text that is certain now; "" in the middle of a character."""
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
        """What an unfinished character leaves, when no more tokens come."""
        return self._utf8.decode(b"", final=True).translate(_INVALID)


class _Backend(Protocol):
    """One kind of tokenizer file."""

    spelling: Spelling
    bos_id: int | None
    eos_id: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added to it."""


class Tokenizer:
    """A checkpoint's tokenizer: text to ids, ids to text, conversations to ids."""

    def __init__(
        self, backend: _Backend, adds_bos: bool = False, chat: ChatTemplate | None = None
    ) -> None:
        self._backend = backend
        self._chat = chat
        self.spelling = backend.spelling
        self.bos_id = backend.bos_id
        self.eos_id = backend.eos_id
        self.adds_bos = adds_bos and backend.bos_id is not None

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """From a checkpoint folder. Raises CheckpointError when there is none that we can read."""
        folder = Path(folder)
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.is_file() else {}
        stated = settings.get("add_bos_token")
        backend: _Backend
        if (folder / "tokenizer.model").is_file():
            backend = SentencePiece(folder, settings)
            adds_bos = stated is not False
        elif (folder / "tokenizer.json").is_file():
            backend = HuggingFace(folder, settings)
            adds_bos = backend.adds_bos if stated is None else bool(stated)
        else:
            raise CheckpointError(f"no tokenizer.model or tokenizer.json in {folder}")
        return cls(backend, adds_bos, _chat_template(folder, settings))

    @property
    def vocab_size(self) -> int:
        return len(self.spelling)

    @property
    def has_chat_template(self) -> bool:
        return self._chat is not None

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Token ids, after the beginning-of-sequence token where the model wants one."""
        ids = self._backend.encode(text)
        if add_bos and self.adds_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        return ids

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,
        most_chars: int | None = None,
    ) -> list[int]:
        """Token ids of a conversation as the checkpoint's template writes it, nothing added.

        Raises ValueError when there is no template, or it refuses the messages or writes more than
        `most_chars`.
        """
        if self._chat is None:
            raise ValueError("the model has no chat template")
        text = self._chat.render(messages, add_generation_prompt, most_chars)
        return self.encode(text, add_bos=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The whole text of some ids."""
        detokenizer = self.detokenizer()
        return "".join([*map(detokenizer.feed, ids), detokenizer.finish()])

    def detokenizer(self, prompt: Iterable[int] = ()) -> Detokenizer:
        """For the output that continues `prompt`."""
        return Detokenizer(self.spelling, prompt)


class SentencePiece:
    """`tokenizer.model` (https://github.com/google/sentencepiece), with added special tokens."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        path = folder / "tokenizer.model"
        try:
            self._first = sentencepiece.SentencePieceProcessor(model_file=str(path))
            unprefixed = sentencepiece.SentencePieceProcessor(
                model_proto=self._first.serialized_model_proto() + _NO_PREFIX
            )
        except RuntimeError as error:
            raise CheckpointError(f"{path} is not a sentencepiece model: {error}") from error
        model = self._first
        pieces = [self._spell(i) for i in range(model.get_piece_size())]
        special = {
            model.id_to_piece(i): i for i in range(len(pieces)) if model.is_control(i)
        } | _added_tokens(folder, settings, pieces)
        opening = [self._open(i, piece) for i, piece in enumerate(pieces)]
        adds_space = model.encode("a") != unprefixed.encode("a")
        specials = {i: text for text, i in special.items() if not pieces[i]}
        self.spelling = Spelling(pieces, opening if adds_space else pieces, specials)
        # Whether a space is put before what follows a special token, too: Hugging Face's key.
        self._rest = unprefixed if settings.get("legacy") is False else model
        self.bos_id = _special_id(settings, "bos_token", special, model.bos_id())
        self.eos_id = _special_id(settings, "eos_token", special, model.eos_id())
        self._special = special
        longest_first = sorted(special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode(self, text: str) -> list[int]:
        if not self._special:
            return self._first.encode(text)
        ids: list[int] = []
        for index, part in enumerate(self._split.split(text)):
            if index % 2:
                ids.append(self._special[part])
            elif part:
                ids += (self._rest if index else self._first).encode(part)
        return ids

    def _spell(self, token_id: int) -> bytes:
        model = self._first
        if model.is_control(token_id):
            return b""
        if model.is_unknown(token_id):
            return model.decode([token_id]).encode()
        piece = model.id_to_piece(token_id)
        if model.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def _open(self, token_id: int, piece: bytes) -> bytes:
        """Drops a piece's own space, but keeps a space spelled as a byte."""
        if token_id < self._first.get_piece_size() and self._first.is_byte(token_id):
            return piece
        return piece.removeprefix(b" ")


class HuggingFace:
    """`tokenizer.json`, read by the `tokenizers` package (extra `hf`)."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            import tokenizers
        except ImportError:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} needs the package tokenizers:"
                " pip install 'niyama[hf]'"
            ) from None
        raw = read_json(folder / "tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing more precise
            raise CheckpointError(f"{folder / 'tokenizer.json'} is unreadable: {error}") from error
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        added = {token["id"]: token for token in raw.get("added_tokens", [])}
        byte_level, strips_space = _decoder(raw.get("decoder") or {}, folder)
        pieces = [b""] * (max(vocab.values()) + 1)
        for text, token_id in vocab.items():
            if token_id not in added:
                pieces[token_id] = _spell_bytes(text) if byte_level else _spell_text(text)
            elif not added[token_id].get("special"):
                pieces[token_id] = added[token_id]["content"].encode()
        opening = [piece.removeprefix(b" ") for piece in pieces] if strips_space else pieces
        specials = {i: token["content"] for i, token in added.items() if token.get("special")}
        self.spelling = Spelling(pieces, opening, specials)
        first = self._tokenizer.encode("", add_special_tokens=True).ids[:1]
        self.bos_id = _special_id(settings, "bos_token", vocab, first[0] if first else -1)
        self.eos_id = _special_id(settings, "eos_token", vocab, -1)
        self.adds_bos = bool(first) and first[0] == self.bos_id

    def encode(self, text: str) -> list[int]:
        # Not `encode`, which also keeps where in the text each token stands: many times the memory,
        # with Python's lock held.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _decoder(raw: Mapping[str, Any], folder: Path) -> tuple[bool, bool]:
    """Of tokenizer.json's decoder: whether tokens spell bytes in GPT-2's alphabet, and whether
    the text's first space is dropped.
    """
    steps = raw["decoders"] if raw.get("type") == "Sequence" else [raw]
    kinds = {step.get("type") for step in steps}
    if kinds == {"ByteLevel"}:
        return True, False
    if kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and kinds:
        prepends = any(
            step.get("prepend_scheme", "always") != "never"
            for step in steps
            if step["type"] == "Metaspace"
        )
        return False, prepends or "Strip" in kinds
    raise CheckpointError(
        f"decoder {sorted(map(str, kinds))} of {folder}/tokenizer.json is unknown"
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte (openai/gpt-2, src/encoder.py), inverted."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _spell_bytes(token: str) -> bytes:
    if all(char in _BYTE_OF for char in token):
        return bytes(_BYTE_OF[char] for char in token)
    return token.encode()


def _spell_text(token: str) -> bytes:
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(SPACE, " ").encode()


def _added_tokens(folder: Path, settings: Mapping[str, Any], pieces: list[bytes]) -> dict[str, int]:
    """Added tokens beside a sentencepiece model, which `pieces` is made to spell."""
    added = {
        token["content"]: (int(token_id), bool(token.get("special")))
        for token_id, token in (settings.get("added_tokens_decoder") or {}).items()
    }
    path = folder / "added_tokens.json"
    for content, token_id in (read_json(path) if path.is_file() else {}).items():
        added.setdefault(content, (token_id, False))
    for content, (token_id, special) in added.items():
        pieces.extend([b""] * (token_id + 1 - len(pieces)))
        pieces[token_id] = b"" if special else content.encode()
    return {content: token_id for content, (token_id, _) in added.items()}


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Names such as "bos_token" to what is written for them."""
    written = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = settings.get(name)
        value = value.get("content") if isinstance(value, Mapping) else value
        if value is not None:
            written[name] = str(value)
    return written


def _special_id(
    settings: Mapping[str, Any], name: str, ids: Mapping[str, int], default: int
) -> int | None:
    """The id of a special token: as tokenizer_config.json names it, else the tokenizer's own."""
    token_id = ids.get(_special_tokens(settings).get(name, ""), default)
    return token_id if token_id >= 0 else None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> ChatTemplate | None:
    """From chat_template.jinja, else tokenizer_config.json, where several may be named."""
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if not source:
        return None
    try:
        return ChatTemplate(source, _special_tokens(settings))
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
