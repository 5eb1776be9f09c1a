"""Between text and token ids: a checkpoint's `tokenizer.model`, or its `tokenizer.json`.

Where both files are there, `tokenizer.json` is read, as transformers does; but without its package
a `tokenizer.model` is, if it is sentencepiece's. Special tokens that are written out in a text
("<|im_start|>") become their ids, as with Hugging Face's tokenizers; spelled back they are empty.
No torch here, since the front end runs it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from engine.checkpoint.added_tokens import AddedToken
from engine.checkpoint.chat import ChatTemplate
from engine.checkpoint.detokenizer import Detokenizer, Spelling
from engine.checkpoint.json_file import CheckpointError, shown
from engine.checkpoint.opening import open_source
from engine.checkpoint.source import Source
from engine.checkpoint.special_tokens import TokenizerSettings, read_settings
from engine.checkpoint.tokenizer_json import HuggingFace
from engine.checkpoint.tokenizer_model import SentencePiece


class Backend(Protocol):
    """The reader of one kind of tokenizer file."""

    spelling: Spelling
    named: Mapping[str, AddedToken]  # special tokens by name
    bos_id: int | None
    eos_id: int | None
    splits_special: bool  # special tokens written in a text are text
    around: tuple[Sequence[int], Sequence[int]]  # what it puts before and after a prompt

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, with nothing added to it."""


class Tokenizer:
    """A checkpoint's tokenizer: it makes ids of text and of conversations, and text of ids."""

    def __init__(
        self,
        backend: Backend,
        around: tuple[Sequence[int], Sequence[int]] = ((), ()),
        chat: ChatTemplate | None = None,
    ) -> None:
        self.backend = backend
        self._before, self._after = around
        self.chat = chat
        self.spelling = backend.spelling
        self.bos_id = backend.bos_id
        self.eos_id = backend.eos_id

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Returns the tokenizer of the checkpoint at a path. Raises CheckpointError where there is
        none that can be read.
        """
        return cls.of(open_source(Path(path)))

    @classmethod
    def of(cls, source: Source) -> Tokenizer:
        """Returns the tokenizer of a checkpoint. Raises CheckpointError where there is none that
        can be read.
        """
        settings = read_settings(source)
        backend = _open_backend(source, settings)
        names = {name: token.content for name, token in backend.named.items()}
        chat = _chat_template(source, settings, names)
        return cls(backend, _around(backend, settings), chat)

    @property
    def vocab_size(self) -> int:
        """Returns the number of ids."""
        return len(self.spelling)

    @property
    def has_chat_template(self) -> bool:
        """Returns whether conversations can be encoded."""
        return self.chat is not None

    @property
    def unknown_names(self) -> list[str]:
        """Returns the special tokens that the chat template writes and nothing in the checkpoint
        names.
        """
        return [] if self.chat is None else self.chat.unknown_names

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Returns the ids of a text; with `add_bos` between those that the model wants around a
        prompt.

        Those are its beginning-of-sequence token and, for few models, others before or after it.
        Raises ValueError for a text that a tokenizer.json has no tokens for.
        """
        ids = self.backend.encode(text)
        if add_bos:
            ids[:0] = self._before
            ids += self._after
        return ids

    def surrounded(self, ids: Sequence[int]) -> Sequence[int]:
        """Returns the ids of a prompt between those that the model wants around one, unless it
        begins with them already, as a conversation does that a chat template has written.
        """
        if not (self._before or self._after):
            return ids
        if self._before and list(ids[: len(self._before)]) == list(self._before):
            return ids
        return array("I", [*self._before, *ids, *self._after])

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,
        most_chars: int | None = None,
    ) -> list[int]:
        """Returns the ids of a conversation as the checkpoint's template writes it, with nothing
        added.

        Raises ValueError where there is no template, or where it refuses the messages or writes
        more than `most_chars`.
        """
        if self.chat is None:
            raise ValueError("the model has no chat template")
        text = self.chat.render(messages, add_generation_prompt, most_chars)
        return self.encode(text, add_bos=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the whole text of some ids."""
        detokenizer = self.detokenizer()
        return "".join([*map(detokenizer.feed, ids), detokenizer.finish()])

    def detokenizer(self, prompt: Iterable[int] = ()) -> Detokenizer:
        """Returns a detokenizer for the output that continues `prompt`."""
        return Detokenizer(self.spelling, prompt)


def _open_backend(source: Source, settings: TokenizerSettings) -> Backend:
    described, model = "tokenizer.json", "tokenizer.model"
    if not source.has(described):
        if not source.has(model):
            raise CheckpointError(f"no {model} or {described} in {source.path}")
        return SentencePiece(source, settings)
    try:
        return HuggingFace(source, settings)
    except ImportError:
        needed = f"{source.place(described)} needs the package tokenizers: pip install 'niyama[hf]'"
    if not source.has(model):
        raise CheckpointError(needed)
    try:
        return SentencePiece(source, settings)
    except CheckpointError as error:
        raise CheckpointError(f"{needed} ({error})") from error


def _around(backend: Backend, settings: TokenizerSettings) -> tuple[Sequence[int], Sequence[int]]:
    """Returns what goes before and after a prompt: what add_bos_token and add_eos_token say, if
    they are stated, else what the file has.
    """
    before, after = map(list, backend.around)
    if settings.add_bos is not None and backend.bos_id is not None:
        others = [token_id for token_id in before if token_id != backend.bos_id]
        before = [backend.bos_id, *others] if settings.add_bos else others
    if settings.add_eos is not None and backend.eos_id is not None:
        others = [token_id for token_id in after if token_id != backend.eos_id]
        after = [*others, backend.eos_id] if settings.add_eos else others
    return before, after


def _chat_template(
    source: Source, settings: TokenizerSettings, names: Mapping[str, str]
) -> ChatTemplate | None:
    """Returns the template of chat_template.jinja, else that of tokenizer_config.json, where
    several may be named; None where there is none.
    """
    path, file = source.path, "chat_template.jinja"
    stated = source.text(file) if source.has(file) else settings.chat_template
    if isinstance(stated, list):
        templates = (entry for entry in stated if isinstance(entry, Mapping))
        named = {entry.get("name"): entry.get("template") for entry in templates}
        if None in named or None in named.values():
            raise CheckpointError(f"{path}: a chat_template has no name or no template")
        stated = named.get("default")
    if not stated:
        return None
    if not isinstance(stated, str):
        raise CheckpointError(f"{path}: chat_template must be a text, got {shown(stated)}")
    try:
        return ChatTemplate(stated, names)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
