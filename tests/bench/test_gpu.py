"""The parts of `bench gpu` that decide, on a CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from engine.computing.attention.gathered import GatheredKv
from engine.computing.weights import random_model
from engine.deciding.plan import Chunk
from tests.bench.gpu import CASES, SHAPES, as_transformers, missed
from tests.engine.computing.parts import Recorder, make_plan, make_sequence

REACHED: dict[str, Any] = {
    "cases": {name: {"share": 1.0} for name in CASES},
    "steady": {"ahead": {"idle_share": 0.05}},
    "latency_model_median_error": 0.05,
    "compilations_after_start": 0,
}


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_the_peer_computes_with_the_same_weights() -> None:
    config, ids = SHAPES["tiny"], list(range(3, 40))
    peer = as_transformers(config, torch.device("cpu"))
    peer.set_attn_implementation("sdpa")
    model = random_model(config, torch.bfloat16)
    ours = Recorder(model, GatheredKv(config, 8, 16, torch.bfloat16))
    ours.run(make_plan(chunks=[Chunk(make_sequence(ids, [0, 1, 2]), 0, len(ids), True)]))
    with torch.inference_mode():
        expected = peer(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(ours.logits[0], expected, atol=0.01, rtol=0.02)


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("cases", "decode 64", "share"), 0.5, "decode 64"),
        (("steady", "ahead", "idle_share"), 0.2, "idle share"),
        (("latency_model_median_error",), 0.2, "latency model"),
        (("compilations_after_start",), 1, "compilations"),
    ],
)
def test_a_goal_that_is_missed_is_named(path: tuple[str, ...], value: float, name: str) -> None:
    assert missed(REACHED) == []
    result: Any = copy.deepcopy(REACHED)
    into = result
    for key in path[:-1]:
        into = into[key]
    into[path[-1]] = value
    assert missed(result) == [name]
