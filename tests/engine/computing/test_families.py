"""What a config.json leaves out is what the family's class in transformers has in its place.

Its classes of 4.x, which wrote most checkpoints there are, have the same defaults as those of 5.x,
with which it is compared here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from engine.checkpoint.model_config import ModelConfig
from engine.deciding.plan import Chunk
from tests.engine.computing.parts import FAMILIES, make_executor, make_plan, make_sequence

# 32 heads, because that is how many key-value heads a Qwen has by default.
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 128,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
}
STATED: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4},
    {"head_dim": 6, "num_key_value_heads": 32},
    {"sliding_window": 99},
    {"sliding_window": None},
    {"use_sliding_window": True, "max_window_layers": 0},
    {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 77},
    {"use_sliding_window": True, "sliding_window": 77},
    {"rope_theta": 5e5},
    {"rope_parameters": {"rope_theta": 2e4, "rope_type": "linear", "factor": 2}, "rope_theta": 9e9},
    {"rope_theta": 3e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {"eos_token_id": [5, 9]},
    {"eos_token_id": None},
    {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    {"rms_norm_eps": 1e-5, "max_position_embeddings": 55},
]


def theirs(family: str, stated: dict[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig that transformers' class of the family amounts to."""
    raw = transformers.CONFIG_MAPPING[family.lower()](**SIZES, **stated)
    rope, window = raw.rope_parameters, None
    if family == "Mistral" or "sliding_attention" in (getattr(raw, "layer_types", None) or ()):
        window = raw.sliding_window
    eos = raw.eos_token_id
    return {
        "num_kv_heads": raw.num_key_value_heads,
        "head_dim": getattr(raw, "head_dim", raw.hidden_size // raw.num_attention_heads),
        "max_positions": min(raw.max_position_embeddings, window or raw.max_position_embeddings),
        "rms_norm_eps": raw.rms_norm_eps,
        "tied_embeddings": raw.tie_word_embeddings,
        "eos_ids": () if eos is None else tuple([eos] if isinstance(eos, int) else eos),
        "rope": (rope["rope_theta"], rope["rope_type"], rope.get("factor", 1.0)),
    }


@pytest.mark.parametrize("stated", STATED, ids=[str(each) for each in STATED])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_stated_is_what_transformers_class_of_the_family_has(
    family: str, stated: dict[str, Any]
) -> None:
    made = ModelConfig.from_dict({"model_type": family.lower(), **SIZES, **stated})
    expected = theirs(family, stated)
    found = {name: getattr(made, name) for name in expected}
    found["rope"] = (made.rope.theta, made.rope.scaling, made.rope.factor)
    assert found == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_that_states_only_sizes_computes_what_transformers_computes(
    family: str, tmp_path: Path
) -> None:
    """The shapes of its weights, too, are those of the defaults."""
    raw = {"model_type": family.lower(), **SIZES}
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForCausalLM")(
        transformers.CONFIG_MAPPING[raw["model_type"]](**SIZES)
    ).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tokens = torch.randint(SIZES["vocab_size"], (1, 20))
    with torch.no_grad():
        expected = model(tokens).logits[0, -1]
    executor = make_executor(tmp_path)
    sequence = make_sequence(tokens[0].tolist(), range(5))
    executor.run(make_plan(chunks=[Chunk(sequence, 0, 20, True)]))
    torch.testing.assert_close(executor.logits[0], expected, atol=1e-4, rtol=0)
