"""A change of basis in which no channel stands out, so that a row of x fits into 8 bits.

In trained models a few channels of the residual stream are twenty times as large as the others, and
nearly the same for all tokens. A row that is rounded to 8 bits has one scale, so most of the bits
then hold these few channels, and all others are rounded to almost nothing. In a basis that mixes
all channels with each other none is large.

The basis is changed by an orthogonal matrix Q, and the model still computes the same: x Q goes
through the layers in the place of x, every matrix W that reads x becomes Q^T W, every one that adds
to x becomes W Q, and so does the embedding. RMSNorm between them commutes with Q, which keeps the
length of a row, once the norm's gain is moved into the matrix behind it. So only matrices change
and not the forward pass, and nothing is slower. Values are mixed within each head in the same way,
by the matrix that makes them and the one that reads attention's output. What goes into `down` comes
out of a product element by element, and no matrix before it could mix it: it is mixed in the
forward pass, in short runs of channels; only on a CPU, where rows are rounded.

Q must be easily applied to large matrices, and spread any channel evenly: it is Hadamard's matrix,
or one like it for sizes that are no power of two, with random signs. Source: QuaRot (arXiv
2404.00456). What was tried and measured stands in docs/decisions/int8.md.

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
    """Returns an orthogonal matrix [size, size] float32 without an entry above sqrt(2 / size): the
    Kronecker product of Hartley's matrix, for the odd part of `size`, and Hadamard's, for the power
    of two in it. Its rows have signs drawn once and for all; without them a plain pattern, such as
    all channels equal, would be gathered in one place.
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
    """Mixes each run of `size` channels as one orthogonal matrix of that size would, which is the
    Kronecker product of two that are as small as can be, and are applied one after the other.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        outer = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0)
        self._outer, self._inner = mixing(outer).to(device), mixing(size // outer).to(device)

    def __call__(self, x: Tensor) -> Tensor:
        """Mixes the last dimension of x, float32, which is one or more runs long."""
        runs: Tensor = x.unflatten(-1, (-1, len(self._outer), len(self._inner)))
        return (self._outer.t() @ (runs @ self._inner)).flatten(-3)


@torch.inference_mode()
def rotate(model: Decoder) -> None:
    """Brings a model whose matrices are still plain into such a basis, in place. Its logits stay as
    they are but for rounding. Its output matrix has memory of its own afterwards, even where it was
    the embedding's.
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
    """Lets a matrix read inputs in the new basis. The gain of the norm before it, if there is one,
    is moved into the matrix, and becomes 1.
    """
    if gain is None:
        _change(linear.weight.t(), rotation)
    else:
        scale = gain.float()
        _change(linear.weight.t(), lambda rows: rotation(rows * scale))
        gain.fill_(1.0)


def _mix_outputs(linear: Linear, rotation: Rotation, count: int) -> None:
    """Lets a matrix and its bias give their last `count` outputs in the new basis."""
    _change(linear.weight[:, -count:], rotation)
    if linear.bias is not None:
        _change(linear.bias[None, -count:], rotation)


def _mix_in_forward(linear: Linear) -> None:
    """Has a matrix mix its inputs before it multiplies with them, and mixes it accordingly: by the
    inverse of the mixing as its dtype has it, whose numbers are not exactly orthogonal.
    """
    inputs = len(linear.weight)
    size = max(n for n in range(1, MOST_IN_A_RUN + 1) if inputs % n == 0)
    if size == 1:
        return
    linear.mixing = mixing(size).to(linear.weight.dtype)
    undo = torch.linalg.inv(linear.mixing.float()).t()
    _change(linear.weight.t(), lambda rows: (rows.unflatten(1, (-1, size)) @ undo).flatten(1))


def _change(rows: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Changes the rows of a matrix in place, in float32, AT_ONCE at a time: no second matrix is
    needed.
    """
    for part in rows.split(AT_ONCE):
        part.copy_(change(part.float()))
