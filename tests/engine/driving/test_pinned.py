"""An engine that takes another's place is what that one was: nothing is chosen or measured anew."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from engine.checkpoint.options import Choices
from engine.computing import calibration, loading
from engine.config import EngineConfig
from engine.deciding.latency import UNBOUNDED, LatencyModel, LatencyProfile, Segment
from engine.deciding.plan import Work
from engine.driving import build as building
from engine.messages import Pinned

PROFILE = LatencyProfile("first", (Segment(UNBOUNDED, 1e-3, 1e-5, 1e-4),))
# As no engine that is left to itself would choose on any machine that the tests run on.
CHOICES = Choices(
    device="cpu",
    dtype="float16",
    is_compiled=False,
    compile_note="not compiled: as it was",
    row_layout="packed",
    slow_rows=(5, 7),
    threads=1,
    num_pages=77,
    gather_bytes=0,
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def refuse(*arguments: Any, **named: Any) -> NoReturn:
    raise AssertionError("measured again")


@pytest.fixture
def measuring_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fastest_dtype", "fastest_row_layout", "measured_slow_rows"):
        monkeypatch.setattr(loading, name, refuse)
    monkeypatch.setattr(calibration, "measure", refuse)


@pytest.mark.usefixtures("measuring_nothing")
def test_a_restart_measures_nothing_and_becomes_what_the_first_was(tmp_path: Path) -> None:
    """It was measured again under the load of those who waited: other numbers, half the pages."""
    pinned = Pinned(CHOICES, PROFILE, None, (1.7,))
    config = EngineConfig(compile="auto", calibration_cache=tmp_path, pinned=pinned)
    engine = building.build(config)
    info = engine.info
    assert (info.dtype, info.device, info.num_pages) == ("float16", "cpu", 77)
    assert info.compile_note == "not compiled: as it was"
    assert torch.get_num_threads() == 1
    assert engine.pinned == pinned._replace(learnt=())
    assert engine.learnt() == (1.7,)
    assert not list(tmp_path.iterdir())


def test_what_an_engine_says_it_chose_is_what_the_next_one_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And what takes time is said."""
    caplog.set_level(logging.INFO, "engine.driving")
    config = EngineConfig(
        compile="off", calibration_s=0.2, calibration_cache=tmp_path, torch_threads=1
    )
    first = building.build(config)
    assert first.pinned is not None
    doing = ["loading the model", "running the model once", "measuring the model"]
    assert [record.getMessage() for record in caplog.records] == doing
    for name in ("fastest_dtype", "measured_slow_rows"):
        monkeypatch.setattr(loading, name, refuse)
    monkeypatch.setattr(calibration, "measure", refuse)
    again = building.build(replace(config, recalibrate=True, pinned=first.pinned))
    assert again.pinned == first.pinned
    assert again.info == first.info
    assert [record.getMessage() for record in caplog.records] == [*doing, *doing[:2]]


def test_a_latency_model_goes_on_with_what_another_learnt() -> None:
    model, work = LatencyModel(PROFILE), Work(1, 10)
    for _ in range(100):
        model.observe(work, 3 * PROFILE.seconds(work))
    other = LatencyModel(PROFILE, learnt=model.learnt)
    assert other.usual(work) == model.usual(work) > 2 * PROFILE.seconds(work)
    with pytest.raises(ValueError, match="learnt must be one for each segment, got 2"):
        LatencyModel(PROFILE, learnt=(1.0, 1.0))
