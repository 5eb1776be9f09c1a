"""Tokenizers in GGUF files give the ids that the tokenizers give which they were made of."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter

from engine.checkpoint.gguf.header import read_header
from engine.checkpoint.gguf.vocabulary import MOST_TAKEN_OUT, end_ids
from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.tokenizer import Tokenizer
from engine.checkpoint.tokenizer_archive import tokenizer_archive
from tests.engine.checkpoint import hostile
from tests.engine.checkpoint.gguf.writing import (
    BYTE,
    CONTROL,
    UNUSED,
    USER_DEFINED,
    merges,
    scores,
    write,
)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEFINED = ("<think>", "two words", "ab")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Mistral's (tekken.json of mistralai/Mistral-Nemo-Instruct-2407).
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def rule(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


# How the tokenizer.json of a model cuts, by the name that its GGUF file has for it.
CUTS: dict[str, Any] = {
    "llama-bpe": rule(TikTokenConverter().pattern),
    "tekken": rule(TEKKEN),
    "gpt-2": pre_tokenizers.ByteLevel(False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    ),
}
LINES = [*hostile.documents().splitlines()[:400], *hostile.PARTS, "don't DON'T we'll 12345 67"]


def trained(cut: Any, normalizer: Any = None, ignore_merges: bool = False) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = cut, decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    made.add_tokens([AddedToken(text, normalized=False) for text in DEFINED])
    return made


def file_of(path: Path, metadata: Mapping[str, Any], **more: Any) -> Path:
    """A GGUF file of a tokenizer and nothing else."""
    keys = {f"tokenizer.{key}": value for key, value in more.items()}
    return write(path / "t.gguf", {"general.architecture": "llama", **metadata, **keys}, {})


NAMED = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}


@pytest.fixture(scope="module", params=[*CUTS, "qwen2"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tokenizers.Tokenizer, Tokenizer]:
    """A tokenizer as it was made, and as it is read from a GGUF file."""
    name = request.param
    if name == "qwen2":
        qwen = transformers.Qwen2Tokenizer()._tokenizer
        made = trained(qwen.pre_tokenizer, qwen.normalizer)
        assert isinstance(made.normalizer, normalizers.NFC)
    else:
        made = trained(CUTS[name], ignore_merges=name in ("llama-bpe", "tekken"))
    path = file_of(tmp_path_factory.mktemp(name), merges(made, name, **NAMED))
    return made, Tokenizer.load(path)


def same(pair: tuple[tokenizers.Tokenizer, Tokenizer], text: str) -> None:
    made, ours = pair
    ids = made.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, add_bos=False) == ids, text
    assert ours.decode(ids) == made.decode(ids), text


def test_hostile_texts_become_the_same_ids(pair: tuple[tokenizers.Tokenizer, Tokenizer]) -> None:
    for text in [*hostile.texts(150), *LINES, *map(str, range(0, 30000, 1234))]:
        same(pair, text)
    assert pair[1].encode("<think><|im_end|>ab", add_bos=False)[1] == 2


SEEN = [*SPECIAL, *DEFINED, *LINES]


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(SEEN)).map("".join)))
def test_any_text_becomes_the_same_ids(
    pair: tuple[tokenizers.Tokenizer, Tokenizer], text: str
) -> None:
    same(pair, text)


def pieces(path: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_prefix=str(path / "tokenizer"),
        vocab_size=900,
        minloglevel=2,
        **{
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            **options,
        },
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))


OWN = ("<s>", "</s>", "<unk>")  # which are taken out of a text, as sentencepiece does not


@pytest.fixture(scope="module", params=[True, False])
def sentences(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    """With the space before a text and without."""
    path = tmp_path_factory.mktemp("pieces")
    model = pieces(path, add_dummy_prefix=request.param)
    more = {} if request.param else {"ggml.add_space_prefix": False}
    return model, Tokenizer.load(file_of(path, scores(model, {}), **more))


def test_texts_become_the_ids_of_the_sentencepiece_model(
    sentences: tuple[sentencepiece.SentencePieceProcessor, Tokenizer],
) -> None:
    model, ours = sentences
    for text in [*hostile.texts(150), *LINES]:
        if not any(special in text for special in OWN):
            ids = model.encode(text)
            assert ours.encode(text) == [model.bos_id(), *ids], text
            assert ours.decode(ids) == model.decode(ids), text


@settings(max_examples=150, deadline=None)
@given(text=st.text())
def test_any_text_becomes_the_ids_of_the_sentencepiece_model(
    sentences: tuple[sentencepiece.SentencePieceProcessor, Tokenizer], text: str
) -> None:
    model, ours = sentences
    assume(not any(special in text for special in OWN))
    assert ours.encode(text) == [model.bos_id(), *model.encode(text)]


def test_tokens_added_to_pieces_are_taken_out_of_a_text_first(tmp_path: Path) -> None:
    """As by llama.cpp, and by transformers where `legacy` is on: each begins a text anew."""
    model = pieces(tmp_path)
    size = model.get_piece_size()
    added = {"<|im_end|>": CONTROL, "<think>": USER_DEFINED, "  ": USER_DEFINED, "[PAD]": UNUSED}
    ours = Tokenizer.load(file_of(tmp_path, scores(model, added)))
    end, think, spaces, pad = range(size, size + 4)
    word = model.encode("word")
    assert ours.encode("word<|im_end|>word<think>word", add_bos=False) == [
        *(*word, end, *word, think, *word)
    ]
    assert ours.encode("  ", add_bos=False) == [spaces]
    assert pad not in ours.encode("[PAD]")
    assert ours.decode([*word, end, think, spaces]) == "word<think>  "
    assert ours.vocab_size == size + 4


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, (True, False)),
        ({"ggml.add_bos_token": False}, (False, False)),
        ({"ggml.add_eos_token": True}, (True, True)),
    ],
)
def test_what_goes_around_a_prompt_is_as_the_file_says(
    more: dict[str, Any], expected: tuple[bool, bool], tmp_path: Path
) -> None:
    """llama.cpp adds the first token by default to a `llama` and to a `llama-bpe` vocabulary."""
    model = pieces(tmp_path)
    made = trained(CUTS["llama-bpe"], ignore_merges=True)
    for metadata in (scores(model, {}), merges(made, "llama-bpe", **NAMED)):
        ours = Tokenizer.load(file_of(tmp_path, metadata, **more))
        ids = ours.encode("the word")
        found = ids[0] == ours.bos_id, ids[-1] == ours.eos_id
        assert found == expected
    ours = Tokenizer.load(file_of(tmp_path, merges(made, "gpt-2", **NAMED)))
    assert ours.encode("the word") == ours.encode("the word", add_bos=False)


def test_a_conversation_is_written_as_transformers_writes_it(tmp_path: Path) -> None:
    made = trained(CUTS["smollm"])
    path = file_of(tmp_path, merges(made, "smollm", **NAMED), chat_template=CHATML)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, chat_template=CHATML)
    messages = [{"role": "system", "content": "Be <think>."}, {"role": "user", "content": "the"}]
    wanted = fast.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ours = Tokenizer.load(path)
    assert ours.encode_chat(messages) == wanted
    assert ours.unknown_names == []


def test_of_several_templates_the_one_without_a_name_or_named_default_counts(
    tmp_path: Path,
) -> None:
    metadata = merges(trained(CUTS["gpt-2"]), "gpt-2")
    both = {"chat_template.tool_use": "tools", "chat_templates": ["tool_use"]}
    for more, expected in (
        ({"chat_template": "plain", **both}, "plain"),
        ({"chat_template.default": "named", **both}, "named"),
        (both, None),
        ({}, None),
    ):
        chat = Tokenizer.load(file_of(tmp_path, metadata, **more)).chat
        assert (None if chat is None else chat.source) == expected
    with pytest.raises(CheckpointError, match=r"t\.gguf: the chat template does not parse"):
        Tokenizer.load(file_of(tmp_path, metadata, chat_template="{% if %}"))


def test_the_ends_of_a_turn_end_an_output(tmp_path: Path) -> None:
    made = trained(CUTS["gpt-2"])
    for named, more, expected in (
        ({"eos_token": "<|im_end|>"}, {}, {"<|im_end|>", "<|endoftext|>"}),
        ({}, {}, {"<|im_end|>", "<|endoftext|>"}),
        ({}, {"ggml.eot_token_id": 700}, {"<|im_end|>", "<|endoftext|>", 700}),
        ({"eos_token": "ab"}, {"ggml.eom_token_id": 1}, {"<|im_end|>", "<|endoftext|>", "ab", 1}),
    ):
        path = file_of(tmp_path, merges(made, "gpt-2", **named), **more)
        ids = {made.token_to_id(each) if isinstance(each, str) else each for each in expected}
        assert set(end_ids(read_header(path))) == ids


def test_gateways_get_a_tokenizer_that_gives_the_same_ids(
    pair: tuple[tokenizers.Tokenizer, Tokenizer], tmp_path: Path
) -> None:
    made, _ = pair
    path = file_of(tmp_path, merges(made, "gpt-2", **NAMED), chat_template=CHATML)
    fast, stated = unpacked(path)
    ours = Tokenizer.load(path)
    for text in hostile.texts(30):
        assert fast.encode(text, add_special_tokens=False).ids == ours.encode(text, add_bos=False)
    assert stated["eos_token"] == "<|im_end|>"
    assert stated["chat_template"] == CHATML


def test_gateways_get_pieces_as_merges(tmp_path: Path) -> None:
    model = pieces(tmp_path)
    added = {"<|im_end|>": CONTROL, "<think>": USER_DEFINED, "[PAD930]": UNUSED}
    path = file_of(tmp_path, scores(model, added))
    fast, _ = unpacked(path)
    ours = Tokenizer.load(path)
    for text in [*hostile.texts(60), "a<|im_end|>b <think>c", "[PAD930] x"]:
        assert fast.encode(text, add_special_tokens=False).ids == ours.encode(text, add_bos=False)


def unpacked(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    with zipfile.ZipFile(BytesIO(tokenizer_archive(path))) as archive:
        text = archive.read("tokenizer.json").decode()
        return tokenizers.Tokenizer.from_str(text), json.loads(
            archive.read("tokenizer_config.json")
        )


@cache
def small() -> dict[str, Any]:
    return merges(trained(CUTS["gpt-2"]), "gpt-2", **NAMED)


def test_merges_without_the_package_tokenizers_say_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from engine.checkpoint.tokenizer import Tokenizer\n"
        "try: Tokenizer.load(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
        "assert not {'torch', 'numpy', 'gguf'} & sys.modules.keys()\n"
    )
    command = [sys.executable, "-c", code, str(file_of(tmp_path, small()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "t.gguf needs the package tokenizers: pip install 'niyama[hf]'" in done.stdout


TOKENS = "tokenizer.ggml.tokens"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"tokenizer.ggml.model": "bert"}, "model is not supported .* got 'bert'"),
    "another cut": ({"tokenizer.ggml.pre": "falcon"}, "pre must name a known way .* got 'falcon'"),
    "no cut": ({"tokenizer.ggml.pre": None}, "pre must name a known way .*, and is missing"),
    "no tokens": ({TOKENS: None}, "tokens has 0 tokens"),
    "no texts": ({TOKENS: [1, 2]}, "tokens must be a list of texts"),
    "tokens twice": ({TOKENS: lambda old: [*old[:-1], "a"]}, "tokens has 'a' twice"),
    "too few types": ({"tokenizer.ggml.token_type": [1, 1]}, "token_type must be a list of 902"),
    "types of text": ({"tokenizer.ggml.token_type": ["1"] * 902}, "token_type must be a list"),
    "a type of none": ({"tokenizer.ggml.token_type": [9] * 902}, "token_type must hold numbers of"),
    "no merges": ({"tokenizer.ggml.merges": None}, "merges must be .*, and is missing"),
    "a merge of one": ({"tokenizer.ggml.merges": ["ab"]}, "merges has 'ab' at 0"),
    "a merge of none": ({"tokenizer.ggml.merges": ["zq qz"]}, "merges has 'zq qz' at 0"),
    "end beyond": ({"tokenizer.ggml.eos_token_id": 902}, "eos_token_id must be .* 0 to 901"),
    "end of text": ({"tokenizer.ggml.eos_token_id": "2"}, "eos_token_id must be a whole number"),
    "a flag of text": ({"tokenizer.ggml.add_bos_token": "yes"}, "add_bos_token must be true or"),
    "a template of number": ({"tokenizer.chat_template": 3}, "chat_template must be a text"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_keys_that_make_no_tokenizer_are_named(wrong: str, tmp_path: Path) -> None:
    changes, message = WRONG[wrong]
    metadata = dict(small())
    for key, value in changes.items():
        metadata[key] = value(metadata[key]) if callable(value) else value
    path = file_of(tmp_path, {key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(CheckpointError, match=rf"^t\.gguf.*{message}") as caught:
        Tokenizer.load(path)
    assert len(str(caught.value)) < 601


def test_pieces_that_make_no_tokenizer_are_named(tmp_path: Path) -> None:
    good = scores(pieces(tmp_path), {})
    kinds = good["tokenizer.ggml.token_type"]
    fewer = kinds.index(BYTE)
    for changes, message in (
        ({"tokenizer.ggml.scores": None}, "scores must be a list of 900 numbers"),
        ({"tokenizer.ggml.scores": [float("nan")] * 900}, "scores must be a list of 900 numbers"),
        ({"tokenizer.ggml.token_type": [1] * 900}, "token_type has 0 unknown tokens, not 1"),
        ({"tokenizer.ggml.token_type": [*kinds[:-1], 6]}, "is of type byte, but is none"),
        ({TOKENS: ["", *good[TOKENS][1:]]}, "tokens has '', which is no piece of a text"),
        ({TOKENS: ["a\0", *good[TOKENS][1:]]}, r"tokens has 'a\\x00', which is no piece"),
        (
            {"tokenizer.ggml.token_type": [1 if i == fewer else k for i, k in enumerate(kinds)]},
            "token_type has 255 byte tokens, not 256",
        ),
    ):
        metadata = {k: v for k, v in (good | changes).items() if v is not None}
        with pytest.raises(CheckpointError, match=message):
            Tokenizer.load(file_of(tmp_path, metadata))


def test_no_more_tokens_are_looked_for_in_a_text_than_can_be(tmp_path: Path) -> None:
    count = MOST_TAKEN_OUT + 1
    metadata = small() | {
        TOKENS: [f"<{i}>" for i in range(count)],
        "tokenizer.ggml.token_type": [CONTROL] * count,
    }
    message = r"t\.gguf: tokenizer\.ggml\.token_type has 65537 control and user-defined tokens"
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(file_of(tmp_path, metadata))
