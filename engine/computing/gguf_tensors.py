"""The tensors of a GGUF file, named and with their rows ordered as in a Hugging Face checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from engine.checkpoint.gguf.header import PACKINGS, Header
from engine.checkpoint.gguf.shape import ROPE_DIVISORS, is_interleaved
from engine.checkpoint.json_file import CheckpointError, shown
from engine.checkpoint.model_config import ModelConfig
from engine.computing.unpacking import unpack

PIECE = 1 << 20  # weights that are unpacked at once; a multiple of every block's
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_QUERY, _KEY = "self_attn.q_proj", "self_attn.k_proj"
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    _QUERY: "attn_q",
    _KEY: "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


class GgufTensors:
    """The tensors of a GGUF file. They are unpacked piece by piece, so that no tensor is ever held
    in float32 as a whole, unless that is what is asked for.
    """

    def __init__(self, header: Header, config: ModelConfig) -> None:
        self._header = header
        self._rows = {}  # of the matrices whose rows are to be put back: how many heads they have
        if is_interleaved(header):
            self._rows = {_QUERY: config.num_heads, _KEY: config.num_kv_heads}

    def check(self, wanted: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Raises CheckpointError as its protocol says, and where the file has a tensor more: what
        it is for, and what would be computed wrong without it, is not known.
        """
        header, used = self._header, {ROPE_DIVISORS}
        for name, shape in wanted:
            stored = _stored_name(name)
            used.add(stored)
            if stored not in header.tensors:
                raise CheckpointError(f"{header.where} lacks the tensor {stored}")
            found = header.tensors[stored].shape
            if found != shape:
                raise CheckpointError(
                    f"{header.where}: the tensor {stored} has shape {list(found)}; its metadata"
                    f" asks for {list(shape)}"
                )
        for stored in header.tensors.keys() - used:
            raise CheckpointError(
                f"{header.where} has a tensor for which the model has no use: {shown(stored)}"
            )

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = self._header.tensors[_stored_name(name)]
        packing = PACKINGS[tensor.packing]
        weights = torch.empty(tensor.shape, dtype=dtype)
        flat = weights.view(-1)
        for start in range(0, len(flat), PIECE):
            piece = flat[start : start + PIECE]
            at, num_bytes = (n // packing.weights * packing.bytes for n in (start, len(piece)))
            raw = torch.frombuffer(self._header.read(tensor, at, num_bytes), dtype=torch.uint8)
            piece.copy_(unpack(raw, tensor.packing))
        return self._as_published(name, weights)

    def _as_published(self, name: str, weights: Tensor) -> Tensor:
        """Returns a tensor with its rows in the checkpoint's order: of each head first the first
        rows of all rotary pairs, and then the second ones.
        """
        inside = _LAYER.match(name)
        heads = self._rows.get(inside[2].rpartition(".")[0]) if inside else None
        if heads is None:
            return weights
        return weights.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weights.shape)


def _stored_name(name: str) -> str:
    """Returns the name that a tensor of a checkpoint folder has in a GGUF file."""
    inside = _LAYER.match(name)
    stem, _, kind = (inside[2] if inside else name).rpartition(".")
    return f"blk.{inside[1]}.{_IN_LAYER[stem]}.{kind}" if inside else f"{_OUTSIDE[stem]}.{kind}"
