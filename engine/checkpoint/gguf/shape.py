"""The shape of a model, read from the metadata of a GGUF file and from what tensors it has.

Three architectures are those of families that the engine knows: `llama` (Llama, Mistral, SmolLM 1
and 2), `qwen2` (Qwen 2 and 2.5) and `qwen3`. As with a config.json, whatever a file asks for that
the model does not have is refused by the name of its key. Whether embeddings are tied, and where
there are biases, no key says: the tensors do.

Sources: the keys in the specification of GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
and in llama.cpp's `gguf-py/gguf/constants.py`; what they mean, and what is meant where one is left
out, in its `src/llama-model.cpp`.
"""

from __future__ import annotations

import math
import struct

from engine.checkpoint.gguf.header import Header
from engine.checkpoint.gguf.vocabulary import end_ids
from engine.checkpoint.json_file import CheckpointError, Keys, shown
from engine.checkpoint.model_config import ModelConfig, RopeConfig, context_note

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ROPE_DIVISORS = "rope_freqs.weight"
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
# Keys below the architecture's name that change what is computed, with the only values that mean
# "not used".
_UNUSED: dict[str, tuple[object, ...]] = {
    "expert_count": (None, 0),
    "attention.causal": (None, True),
    "attention.clamp_kqv": (None, 0.0),
    "attention.max_alibi_bias": (None, 0.0),
    "attention.scale": (None, 0.0),
    "attn_logit_softcapping": (None, 0.0),
    "final_logit_softcapping": (None, 0.0),
    "logit_scale": (None, 0.0, 1.0),
    "residual_scale": (None, 0.0, 1.0),
    "embedding_scale": (None, 0.0, 1.0),
    "rope.scaling.attn_factor": (None, 1.0),
    "use_parallel_residual": (None, False),
}
_DTYPES = {"F32": "float32", "F16": "float16"}  # of the other packings: bfloat16


def is_interleaved(header: Header) -> bool:
    """Returns whether the rows of the query and key matrices stand as llama.cpp turns them: those
    of a rotary pair side by side, and not half a head apart as in the checkpoint.
    """
    return bool(header.metadata.get("general.architecture") == "llama")


