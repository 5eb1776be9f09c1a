"""Token ids equal those of transformers, from the same folder, for hostile texts.

Where transformers 4 and 5 differ, or 5 loses what models were trained with, the difference is named
in a test of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from engine.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

LINES = [
    "In the beginning was the word, and the word was with the reader.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "The quick brown fox jumps over the lazy dog; 0123456789 times!",
]
FLAGS: dict[str, dict[str, bool]] = {
    "<plain>": {},
    "<left>": {"lstrip": True},
    "<right>": {"rstrip": True},
    "<both>": {"lstrip": True, "rstrip": True},
    "word": {"single_word": True},
    "<left word>": {"single_word": True, "lstrip": True},
    "<normal>": {"normalized": True},
    "<|end|>": {"special": True},
    "<|end|>\n": {"special": True, "rstrip": True},
}
_NO_FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
PARTS = [
    *FLAGS,
    *("<s>", "</s>", "<unk>", "<pad>", " ", "  ", "\n", "\t", "\u3000", "\u2581", "\x00"),
    *(
        "the",
        "fox",
        "_",
        "9",
        "²",
        ".",
        "e\u0301",
        "\u0301",
        "é",
        "漢字",
        "🙂",
        "👩\u200d👧",
        "ﬁ",
        "\u200d",
    ),
    *("<0x41>", "<", "|>", "Ⓐ", "\x1c", "\ufffd", "\xa0"),
]
TEXTS = [
    "",
    "the fox",
    " the fox ",
    "  two",
    "a <left> b <right> c <both> d",
    "wordy word swordfish word, ²word é_word word",
    "a<|end|>\n b",
    "x" * 5000,
    " " * 300,
    "<s>" * 50,
    "🙂" * 200,
    "".join(map(chr, range(1, 0x250))),
    *PARTS,
]
HOSTILE = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=10).map("".join),
    st.text(max_size=12),
)


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def decoder_from(first_id: int) -> dict[str, Any]:
    return {
        str(first_id + i): {"content": text, **_NO_FLAGS, **flags}
        for i, (text, flags) in enumerate(FLAGS.items())
    }


def train(folder: Path, **options: object) -> None:
    """A sentencepiece model of 400 pieces."""
    made_of: dict[str, object] = {
        "vocab_size": 400,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 3),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        **(made_of | options),
    )


def byte_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    return made


def with_flags(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    for text, flags in FLAGS.items():
        made.add_tokens([tokenizers.AddedToken(text, **(_NO_FLAGS | flags))])
    return made


def normalized() -> tokenizers.Tokenizer:
    """With a normalizer, and a template that puts tokens on both sides."""
    made = byte_level()
    made.normalizer = normalizers.NFKC()
    with_flags(made)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


def training(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """As it was left by training: cut and filled up."""
    made.enable_truncation(max_length=16)
    made.enable_padding(pad_id=3, pad_token="<pad>", length=64)
    return made


LLAMA: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
PLAIN: dict[str, Any] = {"add_bos_token": True}
SENTENCEPIECE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, LLAMA),
    "llama legacy": ({}, LLAMA | {"legacy": True}),
    "llama modern": ({}, LLAMA | {"legacy": False, "add_eos_token": True}),
    "llama fast": ({}, LLAMA | {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}),
    "llama of a model that normalizes": (
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        LLAMA,
    ),
    "no class": ({}, PLAIN),
    "no class, eos": ({}, PLAIN | {"add_eos_token": True}),
}
JSON: dict[str, tuple[Any, dict[str, Any]]] = {
    "byte-level": (lambda: with_flags(byte_level()), {}),
    "flags beside it": (byte_level, {"added_tokens_decoder": decoder_from(350)}),
    "flags on both sides": (
        lambda: with_flags(byte_level()),
        {
            "added_tokens_decoder": decoder_from(350)
            | {"350": {"content": "<plain>", "lstrip": True}}
        },
    ),
    "normalized": (normalized, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "GPT-2's class": (lambda: with_flags(byte_level()), {"bos_token": "<s>"}),
}


class Pair:
    """A folder read by us and by transformers."""

    def __init__(self, folder: Path) -> None:
        self.ours = Tokenizer.load(folder)
        self.theirs = transformers.AutoTokenizer.from_pretrained(folder)

    def compare(self, text: str) -> None:
        assert self.ours.encode(text) == self.theirs(text).input_ids
        bare = self.theirs(text, add_special_tokens=False).input_ids
        assert self.ours.encode(text, add_bos=False) == bare


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    made = {}
    for name, (options, stated) in SENTENCEPIECE.items():
        folder = tmp_path_factory.mktemp("model")
        train(folder, **options)
        write(folder, "tokenizer_config.json", {"added_tokens_decoder": decoder_from(400)} | stated)
        made[name] = Pair(folder)
    for name, (build, stated) in JSON.items():
        folder = tmp_path_factory.mktemp("json")
        build().save(str(folder / "tokenizer.json"))
        write(folder, "tokenizer_config.json", stated)
        made[name] = Pair(folder)
    return made


@pytest.mark.parametrize("kind", [*SENTENCEPIECE, *JSON])
def test_texts_become_the_same_tokens(kind: str, pairs: dict[str, Pair]) -> None:
    for text in TEXTS:
        pairs[kind].compare(text)


@pytest.mark.parametrize("kind", [*SENTENCEPIECE, *JSON])
@settings(deadline=None, max_examples=150)
@given(text=HOSTILE)
def test_any_text_becomes_the_same_tokens(kind: str, pairs: dict[str, Pair], text: str) -> None:
    pairs[kind].compare(text)
