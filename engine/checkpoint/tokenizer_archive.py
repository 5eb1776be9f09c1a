"""The zip of a tokenizer that a gateway asks for, to make token ids and text as the server does.

It holds what the server itself goes by, and nothing else of the checkpoint: `tokenizer.json`, the
checkpoint's own or one that says the same as its `tokenizer.model`, and a `tokenizer_config.json`
with the special tokens and the chat template that are in force, whichever files state them. The
same checkpoint makes the same bytes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from engine.checkpoint.added_tokens import as_json
from engine.checkpoint.chat import ChatTemplate
from engine.checkpoint.model_as_json import NotExpressible, as_tokenizer_json
from engine.checkpoint.opening import open_source
from engine.checkpoint.source import Source
from engine.checkpoint.tokenizer import Tokenizer
from engine.checkpoint.tokenizer_json import FILE, MAX_BYTES, HuggingFace
from engine.checkpoint.tokenizer_model import SentencePiece

_OLDEST = (1980, 1, 1, 0, 0, 0)  # the time of every file in it, which a zip cannot leave out
_MODE = 0o100644 << 16
# What gateways give a template by name, or guess where the file names none.
_GIVEN = ("bos_token", "eos_token", "pad_token", "unk_token")
_TRAINING = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def tokenizer_archive(path: Path | str) -> bytes:
    """Returns the zip of a checkpoint's tokenizer, as the server reads that.

    It takes seconds for a large vocabulary. Raises NotExpressible where no tokenizer.json says the
    same, and CheckpointError where there is no tokenizer that can be read.
    """
    source = open_source(Path(path))
    tokenizer = Tokenizer.of(source)
    files = {
        "tokenizer.json": _tokenizer_json(source, tokenizer),
        "tokenizer_config.json": _dumped(_configuration(tokenizer)),
    }
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _OLDEST)
            entry.external_attr = _MODE
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def _tokenizer_json(source: Source, tokenizer: Tokenizer) -> str:
    backend = tokenizer.backend
    if isinstance(backend, SentencePiece):
        return _dumped(as_tokenizer_json(backend))
    assert isinstance(backend, HuggingFace)
    if backend.splits_special:
        raise NotExpressible("split_special_tokens has no form in tokenizer.json")
    raw = source.json(FILE, MAX_BYTES)
    changed = raw | _as_read(raw, backend)
    return source.text(FILE, MAX_BYTES) if changed == raw else _dumped(changed)


def _as_read(raw: dict[str, Any], backend: HuggingFace) -> dict[str, Any]:
    """Returns the parts of a tokenizer.json of which the server says more, or does not follow what
    they say: tokens that are listed beside it, what is for training only, and that a text that
    continues a prompt should lose its first space.
    """
    parts = dict.fromkeys({"truncation", "padding"} & raw.keys())
    if raw["model"].get("dropout"):
        parts["model"] = raw["model"] | {"dropout": None}
    return parts | {
        "added_tokens": as_json(backend.tokens),
        "decoder": _continuing(raw["decoder"]),
    }


def _continuing(decoder: dict[str, Any]) -> dict[str, Any]:
    """Returns a decoder that keeps the first space, of one that the server follows."""
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kept = [
        step | {"prepend_scheme": "never"} if step["type"] == "Metaspace" else step
        for step in steps
        if step["type"] != "Strip"
    ]
    return decoder | {"decoders": kept} if decoder["type"] == "Sequence" else kept[0]


def _configuration(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns what a gateway has to know beside the tokens. It adds none to a prompt: the server
    does.
    """
    named = {name: token.content for name, token in tokenizer.backend.named.items()}
    stated: dict[str, Any] = {"add_bos_token": False, "add_eos_token": False}
    stated |= {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    if tokenizer.chat is not None:
        stated["chat_template"] = template_for_gateways(tokenizer.chat)
    return stated | named


def template_for_gateways(chat: ChatTemplate) -> str:
    """Returns a chat template that a gateway renders as the server does: one that itself says what
    gateways do not give it, and has no blocks that matter in training only.
    """
    source = _TRAINING.sub(
        lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", chat.source
    )
    lines = []
    for name in chat.token_names:
        content = chat.special_tokens.get(name)
        if (content is None) == (name in _GIVEN):
            value = "undefined" if content is None else json.dumps(content, ensure_ascii=False)
            lines.append(f"{{% set {name} = {value} %}}\n")  # the end of the line goes with it
    return "".join(lines) + source


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=False, separators=(",", ":"))
