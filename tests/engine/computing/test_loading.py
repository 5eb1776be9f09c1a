"""Where a model is loaded to, and how much memory it leaves for keys and values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.computing import loading
from engine.computing.loading import DEFAULT_KV_BYTES, kv_share, load
from tests.engine.computing.parts import Saved

GIB = 1 << 30


class Reached(Exception):
    """The weights are about to be loaded."""


@pytest.mark.parametrize(("device", "index"), [("cuda:1", 1), ("cuda", None), ("cpu:0", None)])
def test_the_gpu_that_is_named_becomes_the_current_one_before_anything_is_on_it(
    saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch, device: str, index: int | None
) -> None:
    """A stream, an event or a graph is of the current GPU: on another, work was not captured."""
    chosen: list[int | None] = []

    def load_model(folder: Path, dtype: torch.dtype, device: str) -> None:
        raise Reached

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    monkeypatch.setattr(loading, "free_bytes", lambda device: 0)
    monkeypatch.setattr(loading, "load_model", load_model)
    with pytest.raises(Reached):
        load(saved("llama").folder, device=device, dtype="float32")
    assert chosen == ([] if index is None else [index])


@pytest.mark.parametrize("weights", [15 * GIB, 30 * GIB, 8 * GIB])
def test_what_the_weights_took_in_fact_is_not_given_to_keys_and_values(weights: int) -> None:
    """As bfloat16, float32 or int8, whatever the flags said of it."""
    free = 80 * GIB
    assert kv_share(free, free - weights) == pytest.approx(0.85 * free - weights, abs=1)


def test_a_gpu_that_the_weights_fill_keeps_a_modest_memory() -> None:
    assert kv_share(16 * GIB, GIB) == DEFAULT_KV_BYTES
