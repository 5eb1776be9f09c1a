"""The ways to store a matrix against the plain product."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.computing.cpu import can_pack
from engine.computing.linear import ROW_LAYOUTS, Linear
from tests.engine.computing.parts import TORCHS_OWN

INPUTS, OUTPUTS = 96, 80


def make(dtype: torch.dtype, has_bias: bool) -> tuple[Linear, Linear]:
    """The same matrix twice."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(INPUTS, OUTPUTS, generator=generator).to(dtype)
    bias = torch.randn(OUTPUTS, generator=generator).to(dtype) if has_bias else None
    return Linear(weight, bias), Linear(weight.clone(), bias)


def rows(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(count)).to(dtype)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_gives_the_plain_product_for_any_number_of_rows(
    dtype: torch.dtype, has_bias: bool
) -> None:
    plain, packed = make(dtype, has_bias)
    packed.pack()
    assert (packed.stored is not None) == can_pack(dtype)
    assert (packed.weight.numel() == 0) == can_pack(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 0.25  # sums of 96 products, rounded
    for count in (1, 2, 7, 64, 65, 300):
        x = rows(count, dtype)
        torch.testing.assert_close(packed(x), plain(x), atol=tolerance, rtol=1e-2)


@TORCHS_OWN
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ROW_LAYOUTS)
def test_a_row_by_itself_gets_the_plain_product_in_every_layout(
    layout: str, dtype: torch.dtype, has_bias: bool
) -> None:
    plain, laid_out = make(dtype, has_bias)
    laid_out.pack(layout)
    assert (laid_out.row is not None) == (layout != "packed" and can_pack(dtype))
    tolerance = 1e-4 if dtype == torch.float32 else 0.25
    product = torch.compile(laid_out.forward, fullgraph=True, dynamic=False)
    x = rows(1, dtype)
    with torch._dynamo.config.patch(recompile_limit=64):  # of the same code, in all these cases
        found = product(x)
    torch.testing.assert_close(found, plain(x), atol=tolerance, rtol=1e-2)


def test_a_dtype_that_cannot_be_packed_stays_plain() -> None:
    plain, same = make(torch.float64, True)
    same.pack()
    assert same.stored is None
    assert torch.equal(same(rows(3, torch.float64)), plain(rows(3, torch.float64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_within_its_rounding_and_no_row_depends_on_another(dtype: torch.dtype) -> None:
    plain, quantized = make(dtype, True)
    quantized.quantize()
    x = rows(40, dtype)
    x[7] *= 1000  # a row that would spoil a scale shared by all
    expected, found = plain(x).float(), quantized(x).float()
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < (0.02 if quantized.levels == 127 else 0.03)
    torch.testing.assert_close(quantized(x[3:4]), quantized(x)[3:4], atol=0, rtol=0)


@given(
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 70),
    count=st.integers(1, 5),
    largest=st.sampled_from([1.0, 1e4]),
    silent=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_int8_errs_by_half_a_step_of_each_factor_at_most(
    inputs: int, outputs: int, count: int, largest: float, silent: bool
) -> None:
    """Whatever the sizes, with channels that stand out, and with rows and outputs of nothing but
    zeros. Each factor of a product is off by half a step at most: of its row, or of its output.
    """
    generator = torch.Generator().manual_seed(inputs * outputs)
    weight = torch.randn(inputs, outputs, generator=generator)
    x = torch.randn(count, inputs, generator=generator)
    x[:, inputs // 2] *= largest
    if silent:
        x[0], weight[:, 0] = 0, 0
    quantized = Linear(weight.clone())
    quantized.quantize()
    step_x = x.abs().amax(1, keepdim=True) / quantized.levels
    step_weight = weight.abs().amax(0) / 127
    most = (step_x * (weight.abs().sum(0) + inputs * step_weight / 2)) / 2
    most += step_weight * x.abs().sum(1, keepdim=True) / 2
    error = (quantized(x) - (x.double() @ weight.double())).abs()
    assert (error <= most * 1.001 + 1e-5).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_output_whose_weights_are_not_finite_is_not_finite_in_int8(bad: float) -> None:
    """And no other output: who asked is told, INTERNAL, and nothing is made up."""
    _, quantized = make(torch.float32, False)
    quantized.weight[3, 5] = bad
    quantized.quantize()
    finite = quantized(rows(4, torch.float32)).isfinite()
    assert not finite[:, 5].any()
    assert finite[:, :5].all()
    assert finite[:, 6:].all()


def test_int8_is_exact_to_its_rounding_on_a_cpu_without_vnni() -> None:
    """Its sums of two products of 8 bits saturate at 16 bits: results were wrong by a tenth."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-k", "int8_is_within", __file__],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stdout
    assert "2 passed" in found.stdout
