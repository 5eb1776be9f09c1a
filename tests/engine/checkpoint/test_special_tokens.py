"""Which tokens are special: by which file, what templates write for them, what is unknown."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.tokenizer import Tokenizer
from engine.embedded import FOLDER
from server.convert.input import Bounds, Input
from server.reading.encoder import Encoder
from server.startup import load_tokenizer
from server.violations import InvalidRequest

transformers = pytest.importorskip("transformers")

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = [{"role": "user", "content": "the fox"}]
NAMED = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>"]


def write(folder: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


def write_model(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes((FOLDER / "tokenizer.model").read_bytes())


def write_json(folder: Path, adds_bos: bool = False) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=NAMED,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the quick brown fox", "jumps over the lazy dog"], trainer)
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    made.save(str(folder / "tokenizer.json"))
    return made


def token(content: str) -> dict[str, object]:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False}


FILES: dict[str, dict[str, Any]] = {
    "texts in the map": {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>"}},
    "objects in the map": {
        "special_tokens_map.json": {"bos_token": token("<s>"), "eos_token": token("</s>")}
    },
    "the map goes first": {
        "special_tokens_map.json": {"bos_token": "</s>", "eos_token": "<s>"},
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"},
    },
    "objects": {
        "tokenizer_config.json": {
            "bos_token": token("<s>") | {"__type": "AddedToken"},
            "eos_token": token("</s>") | {"__type": "AddedToken"},
        }
    },
}
ONLY_MODEL: dict[str, dict[str, Any]] = {
    "Llama's defaults": {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}},
    "stated as none": {
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "bos_token": None}
    },
}
ONLY_JSON: dict[str, dict[str, Any]] = {
    "GPT-2's defaults": {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}},
    "Qwen's defaults": {"tokenizer_config.json": {"tokenizer_class": "Qwen2TokenizerFast"}},
    "Qwen's defaults by the model": {"config.json": {"model_type": "qwen3"}},
    "nothing": {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}},
}
CASES = [
    *((write_model, files) for files in (FILES | ONLY_MODEL).values()),
    *((write_json, files) for files in (FILES | ONLY_JSON).values()),
]
IDS = [
    *(f"model, {name}" for name in FILES | ONLY_MODEL),
    *(f"json, {name}" for name in FILES | ONLY_JSON),
]


@pytest.mark.parametrize(("write_vocabulary", "files"), CASES, ids=IDS)
def test_names_and_chats_are_those_of_transformers(
    tmp_path: Path, write_vocabulary: Any, files: dict[str, Any]
) -> None:
    write_vocabulary(tmp_path)
    config = {"chat_template": CHAT} | files.get("tokenizer_config.json", {})
    write(tmp_path, files | {"tokenizer_config.json": config})
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    if theirs.bos_token not in (None, *NAMED):  # of the class's, and not in the vocabulary
        theirs.bos_token = None
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_id == theirs.eos_token_id
    rendered = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(MESSAGES) == rendered
    unknown = {"bos_token": ours.bos_id, "eos_token": ours.eos_id}
    assert ours.unknown_names == [name for name, token_id in unknown.items() if token_id is None]


def test_a_class_has_its_defaults_whatever_kind_of_file_it_is_beside(tmp_path: Path) -> None:
    """As in transformers 4; 5 passes over LlamaTokenizer beside a byte-level tokenizer.json."""
    write_json(tmp_path)
    write(tmp_path, {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast"}})
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


def test_a_map_beside_listed_added_tokens_fills_what_nothing_else_names(tmp_path: Path) -> None:
    """transformers leaves it aside, and chats begin without BOS."""
    write_model(tmp_path)
    added = {"2048": token("<|im_start|>") | {"special": True}}
    write(
        tmp_path,
        {
            "tokenizer_config.json": {"chat_template": CHAT, "added_tokens_decoder": added},
            "special_tokens_map.json": {"bos_token": "<|im_start|>"},
        },
    )
    assert Tokenizer.load(tmp_path).bos_id == 2048


def test_a_template_may_write_the_models_own_special_tokens(tmp_path: Path) -> None:
    write_json(tmp_path)
    template = "{{ image_token }}{{ pad_token }}"
    stated = {"chat_template": template, "image_token": "<|im_start|>", "pad_token": "</s>"}
    write(tmp_path, {"tokenizer_config.json": stated})
    assert Tokenizer.load(tmp_path).encode_chat(MESSAGES) == [4, 2]


def test_what_a_template_writes_and_nothing_names_is_reported(tmp_path: Path) -> None:
    """It comes out as nothing, as with transformers, which says nothing of it."""
    write_json(tmp_path)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ sep_token }}{% endfor %}"
    write(tmp_path, {"tokenizer_config.json": {"chat_template": template}})
    with structlog.testing.capture_logs() as lines:
        tokenizer = load_tokenizer(tmp_path)
    assert [line["names"] for line in lines] == [["bos_token", "sep_token"]]
    assert tokenizer.decode(tokenizer.encode_chat(MESSAGES)) == "the fox"


def test_a_template_that_writes_bos_gets_no_second_one(tmp_path: Path) -> None:
    write_json(tmp_path, adds_bos=True)
    stated = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT}
    write(tmp_path, {"tokenizer_config.json": stated})
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("the")[0] == tokenizer.bos_id
    assert tokenizer.encode_chat(MESSAGES).count(1) == 1


@pytest.mark.parametrize(("stated", "ends"), [({}, [1, 2]), ({"add_bos_token": False}, [2])])
def test_what_stands_around_a_prompt_is_what_the_files_say(
    tmp_path: Path, stated: dict[str, Any], ends: list[int]
) -> None:
    """A statement goes before tokenizer.json, as in transformers 4; 5 passes over it."""
    made = write_json(tmp_path)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"} | stated})
    tokenizer = Tokenizer.load(tmp_path)
    assert [i for i in tokenizer.encode("the") if i in (1, 2)] == ends
    assert not {1, 2} & set(tokenizer.encode("the", add_bos=False))


@pytest.mark.parametrize("write_vocabulary", [write_model, write_json])
def test_bos_is_added_where_nothing_says_otherwise(tmp_path: Path, write_vocabulary: Any) -> None:
    """To sentencepiece's models, as by transformers 4; by 5 only where add_bos_token is stated."""
    write_vocabulary(tmp_path)
    write(tmp_path, {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}})
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.encode("the")[0] == tokenizer.bos_id) == (write_vocabulary is write_model)


