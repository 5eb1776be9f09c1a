"""The model's matrices, stored the way their device reads them fastest.

    plain   [I, O], x @ w: the meaning of the others, for every device and dtype
    packed  oneDNN's own blocked layout, on a CPU, for a dtype that it has one for (cpu.can_pack)
    int8    a byte for each weight and a scale for each output; on a CPU each row of x is rounded to
            8 bits too (to 7 where sums of more would overflow), with a scale of its own, so that
            no row depends on who shares its batch

To multiply a matrix with a row by itself is nothing but to read it, so the layout that streams
nearest to the memory's bandwidth is the fastest, and which that is differs from CPU to CPU
(autotune.py). Beside the packed matrix a CPU may therefore keep a copy for such a row: plain, or in
strips, [O / 32, I, 32], of which compiled code sums 32 outputs side by side.

Legend: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, library, nn

from engine.computing.cpu import PACKED_FOR_ROWS, can_pack

_QUANTIZED_AT_ONCE = 4096  # outputs
STRIP = 32  # outputs that are summed side by side
ROW_LAYOUTS = ("packed", "plain", "strips")

_ops = library.Library("niyama", "FRAGMENT")
_ops.define("packed_linear(Tensor x, Tensor weight, Tensor? bias, int outputs) -> Tensor")
_ops.define("int8_linear(Tensor x, int levels, Tensor weight, Tensor scale) -> Tensor")


def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """Multiplies rows [T, I] with a packed matrix to [T, O]."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _int8_linear(x: Tensor, levels: int, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiplies rounded rows [T, I] uint8 with a packed int8 matrix to [T, O] float32, in which
    only the outputs' scales [O] are. Zero is `levels` + 1 in x: oneDNN multiplies unsigned numbers
    faster than signed ones.
    """
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, levels + 1, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


_ops.impl("packed_linear", _packed_linear, "CompositeExplicitAutograd")
_ops.impl(
    "packed_linear", lambda x, weight, bias, outputs: x.new_empty(x.shape[0], outputs), "Meta"
)
_ops.impl("int8_linear", _int8_linear, "CompositeExplicitAutograd")
_ops.impl(
    "int8_linear",
    lambda x, levels, weight, scale: scale.new_empty(x.shape[0], scale.shape[0]),
    "Meta",
)


@functools.cache
def exact_levels() -> int:
    """Returns the largest number, on either side of 0, with which this CPU's int8 products are
    exact, by trying: 127, or 63 on a CPU without VNNI, which adds pairs of products in 16 bits, and
    two products of numbers of 8 bits overflow them.
    """
    size = 64
    x = torch.full((2, size), 255, dtype=torch.uint8)  # 127
    weight = torch.full((size, size), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    found = torch.ops.niyama.int8_linear(x, 127, packed, torch.ones(size))
    return 127 if bool((found == size * 127 * 127).all()) else 63


def in_strips(x: Tensor, strips: Tensor) -> Tensor:
    """Multiplies a row [1, I] with a matrix in strips [O / STRIP, I, STRIP] to [1, O], where O is
    rounded up to whole strips. This is for compiled code: by itself it is slow.
    """
    return (strips.float() * x.float().view(1, -1, 1)).sum(1).view(1, -1).to(x.dtype)


class Linear(nn.Module):
    """Multiplies rows [T, I] to [T, O]. A checkpoint fills `weight` and `bias`; then `pack` or
    `quantize` may store the matrix otherwise, once, and leave `weight` empty.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` is [I, O], `bias` [O]; neither is copied."""
        super().__init__()
        self.outputs = weight.shape[1]
        self.weight = nn.Parameter(weight, False)
        self.bias = None if bias is None else nn.Parameter(bias, False)
        # The copy for a row by itself in compiled code: plain, or in strips [O / STRIP, I, STRIP].
        self.row: Tensor | None = None
        self.stored: Tensor | None = None  # the matrix, packed or in int8
        self.scale: Tensor | None = None  # of each output of a matrix in int8: [O] float32
        self.levels = 127  # the largest number of a row that is rounded for int8
        # By this [B, B] each run of B inputs is multiplied first, where there is one (rotation.py).
        self.mixing: Tensor | None = None

    @classmethod
    def empty(
        cls, inputs: int, outputs: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> Linear:
        """Makes one whose weights are yet to be filled."""
        weight = torch.empty(inputs, outputs, dtype=dtype, device=device)
        return cls(weight, weight.new_empty(outputs) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.mixing is not None:
            x = (x.reshape(-1, len(self.mixing)) @ self.mixing).view(x.shape)
        if self.stored is None:
            return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)
        if self.scale is None:
            if self.row is not None and x.shape[0] == 1 and torch.compiler.is_compiling():
                return self._one_row(x, self.row)
            packed: Tensor = torch.ops.niyama.packed_linear(x, self.stored, self.bias, self.outputs)
            return packed
        out = self._int8(x, self.stored, self.scale)
        return out if self.bias is None else out + self.bias

    def _one_row(self, x: Tensor, row: Tensor) -> Tensor:
        out = x @ row if row.dim() == 2 else in_strips(x, row)[:, : self.outputs]
        return out if self.bias is None else out + self.bias

    def _int8(self, x: Tensor, stored: Tensor, scale: Tensor) -> Tensor:
        if x.device.type != "cpu":
            # The matrix is written out in x's dtype first: int8 saves memory here, and no time.
            return (x @ stored.to(x.dtype)) * scale.to(x.dtype)
        largest = x.abs().amax(1, keepdim=True).float().clamp_(min=1e-12) / self.levels
        rounded = (x / largest).round_().add_(self.levels + 1).to(torch.uint8)
        out: Tensor = torch.ops.niyama.int8_linear(rounded, self.levels, stored, scale)
        return (out * largest).to(x.dtype)

    def pack(self, row_layout: str = "packed") -> None:
        """Stores the matrix in oneDNN's layout, where it has one for the device and dtype, and a
        copy of it for a row by itself where `row_layout` (of ROW_LAYOUTS) is another one.
        """
        weight = self.weight.detach()
        if weight.device.type != "cpu" or not can_pack(weight.dtype):
            return
        # In memory of its own: oneDNN keeps a tensor that already has its layout as it is.
        rows = weight.t().clone(memory_format=torch.contiguous_format)
        if row_layout == "strips":
            padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % STRIP))
            self.row = padded.view(-1, STRIP, rows.shape[1]).transpose(1, 2).contiguous()
        elif row_layout == "plain":
            self.row = weight.clone(memory_format=torch.contiguous_format)
        self._store(torch.ops.mkldnn._reorder_linear_weight(rows, PACKED_FOR_ROWS))

    def quantize(self) -> None:
        """Stores the matrix in int8: symmetric, rounded to nearest, with one scale for each output.
        Only a part of it at a time is in float32 for that.
        """
        rows, scales = [], []
        for part in self.weight.detach().t().split(_QUANTIZED_AT_ONCE):
            scale = part.float().abs().amax(1, keepdim=True).clamp_(min=1e-12) / 127
            rows.append((part.float() / scale).round_().to(torch.int8))
            scales.append(scale)
        stored, self.scale = torch.cat(rows), torch.cat(scales).flatten()
        if stored.device.type == "cpu":
            self.levels = exact_levels()
            self._store(torch.ops.onednn.qlinear_prepack(stored, None))
        else:
            self._store(stored.t().contiguous())

    def _store(self, stored: Tensor) -> None:
        self.stored = stored
        self.weight = nn.Parameter(self.weight.new_empty(0), False)
