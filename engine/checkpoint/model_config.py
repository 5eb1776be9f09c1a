"""The shape of a decoder-only model, read from a Hugging Face `config.json`. No torch here.

The families of `_FAMILIES` are supported; they differ in a few booleans and defaults. Whatever a
checkpoint asks for that the model does not have is refused by the name of its key, rather than
served wrong, and so is a key of the wrong type. What a file leaves out is what the family's
configuration class of transformers has by default, except for the five sizes of the weights, which
are never guessed. Lengths are in tokens.

Sources: the configuration classes of transformers (4.x with `rope_theta` and `rope_scaling`, 5.x
with `rope_parameters`; their defaults are the same), and for Llama 3.1's scaling of rotary
frequencies meta-llama/llama-models, `models/llama3/model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.checkpoint.json_file import CheckpointError, Keys, shown
from engine.checkpoint.options import DTYPES

CONFIG, GENERATION = "config.json", "generation_config.json"


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture fixes that its config.json does not state, or need not."""

    qkv_bias: bool = False  # biases on q, k and v whatever `attention_bias` says
    attention_bias: bool = False  # obeys the key `attention_bias`
    mlp_bias: bool = False  # obeys the key `mlp_bias`
    qk_norm: bool = False
    num_kv_heads: int = 0  # 0: as many as there are heads
    head_dim: int = 0  # 0: hidden_size over num_attention_heads
    max_positions: int = 32768
    window: str = "never"  # obeys `sliding_window`: "never", "always", or "asked" for
    eos_ids: tuple[int, ...] = ()


_FAMILIES = {
    # and SmolLM 1 and 2
    "llama": Family(attention_bias=True, mlp_bias=True, max_positions=2048, eos_ids=(2,)),
    "mistral": Family(num_kv_heads=8, max_positions=131072, window="always", eos_ids=(2,)),
    # and Qwen 2.5
    "qwen2": Family(qkv_bias=True, num_kv_heads=32, window="asked"),
    "qwen3": Family(
        attention_bias=True, qk_norm=True, num_kv_heads=32, head_dim=128, window="asked"
    ),
}
_ARCHITECTURES = {f"{name.capitalize()}ForCausalLM": name for name in _FAMILIES}
_THETA = {"least": 1.0, "most": 1e15}
_WINDOW, _WINDOW_LAYERS = 4096, 28  # `sliding_window` and `max_window_layers` by default
# Keys that change what is computed, with the only values that mean "not used".
_UNUSED: dict[str, tuple[object, ...]] = {
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
    """The rotary position embedding. `scaling` is "default", "linear" or "llama3". Frequency i is
    divided by `divisors[i]` where these are stated, and nothing else is scaled.

    Raises CheckpointError for values that make no sense.
    """

    theta: float = 10000.0
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    divisors: tuple[float, ...] = ()  # positive, one for each pair of a head's numbers

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
    """All that the model needs to know of its shape. Raises CheckpointError where it makes no
    sense.
    """

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
                f"head_dim (by default hidden_size over num_attention_heads) must be even for"
                f" rotary embedding, got {self.head_dim}"
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
    def from_dict(
        cls, raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Returns the shape that config.json (`raw`) states; `generation` is
        generation_config.json, whose end-of-sequence ids count, too.
        """
        keys = Keys(raw, CONFIG)
        architecture, family = _family(keys)
        _refuse_what_we_lack(keys)
        num_layers = keys.whole("num_hidden_layers")
        max_positions = keys.whole("max_position_embeddings", family.max_positions)
        window = _window(keys, family, num_layers)
        attention_bias = family.attention_bias and keys.flag("attention_bias")
        heads, kv_heads, head_dim = _heads(keys, family)
        return cls(
            architecture=architecture,
            vocab_size=keys.whole("vocab_size"),
            hidden_size=keys.whole("hidden_size"),
            intermediate_size=keys.whole("intermediate_size"),
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_positions=min(max_positions, window or max_positions),
            context_note=context_note(max_positions, window),
            rms_norm_eps=keys.number("rms_norm_eps", 1e-6, least=0, most=1),
            rope=_rope(keys, max_positions),
            tied_embeddings=keys.flag("tie_word_embeddings"),
            qkv_bias=family.qkv_bias or attention_bias,
            out_bias=attention_bias,
            mlp_bias=family.mlp_bias and keys.flag("mlp_bias"),
            qk_norm=family.qk_norm,
            eos_ids=_eos_ids(keys, Keys(generation or {}, GENERATION), family),
            dtype=keys.word("dtype" if keys.states("dtype") else "torch_dtype", "float32", DTYPES),
        )


def _family(keys: Keys) -> tuple[str, Family]:
    named = keys.words("architectures")
    by_type = f"{keys.word('model_type', '').capitalize()}ForCausalLM"
    architecture = named[0] if named else by_type
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(
            f"architecture {shown(architecture)} (config.json: architectures) is not supported;"
            f" supported are {', '.join(_ARCHITECTURES)}"
        )
    return architecture, _FAMILIES[_ARCHITECTURES[architecture]]


def _refuse_what_we_lack(keys: Keys) -> None:
    keys.word("hidden_act", "silu", ("silu", "swish"))
    for key, harmless in _UNUSED.items():
        if keys.raw.get(key) not in harmless:
            raise keys.wrong(key, "asks for a feature that is not supported")
    for key in ("quantization_config", "compression_config"):
        if keys.states(key):
            raise CheckpointError(
                f"config.json: {key} says that the weights are quantized by"
                f" {_method(keys.table(key))}, which is not supported: serve the checkpoint that"
                " they were made from; --quantize int8 keeps its matrices in 8 bits"
            )


def _method(quantization: Keys) -> str:
    """Returns the name of the method by which weights are quantized, for an error message, as
    transformers finds it out.
    """
    if quantization.states("quant_method"):
        return shown(quantization.raw["quant_method"])
    if any(quantization.states(key) for key in ("load_in_4bit", "load_in_8bit")):
        return "'bitsandbytes'"
    return "a method that it does not name (quant_method)"


def _heads(keys: Keys, family: Family) -> tuple[int, int, int]:
    """Returns the numbers of query heads and of key-value heads, and the size of each. Null does
    not mean the family's default, but what follows from the other sizes.
    """
    heads, hidden = keys.whole("num_attention_heads"), keys.whole("hidden_size")
    if heads > hidden:
        raise keys.wrong("num_attention_heads", f"must be at most hidden_size ({hidden})")
    by_size = {"num_key_value_heads": heads, "head_dim": hidden // heads}
    by_family = {"num_key_value_heads": family.num_kv_heads, "head_dim": family.head_dim}
    kv_heads, head_dim = (
        keys.whole(key, size if key in keys.raw else by_family[key] or size)
        for key, size in by_size.items()
    )
    return heads, kv_heads, head_dim


def _window(keys: Keys, family: Family, num_layers: int) -> int | None:
    """Returns how many tokens attention reaches back in any layer; None where that is not
    limited.
    """
    kinds = keys.words("layer_types")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise CheckpointError(
                f"config.json: layer_types holds {shown(kind)}, which is not supported"
            )
    if kinds and len(kinds) != num_layers:
        raise keys.wrong("layer_types", f"must hold num_hidden_layers ({num_layers}) kinds")
    if family.window == "never":
        return None
    if family.window == "always":
        in_use = True
    elif kinds:
        in_use = "sliding_attention" in kinds
    else:
        most = keys.whole("max_window_layers", _WINDOW_LAYERS, least=0)
        in_use = keys.flag("use_sliding_window") and most < num_layers
    if not in_use or keys.raw.get("sliding_window", _WINDOW) is None:
        return None
    return keys.whole("sliding_window", _WINDOW)


def context_note(max_positions: int, window: int | None) -> str:
    """Returns why the context is limited to a window. Within one window sliding and full attention
    are the same, and so the context ends there.
    """
    if window is None or window >= max_positions:
        return ""
    return (
        f"context limited to {window} of {max_positions} tokens:"
        " attention beyond the checkpoint's sliding_window is not implemented"
    )


def _rope(keys: Keys, max_positions: int) -> RopeConfig:
    """Returns the rotary embedding that `rope_scaling` states, which transformers 5 prefers, too,
    or `rope_parameters`, with `rope_theta` beside it.
    """
    tables = {name: keys.table(name) for name in ("rope_scaling", "rope_parameters")}
    name = "rope_scaling" if tables["rope_scaling"].raw else "rope_parameters"
    rope = tables[name]
    if any(isinstance(value, Mapping) for value in rope.raw.values()):
        raise CheckpointError(f"config.json: {name} that differ between layers are not supported")
    if rope.raw.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise rope.wrong("partial_rotary_factor", "is not supported")
    theta = keys.number("rope_theta", 10000.0, **_THETA)
    theta = rope.number("rope_theta", theta, **_THETA)
    kind = "rope_type" if rope.states("rope_type") else "type"
    scaling = rope.word(kind, "default", ("default", "linear", "llama3"))
    if scaling == "default":
        return RopeConfig(theta)
    factor = rope.number("factor", least=1, most=1e6)
    if scaling == "linear":
        return RopeConfig(theta, scaling, factor)
    low, high = (rope.number(f"{end}_freq_factor", least=0, most=1e6) for end in ("low", "high"))
    if not 0 < low < high:
        raise rope.wrong("low_freq_factor", f"must be above 0 and below high_freq_factor ({high})")
    original = rope.whole("original_max_position_embeddings", max_positions)
    return RopeConfig(theta, scaling, factor, low, high, original)


def _eos_ids(keys: Keys, generation: Keys, family: Family) -> tuple[int, ...]:
    """Returns the end-of-sequence ids that either file states; the family's, where neither states
    any.
    """
    is_stated = any("eos_token_id" in each.raw for each in (keys, generation))
    ids = {*keys.ids("eos_token_id"), *generation.ids("eos_token_id")}
    return tuple(sorted(ids)) if is_stated else family.eos_ids