def test_a_dropout_for_training_does_not_make_prompts_random(tmp_path: Path) -> None:
    made = write_json(tmp_path)
    whole = Tokenizer.load(tmp_path).encode("the fox " * 100)
    made.model.dropout = 0.5
    made.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("the fox " * 100) == whole


def test_prompts_are_neither_cut_nor_filled_up(tmp_path: Path) -> None:
    made = write_json(tmp_path)
    whole = Tokenizer.load(tmp_path).encode("the fox " * 100)
    made.enable_truncation(max_length=16)
    made.enable_padding(pad_id=0, pad_token="<unk>", length=2000)
    made.save(str(tmp_path / "tokenizer.json"))
    assert len(whole) > 100
    assert Tokenizer.load(tmp_path).encode("the fox " * 100) == whole


@pytest.mark.parametrize("model", [b"SGk= 0\nIHRo 1\n", b"", b'{"config": {}}'])
def test_tokenizer_json_goes_first(tmp_path: Path, model: bytes) -> None:
    """The file beside it may be tiktoken's (Llama 3) or tekken's (Mistral)."""
    write_json(tmp_path)
    alone = Tokenizer.load(tmp_path).encode("the fox")
    (tmp_path / "tokenizer.model").write_bytes(model)
    assert Tokenizer.load(tmp_path).encode("the fox") == alone


def load_without_tokenizers(folder: Path) -> str:
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from engine.checkpoint.json_file import CheckpointError\n"
        "from engine.checkpoint.tokenizer import Tokenizer\n"
        "try: print(Tokenizer.load(sys.argv[1]).encode('the fox'))\n"
        "except CheckpointError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_the_package_a_sentencepiece_model_beside_it_is_read(tmp_path: Path) -> None:
    write_model(tmp_path)
    expected = Tokenizer.load(tmp_path).encode("the fox")
    write_json(tmp_path)
    assert load_without_tokenizers(tmp_path) == str(expected)
    (tmp_path / "tokenizer.model").write_text("SGk= 0\n")
    message = load_without_tokenizers(tmp_path)
    assert "pip install 'niyama[hf]'" in message
    assert "is not a sentencepiece model" in message


def test_a_model_of_another_kind_alone_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"SGk= 0\nIHRo 1\n")
    with pytest.raises(CheckpointError, match=r"needs a tokenizer\.json beside it"):
        Tokenizer.load(tmp_path)


