"""The tokenizer of a GGUF file, as the files of a checkpoint folder would state it.

`tokenizer.ggml.model` says which of two kinds it is: `gpt2`, merges of bytes, of which a
tokenizer.json is made; or `llama`, pieces with scores, of which a sentencepiece model is made. So
the readers of those two serve both. Tokens of the types "control" and "user-defined" are taken out
of a text before anything else, as llama.cpp does it, and the former are spelled as nothing.

Sources: llama.cpp's `src/llama-vocab.cpp` for the keys, the defaults and the tokens that end a
turn, and its `gguf-py/gguf/constants.py` for the types of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sentencepiece import sentencepiece_model_pb2 as sp

from engine.checkpoint.gguf import splits
from engine.checkpoint.gguf.header import Header
from engine.checkpoint.json_file import CheckpointError, shown
from engine.checkpoint.special_tokens import MAX_ID
from engine.checkpoint.tokenizer_json import BYTE_TOKEN

BPE, SENTENCEPIECE = "gpt2", "llama"
MOST_TAKEN_OUT = 1 << 16  # tokens that are looked for in a text first; 262,144 have some 6,000
_KINDS = _NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
# The names of special tokens, by the keys that hold their ids.
_NAMED = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
_USUAL = {"bos_token": 1, "eos_token": 2, "unk_token": 0}  # of sentencepiece, where not stated
_ENDING = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
# Control tokens that end a turn of the models that have them, whatever the keys say.
_ENDS = {
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"),
    *("<|endoftext|>", "<|end_of_text|>", "<EOT>", "</s>"),
}


class Vocabulary(NamedTuple):
    """The tokens of a file, by their ids, and what each is."""

    header: Header
    model: str  # of BPE and SENTENCEPIECE
    split: str  # how a text is cut into words: one of `splits.SPLITS`; of BPE alone
    tokens: list[str]
    kinds: list[int]

    def add_bos(self) -> bool:
        usual = self.model == SENTENCEPIECE or splits.adds_bos(self.split)
        return self.header.keys.flag("tokenizer.ggml.add_bos_token", usual)

    def named(self) -> dict[str, int]:
        """Returns the ids of special tokens by their names."""
        keys, found = self.header.keys, {}
        for name, key in _NAMED.items():
            usual = _USUAL.get(name) if self.model == SENTENCEPIECE else None
            if keys.states(key) or usual is not None:
                found[name] = keys.whole(key, usual, least=0, most=len(self.tokens) - 1)
        return found


def read_vocabulary(header: Header) -> Vocabulary:
    """Returns the tokens. Raises CheckpointError for keys that make no vocabulary."""
    keys = header.keys
    model = keys.word("tokenizer.ggml.model", "")
    if model not in (BPE, SENTENCEPIECE):
        raise keys.wrong("tokenizer.ggml.model", f"is not supported ({BPE}, {SENTENCEPIECE} are)")
    split = keys.word("tokenizer.ggml.pre", "") if model == BPE else ""
    if model == BPE and split not in splits.SPLITS:
        known = ", ".join(splits.SPLITS)
        raise keys.wrong("tokenizer.ggml.pre", f"must name a known way to cut texts ({known})")
    tokens = list(keys.words("tokenizer.ggml.tokens"))
    if not 0 < len(tokens) <= MAX_ID:
        raise CheckpointError(
            f"{header.where}: tokenizer.ggml.tokens has {len(tokens)} tokens, not 1 to {MAX_ID}"
        )
    _check_size(header, len(tokens))
    kinds = _numbers(header, "tokenizer.ggml.token_type", len(tokens), _NORMAL)
    if not all(kind in _KINDS for kind in kinds):
        raise keys.wrong("tokenizer.ggml.token_type", f"must hold numbers of {_KINDS} only")
    taken_out = sum(kind in (_CONTROL, _USER_DEFINED) for kind in kinds)
    if taken_out > MOST_TAKEN_OUT:
        raise CheckpointError(
            f"{header.where}: tokenizer.ggml.token_type has {taken_out} control and user-defined"
            f" tokens, over {MOST_TAKEN_OUT}"
        )
    ids = {text: i for i, text in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(text for i, text in enumerate(tokens) if ids[text] != i)
        raise CheckpointError(f"{header.where}: tokenizer.ggml.tokens has {shown(twice)} twice")
    return Vocabulary(header, model, split, tokens, [int(kind) for kind in kinds])


def end_ids(header: Header) -> tuple[int, ...]:
    """Returns the ids of the tokens that end an output: those that keys name, and those that are
    known to end a turn.
    """
    vocabulary, keys = read_vocabulary(header), header.keys
    last = len(vocabulary.tokens) - 1
    found = {keys.whole(key, least=0, most=last) for key in _ENDING if keys.states(key)}
    named = vocabulary.named()
    if "eos_token" in named:
        found.add(named["eos_token"])
    kinds = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    ends = {i for i, (text, kind) in enumerate(kinds) if kind == _CONTROL and text in _ENDS}
    return tuple(sorted(found | ends))


def tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns what a tokenizer_config.json would state: names of special tokens, the tokens that
    are taken out of a text first, what goes around a prompt, and the chat template.
    """
    keys, tokens = vocabulary.header.keys, vocabulary.tokens
    added = {
        str(i): {"content": text, "special": kind == _CONTROL, "normalized": False}
        for i, (text, kind) in enumerate(zip(tokens, vocabulary.kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    }
    return {
        "add_bos_token": vocabulary.add_bos(),
        "add_eos_token": keys.flag("tokenizer.ggml.add_eos_token"),
        "added_tokens_decoder": added,
        "chat_template": _chat_template(vocabulary.header),
        **{name: tokens[token_id] for name, token_id in vocabulary.named().items()},
    }


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the tokenizer.json of a vocabulary of merges."""
    name, tokens = vocabulary.split, vocabulary.tokens
    kinds = zip(tokens, vocabulary.kinds, strict=True)
    ids = {text: i for i, (text, kind) in enumerate(kinds) if kind != _UNUSED}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": splits.normalizer(name),
        "pre_tokenizer": splits.pre_tokenizer(name),
        "post_processor": None,
        "decoder": byte_level | {"use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": splits.ignores_merges(name),
            "vocab": ids,
            "merges": list(_merges(vocabulary.header, ids)),
        },
    }


def sentencepiece_model(vocabulary: Vocabulary) -> bytes:
    """Returns the sentencepiece model of a vocabulary of scores."""
    keys, tokens, kinds = vocabulary.header.keys, vocabulary.tokens, vocabulary.kinds
    where = vocabulary.header.where
    scores = _numbers(vocabulary.header, "tokenizer.ggml.scores", len(tokens), None)
    if kinds.count(_UNKNOWN) != 1:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.token_type has {kinds.count(_UNKNOWN)} unknown tokens, not 1"
        )
    model = sp.ModelProto()
    for text, kind, score in zip(tokens, kinds, scores, strict=True):
        if not text or "\0" in text:
            raise CheckpointError(
                f"{where}: tokenizer.ggml.tokens has {shown(text)}, which is no piece of a text"
            )
        if kind == _BYTE and not BYTE_TOKEN.fullmatch(text):
            raise CheckpointError(f"{where}: the token {shown(text)} is of type byte, but is none")
        # What is taken out of a text before is never looked for by sentencepiece.
        stored = _CONTROL if kind == _USER_DEFINED else kind
        model.pieces.add(piece=text, score=score, type=stored)
    if kinds.count(_BYTE) not in (0, 256):
        raise CheckpointError(
            f"{where}: tokenizer.ggml.token_type has {kinds.count(_BYTE)} byte tokens, not 256"
        )
    ids = vocabulary.named()
    trainer, rules = model.trainer_spec, model.normalizer_spec
    trainer.model_type = sp.TrainerSpec.BPE
    trainer.byte_fallback = _BYTE in kinds
    trainer.unk_id = kinds.index(_UNKNOWN)
    trainer.unk_piece = tokens[trainer.unk_id]
    trainer.bos_id, trainer.eos_id, trainer.pad_id = ids["bos_token"], ids["eos_token"], -1
    trainer.bos_piece, trainer.eos_piece = tokens[trainer.bos_id], tokens[trainer.eos_id]
    rules.name = "identity"
    rules.add_dummy_prefix = keys.flag("tokenizer.ggml.add_space_prefix", True)
    rules.remove_extra_whitespaces = keys.flag("tokenizer.ggml.remove_extra_whitespaces")
    rules.escape_whitespaces = True
    serialized: bytes = model.SerializeToString()
    return serialized


def _check_size(header: Header, count: int) -> None:
    """Raises CheckpointError where there are not as many tokens as the model embeds."""
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None and embedding.shape[0] != count:
        raise CheckpointError(
            f"{header.where}: tokenizer.ggml.tokens has {count} tokens, but token_embd.weight"
            f" {embedding.shape[0]} rows"
        )


def _numbers(header: Header, key: str, count: int, usual: float | None) -> list[float]:
    """Returns a list of one number for each token, all `usual` where the key is missing."""
    stated = header.metadata.get(key)
    if stated is None and usual is not None:
        return [usual] * count
    numbers = stated if isinstance(stated, list) else []
    if len(numbers) != count or not all(type(n) in (int, float) and abs(n) < 1e30 for n in numbers):
        raise header.keys.wrong(key, f"must be a list of {count} numbers, one for each token")
    return numbers


def _merges(header: Header, ids: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yields the pairs that become one token. In a file each is one text, with a space between the
    two, and neither begins with one.
    """
    if not header.keys.states("tokenizer.ggml.merges"):
        raise header.keys.wrong("tokenizer.ggml.merges", "must be a list of texts")
    for number, merge in enumerate(header.keys.words("tokenizer.ggml.merges")):
        left, _, right = merge[1:].partition(" ")
        left = merge[:1] + left
        if not {left, right, left + right} <= ids.keys():
            raise CheckpointError(
                f"{header.where}: tokenizer.ggml.merges has {shown(merge)} at {number}, which are"
                " no two tokens that make a third"
            )
        yield left, right


def _chat_template(header: Header) -> str | None:
    """Returns the template without a name; else the one named "default"; None where there is
    neither.
    """
    for key in ("tokenizer.chat_template", "tokenizer.chat_template.default"):
        if header.keys.states(key):
            return header.keys.word(key, "")
    return None
