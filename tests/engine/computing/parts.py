"""Random checkpoints saved by transformers, and the parts that drive an executor by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from engine.computing.attention.gathered import GatheredKv
from engine.computing.attention.in_place import InPlaceKv
from engine.computing.attention.layout import KvLayout
from engine.computing.batch import Batch
from engine.computing.runner import ModelExecutor
from engine.computing.weights import load_model
from engine.deciding.plan import Chunk, Plan, Work
from engine.deciding.request import Request, Sampling
from engine.deciding.sequence import Sequence

VOCAB, CONTEXT = 97, 48
# What torch says to itself the first time that a process compiles.
TORCHS_OWN = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
TEXTS = 6  # token sequences of full length with known logits, for each checkpoint
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
# Every family, with grouped-query, multi-head and multi-query attention, tied and untied.
CHECKPOINTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {}),
    "llama-llama3-rope": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear-rope": ("Llama", {"rope_parameters": LINEAR, "num_key_value_heads": 4}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 1, "head_dim": 16}),
}


@dataclass(frozen=True)
class Saved:
    """A checkpoint folder, and what transformers computes from it."""

    folder: Path
    model: transformers.PreTrainedModel
    texts: Tensor  # [TEXTS, CONTEXT] int64
    logits: Tensor  # [TEXTS, CONTEXT, VOCAB] float32


def make_saved(family: str, changes: dict[str, object], folder: Path) -> Saved:
    config = getattr(transformers, f"{family}Config")(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **changes,
        }
    )
    torch.manual_seed(7)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: none is 0 or 1
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
        texts = torch.randint(VOCAB, (TEXTS, CONTEXT))
        logits = model(texts).logits
    model.save_pretrained(folder)
    return Saved(folder, model, texts, logits)


class Recorder(ModelExecutor):
    """An executor that keeps the last iteration's logits."""

    logits: Tensor

    def step(self, batch: Batch) -> Tensor:
        self.logits = super().step(batch)
        return self.logits


def make_executor(
    folder: Path, num_pages: int = 64, page_size: int = 4, device: str = "cpu"
) -> Recorder:
    model = load_model(folder, torch.float32, device)
    return Recorder(model, GatheredKv(model.config, num_pages, page_size, torch.float32, device))


def fill(kv: KvLayout, content: Tensor) -> None:
    """Keys and values [layers, 2 * KH, slots, D], into either layout."""
    if isinstance(kv, GatheredKv):
        kv.keys_and_values.copy_(content)
    else:
        assert isinstance(kv, InPlaceKv)
        by_page = content.unflatten(2, (-1, kv.page_size)).transpose(1, 2)
        keys, values = by_page.split(kv.num_kv_heads, 2)  # [layers, pages, KH, page_size, D]
        kv.keys.copy_(keys.transpose(3, 4))
        kv.values.copy_(values)


def content_shape(kv: KvLayout) -> tuple[int, int, int, int]:
    return kv.num_layers, 2 * kv.num_kv_heads, kv.num_slots, kv.head_dim


def make_sequence(
    tokens: Iterable[int],
    pages: Iterable[int],
    sampling: Sampling | None = None,
    name: str = "r",
    num_computed: int = 0,
    output: Iterable[int] = (),
) -> Sequence:
    """A sequence with that prompt, output and page table; its first positions are computed."""
    sampling = sampling or Sampling(temperature=0.0)
    request = Request(name, list(tokens), sampling, arrived_at=0.0)
    return Sequence(request, 0.0, list(output), num_computed=num_computed, pages=list(pages))


def advance(plan: Plan, token_ids: Iterable[int]) -> None:
    """What a scheduler does to the sequences of a plan that gave those tokens."""
    for chunk in plan.chunks:
        if not chunk.samples:
            chunk.sequence.prefill(chunk.length, 0.0)
    for sequence, token_id in zip(plan.sampling, token_ids, strict=True):
        sequence.expect_token(0.0)
        sequence.take_token(token_id, 0.0)


def make_plan(
    decodes: Iterable[Sequence] = (), chunks: Iterable[Chunk] = (), cleared: Iterable[int] = ()
) -> Plan:
    return Plan(tuple(decodes), tuple(chunks), Work(), 0.0, 0.0, tuple(cleared))
