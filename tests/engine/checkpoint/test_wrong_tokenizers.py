"""Files beside a tokenizer with anything in them are read, or end in one short line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.tokenizer import Tokenizer
from engine.embedded import FOLDER
from tests.engine.computing.test_wrong_values import ANYTHING, FILES, one_line

KEYS = {
    "tokenizer_config.json": (
        *("tokenizer_class", "add_bos_token", "add_eos_token", "legacy", "bos_token", "eos_token"),
        *("unk_token", "pad_token", "image_token", "additional_special_tokens"),
        *("extra_special_tokens", "added_tokens_decoder", "chat_template"),
    ),
    "special_tokens_map.json": ("bos_token", "eos_token", "additional_special_tokens"),
    "added_tokens.json": ("<extra>", "</s>", ""),
    "config.json": ("model_type", "tokenizer_class"),
}
# Fewer than WRONG: a tokenizer is read for each, twice where it is refused.
FEW: list[Any] = [
    *(None, True, 0, -1, 2.5, float("nan"), "", "2", "line\nbreak", "\ud800"),
    *([], [1], ["x"], {}, {"x": 1}, {"content": 3}),
]
FIELDS = ("content", "special", "lstrip", "rstrip", "single_word", "normalized")
IDS = ("2048", "-1", "x", "", "9" * 30, "1.5", "\u0663", "\u00b2", "16777217")
NO_FOLDER = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in FOLDER.glob("*token*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def tokenizer_json(folder: Path) -> dict[str, Any]:
    """A tokenizer.json of a few words, in the place of the sentencepiece model."""
    (folder / "tokenizer.model").unlink()
    raw = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1, "</s>": 2}, "unk_token": "a"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return raw


def load(folder: Path) -> None:
    """Reads the folder and uses what came of it, or fails with one line."""
    try:
        tokenizer = Tokenizer.load(folder)
    except CheckpointError:
        with pytest.raises(CheckpointError) as caught:
            Tokenizer.load(folder)
        one_line(caught)
    else:
        assert isinstance(tokenizer.decode(tokenizer.encode("<s>hello</s> a")), str)


def change(folder: Path, name: str, changes: dict[Any, Any]) -> None:
    path = folder / name
    raw = json.loads((FOLDER / name).read_text()) if (FOLDER / name).exists() else {}
    path.write_text(json.dumps(raw | changes))
    load(folder)


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("name", KEYS)
def test_a_key_of_any_value_is_read_or_refused(folder: Path, name: str, kind: str) -> None:
    if kind == "tokenizer.json":
        tokenizer_json(folder)
    for key in KEYS[name]:
        for value in FEW:
            change(folder, name, {key: value})
        (folder / name).unlink()


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_an_added_token_of_any_form_is_read_or_refused(folder: Path, kind: str) -> None:
    if kind == "tokenizer.json":
        tokenizer_json(folder)
    token = {"content": "<extra>", "special": True}
    for token_id in IDS:
        change(folder, "tokenizer_config.json", {"added_tokens_decoder": {token_id: token}})
    for value in FEW:
        for entry in (value, *({**token, field: value} for field in FIELDS)):
            change(folder, "tokenizer_config.json", {"added_tokens_decoder": {"2048": entry}})
        for entry in (value, {**token, "content": value}):
            both = {"bos_token": entry}, {"additional_special_tokens": [entry]}
            for changes in both:
                change(folder, "tokenizer_config.json", changes)


@NO_FOLDER
@given(
    changes=st.dictionaries(st.sampled_from(KEYS["tokenizer_config.json"]), ANYTHING, min_size=1)
)
def test_keys_of_any_values_are_read_or_refused(folder: Path, changes: dict[str, Any]) -> None:
    change(folder, "tokenizer_config.json", changes)


TOP = ("added_tokens", "decoder", "model", "pre_tokenizer", "normalizer", "post_processor")


@pytest.mark.parametrize("key", [*TOP, "version"])
def test_a_tokenizer_json_of_anything_is_read_or_refused(folder: Path, key: str) -> None:
    raw = tokenizer_json(folder)
    values = FEW
    forms = [[value] for value in values] + [{"type": value} for value in values]
    forms += [{"type": "Sequence", "decoders": value} for value in values]
    forms += [{"type": "Sequence", "decoders": [value]} for value in values]
    forms += [{"type": "WordLevel", "vocab": {"a": value}, "unk_token": "a"} for value in values]
    forms += [{"type": "WordLevel", "vocab": value, "unk_token": "a"} for value in values]
    forms += [[{"id": value, "content": "b"}] for value in values]
    for value in [*values, *forms]:
        (folder / "tokenizer.json").write_text(json.dumps(raw | {key: value}))
        load(folder)


@pytest.mark.parametrize("wrong", FILES)
@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_a_file_that_is_no_json_object_is_refused(folder: Path, name: str, wrong: str) -> None:
    (folder / name).write_text("{}")
    FILES[wrong][0](folder / name)
    load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "chat_template.jinja"])
@pytest.mark.parametrize("wrong", FILES)
def test_a_file_of_any_bytes_is_refused(folder: Path, name: str, wrong: str) -> None:
    if name == "tokenizer.json":
        tokenizer_json(folder)
    (folder / name).write_text("{}")
    FILES[wrong][0](folder / name)
    load(folder)


TEMPLATES = {
    "a break outside a loop": "{% break %}",
    "loops in loops": "{% for m in messages %}" * 25 + "{% endfor %}" * 25,
    "a name twice": "{% macro a(b, b) %}{% endmacro %}",
    "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "a long sum": "{{ " + "+".join(["a"] * 5000) + " }}",
    "a number of 5,000 digits": "{{ " + "9" * 5000 + " }}",
    "an unknown filter": "{{ a | nothing }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_is_no_program_is_refused(folder: Path, template: str) -> None:
    """Whether jinja2 finds that out, or Python, which compiles what jinja2 makes of it."""
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match="the chat template does not parse") as caught:
        Tokenizer.load(folder)
    one_line(caught)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"the": b"\xe0he"}, "has a piece that is no text"),
        ({"the": b"\xe0he", "and": b"\xe0he"}, "is not a sentencepiece model"),
    ],
)
def test_pieces_that_are_no_text_are_refused(
    folder: Path, wrong: dict[str, bytes], message: str
) -> None:
    """Of two that are alike sentencepiece says so, in a message that is no text either."""
    path = folder / "tokenizer.model"
    data = path.read_bytes()
    for word, bad in wrong.items():
        piece = f"\N{LOWER ONE EIGHTH BLOCK}{word}".encode()
        assert data.count(b"\x06" + piece) == 1
        data = data.replace(b"\x06" + piece, b"\x06" + piece[:3] + bad)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.load(folder)
    one_line(caught)
