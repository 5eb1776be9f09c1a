"""Which tokens are special, by the files beside a tokenizer, read as transformers reads them.

Names such as "bos_token" come from `tokenizer_config.json`; from `special_tokens_map.json`, which
counts for more where the former lists no added tokens; and from the defaults of the tokenizer's
class, as far as the vocabulary has those. A name that is stated as null has no token, whatever the
class. Source: `_from_pretrained` in transformers' `tokenization_utils_base.py`, 4.40 to 5.x.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.checkpoint.added_tokens import AddedToken
from engine.checkpoint.json_file import CheckpointError, Keys, shown
from engine.checkpoint.source import Source

MAX_ID = 2**20  # beyond any vocabulary: an id above it is a mistake and would only take memory
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_DEFAULTS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "GPT2Tokenizer": _GPT2,
    "GPTNeoXTokenizer": _GPT2,
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
    "CohereTokenizer": {
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "unk_token": "<UNK>",
    },
}
_CLASS_OF_TYPE = {"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
_MISTRAL = ("mistral", "mixtral", "ministral", "pixtral", "voxtral")
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """What the files beside the vocabulary say. `stated` maps names to tokens, or to None where
    null is stated.
    """

    tokenizer_class: str  # "" where nothing names it, never with "Fast"
    model_type: str
    stated: Mapping[str, AddedToken | None]
    added: tuple[AddedToken, ...]  # with their ids
    extra: tuple[AddedToken, ...]  # special ones without a name, without ids
    legacy: bool | None
    add_bos: bool | None
    add_eos: bool | None
    add_prefix_space: bool | None
    splits_special: bool  # special tokens written in a text are text
    chat_template: Any

    @property
    def is_llama(self) -> bool:
        """Returns whether transformers reads a `tokenizer.model` by the rules of its
        LlamaTokenizer.
        """
        return self.tokenizer_class == "LlamaTokenizer" and not self.model_type.startswith(_MISTRAL)

    def named(self, vocabulary: Container[str]) -> dict[str, AddedToken]:
        """Returns the special tokens that have a name, by name."""
        defaults = _DEFAULTS.get(self.tokenizer_class, {})
        known = {
            name: AddedToken(text, special=True)
            for name, text in defaults.items()
            if text in vocabulary
        }
        return {name: token for name, token in (known | dict(self.stated)).items() if token}


def read_settings(source: Source) -> TokenizerSettings:
    """Returns the settings of a checkpoint. Raises CheckpointError for files that are no
    JSON or hold something else.
    """
    config, model = map(source.json, ("tokenizer_config.json", "config.json"))
    named_by_map = source.json("special_tokens_map.json")
    model_type = str(model.get("model_type") or "")
    stated = config.get("tokenizer_class") or model.get("tokenizer_class")
    if model_type == "qwen2" or not stated:  # what such checkpoints name is often wrong
        stated = _CLASS_OF_TYPE.get(model_type, stated or "")
    has_added = bool(config.get("added_tokens_decoder"))
    merged = named_by_map | config if has_added else config | named_by_map
    names, extra = dict(_named(merged)), list(_extra(merged))
    special = {token.content for token in [*names.values(), *extra] if token}
    added = tuple(_added(source, config, special))
    by_content = {token.content: token for token in added}
    keys = Keys(config, "tokenizer_config.json")
    return TokenizerSettings(
        tokenizer_class=str(stated).removesuffix("Fast"),
        model_type=model_type,
        stated={name: token and _with_flags(token, by_content) for name, token in names.items()},
        added=added,
        extra=tuple(_with_flags(token, by_content) for token in extra),
        legacy=_flag(keys, "legacy"),
        add_bos=_flag(keys, "add_bos_token"),
        add_eos=_flag(keys, "add_eos_token"),
        add_prefix_space=_flag(keys, "add_prefix_space"),
        splits_special=keys.flag("split_special_tokens"),
        chat_template=config.get("chat_template"),
    )


def check_id(token_id: object, where: Path, content: str) -> int:
    """Returns the id, if it is one that a vocabulary can have. Raises CheckpointError if it is
    not.
    """
    if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < MAX_ID:
        raise CheckpointError(f"{where} has {shown(token_id)} for the id of {shown(content)}")
    return token_id


def _flag(config: Keys, key: str) -> bool | None:
    return config.flag(key) if config.states(key) else None


def _named(merged: Mapping[str, Any]) -> Iterator[tuple[str, AddedToken | None]]:
    """Yields the tokens of keys that end in "_token", of a model's own ("image_token"), too."""
    for name, value in merged.items():
        if name.endswith("_token") and (value is None or isinstance(value, (str, Mapping))):
            yield name, None if value is None else _token(value, name)


def _extra(merged: Mapping[str, Any]) -> Iterator[AddedToken]:
    """Yields the special tokens without a name. Their key has another name since transformers 5."""
    for key in ("extra_special_tokens", "additional_special_tokens"):
        values = merged.get(key) or []
        if not isinstance(values, (list, Mapping)):
            raise CheckpointError(f"{key} of the tokenizer must be a list, got {shown(values)}")
        for value in values.values() if isinstance(values, Mapping) else values:
            yield _token(value, key)


def _token(value: object, key: str, special: bool = True) -> AddedToken:
    """Returns the token of a text, or of an object with "content" and flags. A token that is
    `special` is not normalized.
    """
    stated = value if isinstance(value, Mapping) else {"content": value}
    content = stated.get("content")
    if not isinstance(content, str):
        raise CheckpointError(f"a token of the tokenizer's {key} has no text: {shown(value)}")
    flags = {"special": special, "normalized": not stated.get("special", special)}
    flags |= {name: bool(stated[name]) for name in _FLAGS if name in stated}
    return AddedToken(content, **flags)


def _with_flags(token: AddedToken, added: Mapping[str, AddedToken]) -> AddedToken:
    """Returns the token as a special one. If the same text is listed as an added token, that says
    how it is matched.
    """
    return replace(added.get(token.content, token), special=True)


def _added(source: Source, config: Mapping[str, Any], special: Container[str]) -> list[AddedToken]:
    """Returns the added tokens, of `added_tokens_decoder` and of the older added_tokens.json, which
    has no flags.
    """
    path = source.place("tokenizer_config.json")
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, Mapping):
        raise CheckpointError(f"added_tokens_decoder of {path} must be an object")
    added: dict[str, AddedToken] = {}
    for key, value in listed.items():
        token = _token(value, "added_tokens_decoder", special=False)
        token_id = check_id(int(key) if key.isdecimal() else key, path, token.content)
        added[token.content] = replace(token, id=token_id)
    path = source.place("added_tokens.json")
    for content, token_id in source.json("added_tokens.json").items():
        is_special = content in special
        token = AddedToken(content, check_id(token_id, path, content), is_special)
        added.setdefault(content, replace(token, normalized=not is_special))
    return list(added.values())
