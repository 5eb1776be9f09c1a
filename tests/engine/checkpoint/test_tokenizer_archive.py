"""The zip of a tokenizer: what is in it, what is not, and that it renders as the server does."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from engine.checkpoint.chat import ChatTemplate
from engine.checkpoint.model_as_json import NotExpressible
from engine.checkpoint.tokenizer import Tokenizer
from engine.checkpoint.tokenizer_archive import template_for_gateways, tokenizer_archive
from engine.embedded import FOLDER
from tests.engine.checkpoint import hostile
from tests.engine.checkpoint.test_special_tokens import CHAT, write, write_json, write_model
from tests.engine.checkpoint.test_tokens_as_transformers import JSON, training

MESSAGES = [{"role": "user", "content": "the <fox>"}, {"role": "assistant", "content": "é\n"}]


def files_in(archive: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        return {name: json.loads(opened.read(name)) for name in opened.namelist()}


def test_the_embedded_model_has_a_tokenizer_for_gateways() -> None:
    files = files_in(tokenizer_archive(FOLDER))
    assert list(files) == ["tokenizer.json", "tokenizer_config.json"]
    made = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    ours = Tokenizer.load(FOLDER)
    assert made.encode("Once upon <s> a time").ids == ours.encode("Once upon <s> a time", False)
    stated = files["tokenizer_config.json"]
    assert ours.chat is not None
    assert stated["chat_template"] == ours.chat.source
    assert (stated["bos_token"], stated["eos_token"]) == ("<s>", "</s>")
    assert stated["add_bos_token"] is False  # the server adds it


def test_the_same_files_make_the_same_bytes(tmp_path: Path) -> None:
    for path in FOLDER.glob("*token*"):
        shutil.copy(path, tmp_path)
        os.utime(tmp_path / path.name, (0, 0))
    assert tokenizer_archive(tmp_path) == tokenizer_archive(FOLDER)


def test_a_tokenizer_json_of_its_own_goes_as_it_is(tmp_path: Path) -> None:
    write_json(tmp_path)
    archive = tokenizer_archive(tmp_path)
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.read("tokenizer.json") == (tmp_path / "tokenizer.json").read_bytes()
    assert "chat_template" not in files_in(archive)["tokenizer_config.json"]


@pytest.mark.parametrize("kind", [kind for kind in JSON if kind != "splits special tokens"])
def test_a_tokenizer_json_is_followed_as_the_server_follows_it(kind: str, tmp_path: Path) -> None:
    """With tokens that are listed beside it, not cut off or filled up, and first spaces kept."""
    build, stated = JSON[kind]
    training(build()).save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, {"tokenizer_config.json": stated})
    ours, files = Tokenizer.load(tmp_path), files_in(tokenizer_archive(tmp_path))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    prompt = ours.encode("the")
    for text in hostile.texts(20):
        ids = ours.encode(text, add_bos=False)
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        detokenizer = ours.detokenizer(prompt)
        expected = "".join([*map(detokenizer.feed, ids), detokenizer.finish()])
        if "\ufffd" not in text:
            assert theirs.decode(ids) == expected


def test_nothing_else_of_the_folder_is_in_it(tmp_path: Path) -> None:
    write_model(tmp_path)
    stated = {"name_or_path": "/home/me", "auth_token": "hidden", "chat_template": CHAT}
    write(tmp_path, {"tokenizer_config.json": stated, "secrets.json": {"key": "hidden"}})
    (tmp_path / "model.safetensors").write_bytes(b"hidden")
    files = files_in(tokenizer_archive(tmp_path))
    assert list(files) == ["tokenizer.json", "tokenizer_config.json"]
    assert "name_or_path" not in files["tokenizer_config.json"]


def test_files_that_are_linked_are_read(tmp_path: Path) -> None:
    """A cache of Hugging Face's has links only."""
    for path in FOLDER.glob("*token*"):
        (tmp_path / path.name).symlink_to(path)
    assert tokenizer_archive(tmp_path) == tokenizer_archive(FOLDER)


def test_the_template_is_the_one_in_force(tmp_path: Path) -> None:
    """Of a list the default, and a file before all: gateways read only one text."""
    write_json(tmp_path)
    templates = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT}]
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, {"tokenizer_config.json": named | {"chat_template": templates}})
    stated = files_in(tokenizer_archive(tmp_path))["tokenizer_config.json"]
    assert stated["chat_template"] == CHAT
    (tmp_path / "chat_template.jinja").write_text(" {{ bos_token }}\\n\n")
    stated = files_in(tokenizer_archive(tmp_path))["tokenizer_config.json"]
    assert stated["chat_template"] == " {{ bos_token }}\\n\n"


TEMPLATES = {
    "as usual": CHAT,
    "a name of its own": "\n  {% for m in messages %}{{ m.content }}{{ image_token }}{% endfor %}",
    "a name that is unknown": "{% if bos_token is defined %}no{% endif %}{{ bos_token }}a",
    "training": "{% for m in messages %}\n a {%- generation %}\n{{ m.content }}\n"
    " {% endgeneration -%} b\n{% endfor %}",
}


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_for_gateways_writes_the_same(source: str) -> None:
    names = {"eos_token": "</s>", "image_token": 'a"\\\n\u2028é'}
    chat = ChatTemplate(source, names)
    given = ChatTemplate(template_for_gateways(chat), {"eos_token": "</s>", "bos_token": "<guess>"})
    assert given.render(MESSAGES) == chat.render(MESSAGES)
    assert "generation %}" not in template_for_gateways(chat)


def test_special_tokens_that_are_text_have_no_form_in_a_tokenizer_json(tmp_path: Path) -> None:
    write_json(tmp_path)
    write(tmp_path, {"tokenizer_config.json": {"split_special_tokens": True}})
    with pytest.raises(NotExpressible, match="split_special_tokens"):
        tokenizer_archive(tmp_path)
