"""The shape of a decoder-only model, read from a Hugging Face `config.json`. No torch in here.

Supported are the families of `_FAMILIES`; their differences are a few booleans of `ModelConfig`.
Whatever a checkpoint asks for that the model does not have is refused by the name of its key,
rather than served wrong. Lengths are tokens. Sources: the configuration classes of transformers
(4.x with `rope_theta` and `rope_scaling`, 5.x with `rope_parameters`); Llama 3.1's scaling of
rotary frequencies from meta-llama/llama-models, `models/llama3/model.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.computing.options import DTYPES


class CheckpointError(ValueError):
    """A checkpoint folder cannot be served; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture fixes and its config.json does not say."""

    qkv_bias: bool = False  # biases on q, k and v whatever `attention_bias` says
    attention_bias: bool = False  # obeys the key `attention_bias`
    mlp_bias: bool = False  # obeys the key `mlp_bias`
    qk_norm: bool = False


_FAMILIES = {
    "llama": Family(attention_bias=True, mlp_bias=True),  # and SmolLM 1 and 2
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),  # and Qwen 2.5
    "qwen3": Family(attention_bias=True, qk_norm=True),
}
_ARCHITECTURES = {f"{name.capitalize()}ForCausalLM": name for name in _FAMILIES}
# Keys that change what is computed, with the only values that mean "not used".
_UNUSED: dict[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1.0),
    "no_rope_layers": (None, []),
    "attn_logit_softcapping": (None, 0, 0.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "logit_scale": (None, 1.0),
    "residual_multiplier": (None, 1.0),
    "embedding_multiplier": (None, 1.0),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding. `scaling` is "default", "linear" or "llama3"."""

    theta: float = 10000.0
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.theta) and self.theta > 0):
            raise CheckpointError(f"rope_theta must be positive, got {self.theta}")
        if self.scaling not in ("default", "linear", "llama3"):
            raise CheckpointError(
                f"rope scaling {self.scaling!r} is not supported (default, linear, llama3 are)"
            )
        if self.scaling != "default" and not self.factor >= 1:
            raise CheckpointError(f"rope scaling's factor must be at least 1, got {self.factor}")
        if self.scaling == "llama3" and not (
            0 < self.low_freq_factor < self.high_freq_factor and self.original_max_positions > 0
        ):
            raise CheckpointError(
                "rope scaling llama3 needs low_freq_factor < high_freq_factor"
                " and original_max_position_embeddings"
            )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything the model file needs to know. Raises CheckpointError where it makes no sense."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int  # context length: prompt and output together
    architecture: str = "LlamaForCausalLM"
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    tied_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    dtype: str = "float32"  # of the weights as stored
    context_note: str = ""  # why max_positions is less than config.json states, for a person

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise CheckpointError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"num_attention_heads ({self.num_heads}) must be a multiple of"
                f" num_key_value_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise CheckpointError(
                f"head_dim must be even for rotary embedding, got {self.head_dim}"
            )
        if self.dtype not in DTYPES:
            raise CheckpointError(
                f"dtype {self.dtype!r} is not supported ({', '.join(DTYPES)} are)"
            )

    @property
    def num_parameters(self) -> int:
        h, d = self.hidden_size, self.head_dim
        q, kv = self.num_heads * d, self.num_kv_heads * d
        attention = h * (q + 2 * kv) + q * h + 2 * d * self.qk_norm
        biases = (q + 2 * kv) * self.qkv_bias + h * self.out_bias
        mlp = 3 * h * self.intermediate_size + (2 * self.intermediate_size + h) * self.mlp_bias
        embeddings = self.vocab_size * h * (1 if self.tied_embeddings else 2)
        return self.num_layers * (attention + biases + mlp + 2 * h) + h + embeddings

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Reads config.json, and generation_config.json where there is one."""
        raw = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        return cls.from_dict(raw, read_json(generation) if generation.is_file() else {})

    @classmethod
    def from_dict(
        cls, raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """`raw` is config.json and `generation` generation_config.json, whose eos ids add up."""
        architecture, family = _family(raw)
        _refuse_what_we_lack(raw)
        heads = _int(raw, "num_attention_heads")
        hidden = _int(raw, "hidden_size")
        max_positions, note = _context(raw, architecture)
        attention_bias = family.attention_bias and bool(raw.get("attention_bias"))
        bos = raw.get("bos_token_id")
        return cls(
            architecture=architecture,
            vocab_size=_int(raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_int(raw, "intermediate_size"),
            num_layers=_int(raw, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or hidden // heads,
            max_positions=max_positions,
            context_note=note,
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope=_rope(raw, _int(raw, "max_position_embeddings")),
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=family.qkv_bias or attention_bias,
            out_bias=attention_bias,
            mlp_bias=family.mlp_bias and bool(raw.get("mlp_bias")),
            qk_norm=family.qk_norm,
            bos_id=bos if isinstance(bos, int) else None,
            eos_ids=_eos_ids(raw, generation or {}),
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint. Raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no {path.name} in {path.parent}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def _int(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        state = "lacks" if value is None else f"has no whole number ({value!r}) for"
        raise CheckpointError(f"config.json {state} {key}")
    return value


def _family(raw: Mapping[str, Any]) -> tuple[str, Family]:
    named = raw.get("architectures") or []
    by_type = f"{str(raw.get('model_type', '')).capitalize()}ForCausalLM"
    architecture = named[0] if named else by_type
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(
            f"architecture {architecture!r} (config.json: architectures) is not supported;"
            f" supported are {', '.join(_ARCHITECTURES)}"
        )
    return architecture, _FAMILIES[_ARCHITECTURES[architecture]]


def _refuse_what_we_lack(raw: Mapping[str, Any]) -> None:
    if (act := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise CheckpointError(f"hidden_act {act!r} is not supported (silu is)")
    for key, harmless in _UNUSED.items():
        if raw.get(key) not in harmless:
            raise CheckpointError(f"{key} in config.json asks for a feature that is not supported")
    for kind in raw.get("layer_types") or ():
        if kind not in ("full_attention", "sliding_attention"):
            raise CheckpointError(f"layer_types holds {kind!r}, which is not supported")


def _context(raw: Mapping[str, Any], architecture: str) -> tuple[int, str]:
    """Most positions, and why they are fewer than config.json says.

    Within one window, sliding and full attention are the same, so the context ends there.
    """
    stated = _int(raw, "max_position_embeddings")
    window = raw.get("sliding_window")
    kinds = raw.get("layer_types") or ()
    if architecture == "MistralForCausalLM":
        in_use = True
    elif kinds:
        in_use = "sliding_attention" in kinds
    else:
        layers = raw.get("num_hidden_layers", 0)
        in_use = bool(raw.get("use_sliding_window")) and raw.get("max_window_layers", 28) < layers
    if window is None or not in_use or window >= stated:
        return stated, ""
    return window, (
        f"context limited to {window} of {stated} tokens:"
        " attention beyond the checkpoint's sliding_window is not implemented"
    )


def _rope(raw: Mapping[str, Any], max_positions: int) -> RopeConfig:
    """From `rope_parameters` (transformers 5), else from `rope_theta` and `rope_scaling`."""
    raw_rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if any(isinstance(value, Mapping) for value in raw_rope.values()):
        raise CheckpointError("rope_parameters that differ between layers are not supported")
    if raw_rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError("rope_parameters.partial_rotary_factor is not supported")
    scaling = raw_rope.get("rope_type") or raw_rope.get("type") or "default"
    return RopeConfig(
        theta=float(raw_rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        scaling=scaling,
        factor=float(raw_rope.get("factor") or 1.0),
        low_freq_factor=float(raw_rope.get("low_freq_factor") or 1.0),
        high_freq_factor=float(raw_rope.get("high_freq_factor") or 1.0),
        original_max_positions=int(
            raw_rope.get("original_max_position_embeddings") or max_positions
        ),
    )


def _eos_ids(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    ids: set[int] = set()
    for value in (raw.get("eos_token_id"), generation.get("eos_token_id")):
        ids.update([value] if isinstance(value, int) else value or ())
    return tuple(sorted(ids))