def read_shape(header: Header) -> ModelConfig:
    """Returns the model's shape. Raises CheckpointError."""
    keys, tensors = header.keys, header.tensors
    architecture = keys.word("general.architecture", "")
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(
            f"{header.where}: general.architecture {shown(architecture)} is not supported;"
            f" supported are {', '.join(_ARCHITECTURES)}"
        )
    for name, harmless in _UNUSED.items():
        key = f"{architecture}.{name}"
        if header.metadata.get(key) not in harmless:
            raise keys.wrong(key, "asks for a feature that is not supported")
    vocab_size, hidden_size = _table(header)
    stated_size = keys.whole(f"{architecture}.embedding_length")
    if stated_size != hidden_size:
        raise keys.wrong(
            f"{architecture}.embedding_length", f"must be {hidden_size}, as {_EMBEDDING} has it"
        )
    heads = keys.whole(f"{architecture}.attention.head_count", most=hidden_size)
    head_dim = _head_dim(keys, architecture, hidden_size // heads)
    max_positions = keys.whole(f"{architecture}.context_length")
    window = keys.whole(f"{architecture}.attention.sliding_window", 0, least=0) or None
    return ModelConfig(
        architecture=_ARCHITECTURES[architecture],
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=keys.whole(f"{architecture}.feed_forward_length"),
        num_layers=keys.whole(f"{architecture}.block_count"),
        num_heads=heads,
        num_kv_heads=_kv_heads(keys, architecture, heads),
        head_dim=head_dim,
        max_positions=min(max_positions, window or max_positions),
        context_note=context_note(max_positions, window),
        rms_norm_eps=keys.number(
            f"{architecture}.attention.layer_norm_rms_epsilon", least=0, most=1
        ),
        rope=_rope(header, architecture, head_dim),
        tied_embeddings=_HEAD not in tensors,
        qkv_bias=architecture == "qwen2" or "blk.0.attn_q.bias" in tensors,
        out_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        qk_norm=architecture == "qwen3",
        eos_ids=end_ids(header),
        dtype=_dtype(header),
    )


def _table(header: Header) -> tuple[int, int]:
    """Returns how many tokens are embedded, and in how many numbers each."""
    if _EMBEDDING not in header.tensors:
        raise CheckpointError(f"{header.where} lacks the tensor {_EMBEDDING}")
    shape = header.tensors[_EMBEDDING].shape
    if len(shape) != 2:
        raise CheckpointError(f"{header.where}: {_EMBEDDING} has the shape {list(shape)}")
    return shape[0], shape[1]


def _kv_heads(keys: Keys, architecture: str, heads: int) -> int:
    """Returns how many heads keys and values have, each for as many of the queries'."""
    key = f"{architecture}.attention.head_count_kv"
    kv_heads = keys.whole(key, heads)
    if heads % kv_heads:
        raise keys.wrong(key, f"must be a number of which head_count ({heads}) is a multiple")
    return kv_heads


def _head_dim(keys: Keys, architecture: str, usual: int) -> int:
    """Returns the size of a head, which is that of its keys, of its values, and of what is rotated
    of it.
    """
    size = keys.whole(f"{architecture}.attention.key_length", usual)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.whole(f"{architecture}.{name}", size) != size:
            raise keys.wrong(f"{architecture}.{name}", f"must be the size of a key ({size})")
    if size % 2:
        key = f"{architecture}.attention.key_length"
        key = key if keys.states(key) else f"{architecture}.attention.head_count"
        raise keys.wrong(key, f"makes heads of size {size}, which must be even to be rotated")
    return size


def _rope(header: Header, architecture: str, head_dim: int) -> RopeConfig:
    """Returns the rotary embedding. Llama 3's scaling stands in no key: the file has a tensor of
    what to divide each frequency by.
    """
    keys, prefix = header.keys, f"{architecture}.rope"
    theta = keys.number(f"{prefix}.freq_base", 10000.0, least=1, most=1e15)
    scaling = keys.word(f"{prefix}.scaling.type", "linear")
    named = f"{prefix}.scaling.factor"
    named = named if keys.states(named) else f"{prefix}.scale_linear"  # as it was called before
    factor = keys.number(named, 1.0, least=0, most=1e6) or 1.0
    if scaling not in ("none", "linear"):
        raise keys.wrong(f"{prefix}.scaling.type", "is not supported (none and linear are)")
    if scaling == "none" or factor == 1:
        return RopeConfig(theta, divisors=_divisors(header, head_dim))
    if factor < 1:
        raise keys.wrong(named, "must be at least 1")
    if ROPE_DIVISORS in header.tensors:
        raise keys.wrong(f"{prefix}.scaling.type", f"is not supported beside {ROPE_DIVISORS}")
    return RopeConfig(theta, "linear", factor)


def _divisors(header: Header, head_dim: int) -> tuple[float, ...]:
    """Returns what each frequency is divided by; nothing where the file does not say."""
    if ROPE_DIVISORS not in header.tensors:
        return ()
    tensor = header.tensors[ROPE_DIVISORS]
    if tensor.packing != "F32" or tensor.shape != (head_dim // 2,):
        raise CheckpointError(
            f"{header.where}: {ROPE_DIVISORS} is {tensor.packing} of shape {list(tensor.shape)};"
            f" F32 of shape [{head_dim // 2}] is supported"
        )
    divisors = struct.unpack(f"<{head_dim // 2}f", header.read(tensor, 0, tensor.num_bytes))
    if not all(math.isfinite(divisor) and divisor > 0 for divisor in divisors):
        raise CheckpointError(f"{header.where}: {ROPE_DIVISORS} must hold positive numbers")
    return divisors


def _dtype(header: Header) -> str:
    """Returns the dtype that holds the weights of matrices: bfloat16 for quantized ones, since
    what they were made from is, most often.
    """
    first = header.tensors.get("blk.0.attn_q.weight")
    return "float32" if first is None else _DTYPES.get(first.packing, "bfloat16")
