"""The decoder-only model: Llama and its relatives, in one file.

A forward pass sees an iteration as one flat batch of T tokens, whichever sequences they belong
to. All it depends on comes as an argument, attention too: what lies between one attention and the
next is compiled (compiled.py), attention is not, or not all of it (attention/).

Legend: T tokens, S rows that are sampled, E hidden size, H query heads, KH key-value heads, D head
size, F intermediate size, V vocabulary.

Queries, keys and values are one matrix, the MLP's gate and up another. Sources: Llama
(arXiv 2302.13971), RoFormer (arXiv 2104.09864); rotary halves as Hugging Face lays them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.checkpoint.model_config import ModelConfig, RopeConfig
from engine.computing.linear import Linear

Attend = Callable[[Tensor, int], Tensor]  # [T, H + 2 * KH, D] of a layer, to [T, H * D]


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Returns the radians per position by which each rotary pair is turned: [D / 2] float32."""
    inverse = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.scaling == "linear":
        return inverse / rope.factor
    if rope.scaling == "llama3":
        return _llama3(inverse, rope)
    return inverse / torch.tensor(rope.divisors) if rope.divisors else inverse


def _llama3(inverse: Tensor, rope: RopeConfig) -> Tensor:
    """Stretches long wavelengths by the factor, keeps short ones, and blends those between."""
    turns = rope.original_max_positions * inverse / (2 * math.pi)  # over the trained context
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = smooth.clamp(0, 1)
    return inverse * (kept + (1 - kept) / rope.factor)


def rotary_table(config: ModelConfig) -> Tensor:
    """Returns, for every position, the cosines and the sines, signed for `rotate_`:
    [positions, 2, D] float32.
    """
    angles = torch.outer(
        torch.arange(config.max_positions, dtype=torch.float32),
        inverse_frequencies(config.rope, config.head_dim),
    )
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)), 1)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotates the pairs (i, i + D / 2) of x [T, heads, D] in place, by cos and signed sin
    [T, 1, D].
    """
    swapped = x.roll(x.shape[-1] // 2, -1)
    x.mul_(cos).addcmul_(swapped, sin)


class Block(nn.Module):
    """A block is one layer of the model. Its tensors are empty until a checkpoint fills them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config = config
        e, d, f = config.hidden_size, config.head_dim, config.intermediate_size
        q, qkv = config.num_heads * d, (config.num_heads + 2 * config.num_kv_heads) * d

        def vector(size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(size, dtype=dtype, device=device), False)

        def linear(inputs: int, outputs: int, bias: bool) -> Linear:
            return Linear.empty(inputs, outputs, bias, dtype, device)

        self.attention_norm = vector(e)
        self.qkv = linear(e, qkv, config.qkv_bias)
        self.q_norm = vector(d) if config.qk_norm else None
        self.k_norm = vector(d) if config.qk_norm else None
        self.out = linear(q, e, config.out_bias)
        self.mlp_norm = vector(e)
        self.gate_up = linear(e, 2 * f, config.mlp_bias)
        self.down = linear(f, e, config.mlp_bias)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Computes from [T, E] what attention is given, [T, H + 2 * KH, D]."""
        config = self.config
        normed = F.rms_norm(x, x.shape[1:], self.attention_norm, config.rms_norm_eps)
        qkv = self.qkv(normed).unflatten(1, (-1, config.head_dim))
        if config.qk_norm:
            qkv = self._with_normed_heads(qkv)
        rotate_(qkv[:, : config.num_heads + config.num_kv_heads], cos, sin)
        return qkv

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """Computes [T, E] from [T, E] and what attention gives, [T, H * D]."""
        x = x + self.out(attended)
        normed = F.rms_norm(x, x.shape[1:], self.mlp_norm, self.config.rms_norm_eps)
        gate, up = self.gate_up(normed).chunk(2, 1)
        return x + self.down(F.silu(gate) * up)

    def _with_normed_heads(self, qkv: Tensor) -> Tensor:
        """Norms each query and key head of [T, H + 2 * KH, D] by itself (QK-norm of Qwen 3)."""
        config = self.config
        q, k, v = qkv.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), 1)
        shape, eps = (config.head_dim,), config.rms_norm_eps
        q = F.rms_norm(q, shape, self.q_norm, eps)
        return torch.cat((q, F.rms_norm(k, shape, self.k_norm, eps), v), 1)


class Decoder(nn.Module):
    """The decoder is embedding, layers, final norm and output matrix, with the rotary table."""

    rotary: Tensor

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        device = torch.device(device)
        self.config = config
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = nn.Parameter(torch.empty(shape, dtype=dtype, device=device), False)
        self.blocks = nn.ModuleList(Block(config, dtype, device) for _ in range(config.num_layers))
        self.norm = nn.Parameter(torch.empty(shape[1], dtype=dtype, device=device), False)
        rows = self.embedding.data if config.tied_embeddings else torch.empty_like(self.embedding)
        self.head = Linear(rows.t())  # [V, E] in memory, as the embedding is
        self.register_buffer("rotary", rotary_table(config).to(device), persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor, rows: Tensor, attend: Attend) -> Tensor:
        """Computes logits [S, V] of the rows to be sampled, from tokens, positions [T] and rows
        [S], all int64.
        """
        x, cos, sin = self.embed(tokens, positions)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            attended = attend(block.before(x, cos, sin), layer)
            if layer == len(self.blocks) - 1:
                x, attended = x.index_select(0, rows), attended.index_select(0, rows)
            x = block.after(x, attended)
        return self.logits(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the embeddings [T, E], and cosines and signed sines [T, 1, D]."""
        x = F.embedding(tokens, self.embedding)
        cos, sin = self.rotary.index_select(0, positions).to(x.dtype)[:, None].unbind(2)
        return x, cos, sin

    def logits(self, x: Tensor) -> Tensor:
        """Computes logits [S, V] from [S, E]."""
        return self.head(F.rms_norm(x, x.shape[1:], self.norm, self.config.rms_norm_eps))

    def linears(self) -> Iterator[Linear]:
        """Yields every matrix but the embedding's table."""
        return (module for module in self.modules() if isinstance(module, Linear))
