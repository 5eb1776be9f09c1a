"""A change of basis in which no channel stands out, so that a row of x fits into 8 bits.

In trained models a few channels of the residual stream, nearly the same for all tokens, are twenty
times as large as the others. With one scale for a row most of its 8 bits then hold these few. In a
basis that mixes all channels none is large, and an orthogonal one leaves what the model computes as
it is: RMSNorm commutes with it once its gain is part of the matrix behind it, so that embedding and
matrices change and the forward pass does not. Values are mixed within their head likewise. Only
what goes into `down` has no matrix before it to be mixed in: it is mixed in the forward pass, in
short runs, on a CPU, where rows are rounded. Source: QuaRot (arXiv 2404.00456).

Legend: I inputs, O outputs, E hidden size, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.computing.linear import Linear
from engine.computing.model import Block, Decoder

MOST_IN_A_RUN = 64  # inputs of `down` that are mixed with each other
AT_ONCE = 4096  # rows of a matrix that are held in float32


def mixing(size: int) -> Tensor:
    """[size, size] float32, orthogonal, no entry above sqrt(2 / size): Hadamard's matrix for the
    power of two in `size` times Hartley's for the rest. Rows have signs drawn once and for all, so
    that no plain pattern, such as all channels equal, is what it gathers in one place.
    """
    power = size & -size
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), hadamard)
    steps = torch.arange(size // power, dtype=torch.float64)
    angles = 2 * math.pi / len(steps) * torch.outer(steps, steps).remainder(len(steps))
    signs = torch.randint(0, 2, (size, 1), generator=torch.Generator().manual_seed(size)) * 2 - 1
    found = signs * torch.kron(angles.cos() + angles.sin(), hadamard) / math.sqrt(size)
    return found.float()


class Rotation:
    """Mixes each run of `size` channels: as if by one orthogonal matrix of that size, which is the
    Kronecker product of two that are as small as can be.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        outer = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0)
        self._outer, self._inner = mixing(outer).to(device), mixing(size // outer).to(device)

    def __call__(self, x: Tensor) -> Tensor:
        """Of the last dimension of x, float32, some runs long."""
        runs = x.unflatten(-1, (-1, len(self._outer), len(self._inner)))
        return (self._outer.t() @ (runs @ self._inner)).flatten(-3)


@torch.inference_mode()
def rotate(model: Decoder) -> None:
    """Into such a basis, in place, while its matrices are still plain; logits stay as they are but
    for rounding. The output matrix is no longer the embedding's, if it was.
    """
    config, device = model.config, model.embedding.device
    residual, heads = Rotation(config.hidden_size, device), Rotation(config.head_dim, device)
    if config.tied_embeddings:
        model.head.weight = nn.Parameter(model.embedding.clone().t(), False)
    _mix_inputs(model.head, residual, model.norm)
    _change(model.embedding, residual)
    for block in model.blocks:
        assert isinstance(block, Block)
        _mix_inputs(block.qkv, residual, block.attention_norm)
        _mix_inputs(block.gate_up, residual, block.mlp_norm)
        _mix_outputs(block.qkv, heads, config.num_kv_heads * config.head_dim)
        _mix_inputs(block.out, heads)
        if device.type == "cpu":
            _mix_in_forward(block.down)
        for linear in (block.out, block.down):
            _mix_outputs(linear, residual, config.hidden_size)


def _mix_inputs(linear: Linear, rotation: Rotation, gain: Tensor | None = None) -> None:
    """With the gain of the norm before it, which becomes 1."""
    if gain is None:
        _change(linear.weight.t(), rotation)
    else:
        scale = gain.float()
        _change(linear.weight.t(), lambda rows: rotation(rows * scale))
        gain.fill_(1.0)


def _mix_outputs(linear: Linear, rotation: Rotation, count: int) -> None:
    """The last `count`."""
    _change(linear.weight[:, -count:], rotation)
    if linear.bias is not None:
        _change(linear.bias[None, -count:], rotation)


def _mix_in_forward(linear: Linear) -> None:
    """With the very numbers of its dtype."""
    inputs = len(linear.weight)
    size = max(n for n in range(1, MOST_IN_A_RUN + 1) if inputs % n == 0)
    if size == 1:
        return
    linear.mixing = mixing(size).to(linear.weight.dtype)
    undo = torch.linalg.inv(linear.mixing.float()).t()
    _change(linear.weight.t(), lambda rows: (rows.unflatten(1, (-1, size)) @ undo).flatten(1))


def _change(rows: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """In place, in float32, so many rows at once that no second matrix is needed."""
    for part in rows.split(AT_ONCE):
        part.copy_(change(part.float()))
