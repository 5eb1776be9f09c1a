"""What is chosen by measurement on a CPU: the dtype of `--dtype auto`, the layout for a row by
itself, and the numbers of rows that are padded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.source import Folder
from engine.computing import autotune, cpu, loading
from engine.computing.cpu import can_pack
from engine.computing.linear import ROW_LAYOUTS
from engine.computing.loading import load
from engine.computing.model import Decoder
from engine.computing.weights import load_model
from engine.deciding.plan import Chunk
from tests.engine.computing.parts import TORCHS_OWN, Saved, make_plan, make_sequence

ROOT = Path(__file__).parents[3]
# The dtypes that a load with "auto" and one with bfloat16 give, and a token of each.
LOADS = """
import json, sys
from engine.computing.loading import load
from engine.deciding.plan import Chunk
from tests.engine.computing.parts import make_plan, make_sequence
found = []
for dtype in ("auto", "bfloat16"):
    executor = load(sys.argv[1], dtype=dtype, num_pages=8, page_size=4)
    sequence = make_sequence([1, 5, 9], [0])
    (token,) = executor.run(make_plan(chunks=[Chunk(sequence, 0, 3, True)]))
    found.append([str(executor.dtype), token.id])
print(json.dumps(found))
"""


@pytest.fixture
def folder(saved: Callable[[str], Saved]) -> Path:
    return saved("llama").folder


@pytest.fixture
def config(folder: Path) -> ModelConfig:
    return Folder(folder).model_config()


@pytest.mark.parametrize("bfloat16_s", [0.5, 2.0])
def test_the_dtype_that_takes_less_time_is_chosen(config: ModelConfig, bfloat16_s: float) -> None:
    if not can_pack(torch.bfloat16):
        pytest.skip("this CPU computes no bfloat16")
    seconds = {torch.float32: [1.0] * 3, torch.bfloat16: [bfloat16_s] * 3}
    expected = torch.bfloat16 if bfloat16_s < 1 else torch.float32
    assert autotune.fastest_dtype(config, lambda _, dtype: seconds[dtype]) == expected


def test_what_is_measured_is_a_time_for_each_number_of_rows(config: ModelConfig) -> None:
    seconds = autotune.seconds_by_rows(replace(config, intermediate_size=64), torch.float32)
    assert len(seconds) == len(autotune.ROWS)
    assert min(seconds) > 0


@pytest.mark.parametrize(
    ("packed", "plain", "strips", "chosen"),
    [
        (1.0, 2.0, 3.0, "packed"),
        (1.0, 0.8, 0.9, "plain"),
        (1.0, 0.8, 0.5, "strips"),
        (1.0, 0.9, 0.9, "packed"),
    ],
)
def test_another_layout_is_worth_a_copy_only_where_it_is_clearly_faster(
    config: ModelConfig, packed: float, plain: float, strips: float, chosen: str
) -> None:
    seconds = {"packed": packed, "plain": plain, "strips": strips}
    assert autotune.fastest_row_layout(config, torch.float32, lambda *asked: seconds) == chosen


@TORCHS_OWN
def test_a_time_is_measured_for_each_layout(config: ModelConfig) -> None:
    seconds = autotune.seconds_by_layout(config, torch.float32)
    assert set(seconds) == set(ROW_LAYOUTS)
    assert min(seconds.values()) > 0


@pytest.mark.parametrize(("beyond", "expected"), [(0.5, cpu.SLOW_ROWS), (0.95, range(0))])
def test_rows_are_added_only_where_more_take_clearly_less(
    folder: Path, beyond: float, expected: range
) -> None:
    model = load_model(folder)
    assert autotune.measured_slow_rows(model, lambda model, rows: [1.0, beyond]) == expected


@pytest.mark.parametrize(
    ("dtype", "has_matrix_units", "is_measured"),
    [("bfloat16", True, True), ("bfloat16", False, False), ("float32", True, False)],
)
def test_a_load_measures_rows_where_there_are_matrix_units(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    has_matrix_units: bool,
    is_measured: bool,
) -> None:
    """Then 20 rows are not computed; really measured in the first case."""
    measured = []

    def slow_rows(model: Decoder) -> range:
        measured.append(autotune.seconds_of_layers(model, (26, 36)))
        return autotune.measured_slow_rows(model, lambda model, rows: [1.0, 0.5])

    monkeypatch.setattr(cpu, "has_matrix_units", lambda: has_matrix_units)
    monkeypatch.setattr(loading, "measured_slow_rows", slow_rows)
    executor = load(folder, dtype=dtype, num_pages=8, page_size=4)
    assert [min(seconds) > 0 for seconds in measured] == [True] * is_measured
    counts: list[int] = []
    executor.model.register_forward_pre_hook(lambda _, given: counts.append(len(given[0])))
    chunk = Chunk(make_sequence([1] * 20, range(5)), 0, 20, True)
    executor.run(make_plan(chunks=[chunk]))
    assert counts == [36 if is_measured else 20]


def test_a_cpu_without_instructions_for_bfloat16_gets_float32_and_serves_bfloat16_when_asked(
    folder: Path,
) -> None:
    """oneDNN packs no bfloat16 there, and says so with an error."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS, str(folder)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    (auto, chosen), (asked, token) = json.loads(found.stdout)
    assert (auto, asked) == ("torch.float32", "torch.bfloat16")
    assert 0 <= chosen < 97
    assert 0 <= token < 97