def test_a_file_without_tokens_is_refused_and_one_that_knows_few_words_is_not(
    tmp_path: Path,
) -> None:
    for vocabulary in ({}, {"the": 0, "<s>": 1}):
        made = tokenizers.Tokenizer(models.WordLevel(vocabulary, "<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        made.save(str(tmp_path / "tokenizer.json"))
        if not vocabulary:
            with pytest.raises(CheckpointError, match="has no tokens"):
                Tokenizer.load(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 2
    unknown = Input("input.text", text="a fox")
    with pytest.raises(InvalidRequest, match=r"input\.text: the tokenizer cannot encode the text"):
        Encoder(tokenizer).encode(unknown, Bounds(2, 10, 1000))


def test_a_mistake_of_the_library_is_an_invalid_text_and_no_more(tmp_path: Path) -> None:
    """Where tokens that strip what is around them meet it panics, with what is no Exception."""
    made = tokenizers.Tokenizer(models.BPE({" ": 0, "\u3000": 1, "a": 2}, []))
    for content, rstrip in ((" ", True), ("\u3000", False)):
        stripping = tokenizers.AddedToken(
            content, lstrip=True, rstrip=rstrip, single_word=not rstrip
        )
        made.add_special_tokens([stripping])
    made.decoder = decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(Tokenizer.load(tmp_path))
    assert list(encoder.encode(Input("input.text", text="aa"), Bounds(3, 10, 1000))) == [2, 2]
    with pytest.raises(InvalidRequest, match=r"input\.text: the tokenizer cannot encode the text"):
        encoder.encode(Input("input.text", text=" \u3000 a"), Bounds(3, 10, 1000))


def special(name: str) -> dict[str, Any]:
    """In a template."""
    return {"SpecialToken": {"id": name, "type_id": 0}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": {"merges": [["a", "b"]], "continuing_subword_prefix": "##"}}, "is unreadable"),
        ({"post_processor": {"single": [*map(special, ("<s>", "b"))]}}, "cannot encode a text"),
    ],
)
def test_a_file_at_which_the_library_panics_is_refused(
    tmp_path: Path, wrong: dict[str, dict[str, Any]], message: str
) -> None:
    """Merges shorter than the prefix that they are said to have; a template that names a token
    that it does not list.
    """
    made = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, []))
    made.post_processor = processors.TemplateProcessing("$A b", None, [("b", 1)])
    made.decoder = decoders.ByteLevel()
    raw = json.loads(made.to_str())
    for part, values in wrong.items():
        raw[part] |= values
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"added_tokens_decoder": {"x": token("<a>")}}, "has 'x' for the id of '<a>'"),
        ({"added_tokens_decoder": {"-1": token("<a>")}}, "has '-1' for the id of '<a>'"),
        ({"added_tokens_decoder": {"99999999999": token("<a>")}}, "for the id of '<a>'"),
        ({"added_tokens_decoder": {"5": {"lstrip": True}}}, "added_tokens_decoder has no text"),
        ({"added_tokens_decoder": ["<a>"]}, "must be an object"),
        ({"bos_token": {"id": 1}}, "bos_token has no text"),
        ({"additional_special_tokens": [3]}, "additional_special_tokens has no text"),
        ({"additional_special_tokens": 3}, "additional_special_tokens"),
        ({"chat_template": 3}, "chat_template"),
        ({"add_bos_token": "false"}, "add_bos_token must be true or false"),
        ({"chat_template": [{"name": "default"}]}, "chat_template"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, stated: dict[str, Any], message: str) -> None:
    write_model(tmp_path)
    write(tmp_path, {"tokenizer_config.json": stated})
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(tmp_path)


def test_thousands_of_listed_tokens_are_added_at_once(tmp_path: Path) -> None:
    """A search for all is made each time: one by one they took time as their number's square."""
    first_id = write_json(tmp_path).get_vocab_size()
    listed = {str(first_id + i): token(f"<SPECIAL_{i}>") | {"special": True} for i in range(10_000)}
    write(tmp_path, {"tokenizer_config.json": {"added_tokens_decoder": listed}})
    started_s = time.process_time()
    tokenizer = Tokenizer.load(tmp_path)
    assert time.process_time() - started_s < 8
    assert tokenizer.encode("the<SPECIAL_9999>")[-1] == first_id + 9999
