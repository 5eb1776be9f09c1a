"""GGUF files as the package gguf writes them, of models and tokenizers in other forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import tokenizers
import transformers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# The metadata of a model, by what its configuration in transformers calls it.
SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# Those of qwen3, of up to 30 layers; the other families have no tensor of another name.
NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 30)
Tensors = dict[str, tuple[np.ndarray, str]]  # bytes or numbers, and the name of their type


def write(path: Path, metadata: Mapping[str, Any], tensors: Tensors) -> Path:
    """Whole numbers are stored as uint32, floats as float32."""
    writer = gguf.GGUFWriter(path, str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def shape(config: transformers.PreTrainedConfig) -> dict[str, Any]:
    """The metadata of a model's shape."""
    family = config.model_type if config.model_type != "mistral" else "llama"
    sizes = {f"{family}.{key}": getattr(config, name) for key, name in SIZES.items()}
    theta = float(config.rope_parameters["rope_theta"])
    return {"general.architecture": family, f"{family}.rope.freq_base": theta, **sizes}


def stored(name: str) -> str:
    """The name in a GGUF file of a tensor of transformers'."""
    found: str = NAMES.get_name(name, (".weight", ".bias"))
    return found


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key matrix as llama.cpp's converter turns them for `llama`."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def packed(model: transformers.PreTrainedModel, kind: str) -> Tensors:
    """The tensors of a model, its matrices as this type."""
    config, found = model.config, {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        part = name.split(".")[-2]
        if config.model_type in ("llama", "mistral") and part in heads:
            values = interleaved(values, heads[part])
        packing = kind if values.ndim == 2 else "F32"
        kept = gguf.quants.quantize(values, gguf.GGMLQuantizationType[packing])
        found[stored(name)] = kept, packing
    return found


def plain(size: int) -> dict[str, Any]:
    """The metadata of a tokenizer of so many tokens of no particular use."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*(chr(0x100 + i) for i in range(size - 1)), "\u0100\u0101"],
        "tokenizer.ggml.merges": ["\u0100 \u0101"],
        "tokenizer.ggml.eos_token_id": 2,
    }


def merges(made: tokenizers.Tokenizer, pre: str, **named: str) -> dict[str, Any]:
    """The metadata of a byte-level tokenizer; of `named` tokens the names are as in
    "bos_token=...".
    """
    raw = json.loads(made.to_str())
    added = {token["id"]: token for token in raw["added_tokens"]}
    ids = made.get_vocab(with_added_tokens=True)
    texts = sorted(ids, key=ids.__getitem__)
    assert [ids[text] for text in texts] == list(range(len(texts)))
    kinds = [
        NORMAL if i not in added else CONTROL if added[i]["special"] else USER_DEFINED
        for i in range(len(texts))
    ]
    keys = {"unk_token": "unknown_token", "pad_token": "padding_token"}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in raw["model"]["merges"]],
        **{f"tokenizer.ggml.{keys.get(k, k)}_id": ids[text] for k, text in named.items()},
    }


def scores(model: sentencepiece.SentencePieceProcessor, added: Mapping[str, int]) -> dict[str, Any]:
    """The metadata of a sentencepiece model, and of tokens added to it with their types."""
    size = model.get_piece_size()

    def kind(i: int) -> int:
        tests = {UNKNOWN: model.is_unknown, CONTROL: model.is_control, BYTE: model.is_byte}
        return next((number for number, holds in tests.items() if holds(i)), NORMAL)

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*map(model.id_to_piece, range(size)), *added],
        "tokenizer.ggml.scores": [*map(model.get_score, range(size)), *(-1000.0 for _ in added)],
        "tokenizer.ggml.token_type": [*map(kind, range(size)), *added.values()],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }
