"""What config.json may say, old and new spellings, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.model_config import ModelConfig, RopeConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "eos_token_id": 2,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def config(architecture: str = "LlamaForCausalLM", **changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({**LLAMA, "architectures": [architecture], **changes})


def test_what_is_not_stated_follows_from_what_is() -> None:
    made = config(num_key_value_heads=None)
    assert (made.num_kv_heads, made.head_dim, made.eos_ids) == (8, 8, (2,))
    assert made.rope == RopeConfig(theta=10000.0)
    assert made.context_note == ""
    assert (made.qkv_bias, made.qk_norm, made.tied_embeddings) == (False, False, False)


def test_the_model_type_serves_where_no_architecture_is_stated() -> None:
    assert config(architectures=None, model_type="qwen3").qk_norm


def test_families_have_their_biases_and_norms() -> None:
    assert config("Qwen2ForCausalLM").qkv_bias
    assert not config("Qwen2ForCausalLM").out_bias
    assert config("Qwen3ForCausalLM").qk_norm
    biased = config(attention_bias=True, mlp_bias=True)
    assert biased.qkv_bias
    assert biased.out_bias
    assert biased.mlp_bias


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
    ],
)
def test_old_and_new_spellings_of_rope_mean_the_same(keys: dict[str, Any]) -> None:
    assert config(**keys).rope == RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 512)


def test_end_of_sequence_ids_of_both_files_add_up() -> None:
    made = ModelConfig.from_dict({**LLAMA, "eos_token_id": 2}, {"eos_token_id": [9, 5]})
    assert made.eos_ids == (2, 5, 9)


def test_a_sliding_window_in_use_limits_the_context_and_says_so() -> None:
    windowed = config("MistralForCausalLM", sliding_window=512)
    assert windowed.max_positions == 512
    assert "sliding_window" in windowed.context_note
    qwen = config(
        "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=512, max_window_layers=1
    )
    assert qwen.max_positions == 512


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("MistralForCausalLM", {"sliding_window": None}),
        ("MistralForCausalLM", {"sliding_window": 4096}),
        ("Qwen2ForCausalLM", {"use_sliding_window": False, "sliding_window": 512}),
        (
            "Qwen3ForCausalLM",
            {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 28},
        ),
        ("Qwen3ForCausalLM", {"sliding_window": 512, "layer_types": ["full_attention"] * 2}),
    ],
)
def test_a_sliding_window_not_in_use_changes_nothing(
    architecture: str, keys: dict[str, Any]
) -> None:
    made = config(architecture, **keys)
    assert (made.max_positions, made.context_note) == (2048, "")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": None, "model_type": "gemma"}, "GemmaForCausalLM"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .* does not name"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantized by 'awq'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized by 'fp8'.*--quantize int8"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantized by 'bitsandbytes'"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "'compressed-tensors'"),
        ({"layer_types": ["full_attention"]}, "layer_types must hold num_hidden_layers"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"layer_types": ["linear_attention"]}, "layer_types"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"head_dim": 7}, "head_dim"),
        ({"torch_dtype": "int8"}, "int8"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        ModelConfig.from_dict({**LLAMA, **keys})
    assert "\n" not in str(caught.value)
