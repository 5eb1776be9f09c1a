"""Unpacks the tensors of GGUF files: the numbers of each quantized type, as ggml stores them.

A row is cut into blocks of 32 or 256 weights, each with its own scale, and often a minimum, beside
the bits of its weights. What a block means is as in ggml's `ggml-quants.c` (dequantize_row_*) and
as in the package gguf (`quants.py`), which tests compare with, to the last bit. Here it is written
for torch, since that uses every core and takes a small part of the memory.

Every function takes blocks, uint8 [N, bytes of a block], and returns float32 [N, weights of one].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.checkpoint.gguf.header import PACKINGS

# What the 16 values of IQ4_NL and IQ4_XS stand for (kvalues_iq4nl in ggml-common.h).
_UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def unpack(raw: Tensor, kind: str) -> Tensor:
    """Returns the weights of whole blocks, float32 [N], of their bytes, uint8 [M], where `kind` is
    one of PACKINGS.
    """
    if kind in _PLAIN:
        return raw.view(_PLAIN[kind]).float()
    return _OF_KIND[kind](raw.view(-1, PACKINGS[kind].bytes)).flatten()


def _halves(blocks: Tensor, at: int) -> Tensor:
    """Returns the float16 at byte `at` of each block, [N, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(packed: Tensor, bits: int, group: int) -> Tensor:
    """Returns the fields of `bits` bits of each byte, uint8 [N, bytes * 8 / bits]: of each `group`
    bytes first all lowest fields, then all that are next.
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    parts = packed.reshape(len(packed), -1, 1, group) >> shifts[:, None]
    return (parts & (2**bits - 1)).flatten(1)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8) * _halves(blocks, 0)


def _q4_0(blocks: Tensor) -> Tensor:
    return (_fields(blocks[:, 2:], 4, 16).view(torch.int8) - 8) * _halves(blocks, 0)


def _q4_1(blocks: Tensor) -> Tensor:
    return _fields(blocks[:, 4:], 4, 16) * _halves(blocks, 0) + _halves(blocks, 2)


def _fifth_bits(packed: Tensor) -> Tensor:
    """Returns bit i of four bytes, as 16 in weight i's place, uint8 [N, 32]."""
    return _fields(packed, 1, 1) << 4


def _q5_0(blocks: Tensor) -> Tensor:
    weights = _fields(blocks[:, 6:], 4, 16) | _fifth_bits(blocks[:, 2:6])
    return (weights.view(torch.int8) - 16) * _halves(blocks, 0)


def _q5_1(blocks: Tensor) -> Tensor:
    weights = _fields(blocks[:, 8:], 4, 16) | _fifth_bits(blocks[:, 4:8])
    return weights * _halves(blocks, 0) + _halves(blocks, 2)


def _scaled(weights: Tensor, scales: Tensor, minima: Tensor | None = None) -> Tensor:
    """Returns weights [N, 256] times their parts' scales [N, parts], less their minima."""
    parts = weights.view(len(weights), scales.shape[1], -1)
    product = parts * scales[..., None]
    return (product if minima is None else product.sub_(minima[..., None])).flatten(1)


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the eight scales and the eight minima that twelve bytes hold, uint8 [N, 8] each: the
    first four with their low six bits in a byte, the others' high two bits above those.
    """
    scales, minima, others = packed.split(4, 1)
    late_scales = (others & 15) | ((scales >> 2) & 48)
    late_minima = (others >> 4) | ((minima >> 2) & 48)
    return torch.cat([scales & 63, late_scales], 1), torch.cat([minima & 63, late_minima], 1)


def _q2_k(blocks: Tensor) -> Tensor:
    packed = blocks[:, :16]
    scales, minima = (packed & 15) * _halves(blocks, 80), (packed >> 4) * _halves(blocks, 82)
    return _scaled(_fields(blocks[:, 16:80], 2, 32), scales, minima)


def _q3_k(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, 96:104], 4, 8)
    scales = (low | _fields(blocks[:, 104:108], 2, 4) << 4).view(torch.int8) - 32
    weights = _fields(blocks[:, 32:96], 2, 32) | _fields(blocks[:, :32], 1, 32) << 2
    return _scaled(weights.view(torch.int8) - 4, scales * _halves(blocks, 108))


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bits(blocks[:, 4:16])
    weights = _fields(blocks[:, 16:], 4, 32)
    return _scaled(weights, scales * _halves(blocks, 0), minima * _halves(blocks, 2))


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bits(blocks[:, 4:16])
    weights = _fields(blocks[:, 48:], 4, 32) | _fields(blocks[:, 16:48], 1, 32) << 4
    return _scaled(weights, scales * _halves(blocks, 0), minima * _halves(blocks, 2))


def _q6_k(blocks: Tensor) -> Tensor:
    weights = _fields(blocks[:, :128], 4, 64) | _fields(blocks[:, 128:192], 2, 32) << 4
    scales = blocks[:, 192:208].view(torch.int8) * _halves(blocks, 208)
    return _scaled(weights.view(torch.int8) - 32, scales)


def _uneven(fields: Tensor) -> Tensor:
    """Returns what the fields of four bits stand for, int8 of the same shape."""
    return torch.tensor(_UNEVEN, dtype=torch.int8, device=fields.device)[fields.int()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _uneven(_fields(blocks[:, 2:], 4, 16)) * _halves(blocks, 0)


def _iq4_xs(blocks: Tensor) -> Tensor:
    scales = _fields(blocks[:, 4:8], 4, 1) | _fields(blocks[:, 2:4], 2, 1) << 4
    scaled = (scales.view(torch.int8) - 32) * _halves(blocks, 0)
    return _scaled(_uneven(_fields(blocks[:, 8:], 4, 16)), scaled)


_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_OF_KIND: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
