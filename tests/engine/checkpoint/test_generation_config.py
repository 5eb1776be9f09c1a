"""What generation_config.json says of sampling, and what it may not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from engine.checkpoint.generation_config import read_sampling, unused_keys
from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.source import Folder
from engine.deciding.request import Sampling
from tests.engine.computing.test_wrong_values import ANYTHING, WRONG, one_line

KEYS = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"),
    "do_sample",
)


def read(folder: Path, **keys: Any) -> Sampling:
    (folder / "generation_config.json").write_text(json.dumps(keys))
    return read_sampling(Folder(folder))


def test_what_the_file_states_is_the_default_and_the_rest_is_neutral(tmp_path: Path) -> None:
    assert read_sampling(Folder(tmp_path)) == Sampling()
    assert read(tmp_path, temperature=0.5, top_k=1) == Sampling(temperature=0.5, top_k=1)
    everything = {"top_p": 0.75, "min_p": 0.25, "repetition_penalty": 1.5, "max_new_tokens": 77}
    expected = Sampling(top_p=0.75, min_p=0.25, repetition_penalty=1.5, max_tokens=77)
    assert read(tmp_path, do_sample=True, eos_token_id=[1, 2], **everything) == expected
    assert read(tmp_path, temperature=None, top_k=None, max_new_tokens=None) == Sampling()


def test_a_checkpoint_that_says_not_to_sample_is_greedy(tmp_path: Path) -> None:
    greedy = read(tmp_path, do_sample=False, temperature=0.5, repetition_penalty=1.5)
    assert greedy == Sampling(temperature=0, repetition_penalty=1.5)
    assert read(tmp_path, do_sample=None) == Sampling()


def test_a_default_is_the_same_number_as_when_it_is_asked_for(tmp_path: Path) -> None:
    """Requests carry floats of 32 bits."""
    assert read(tmp_path, temperature=0.2).temperature == pytest.approx(0.2, abs=1e-8)
    assert read(tmp_path, temperature=0.2).temperature != 0.2


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_any_value_is_a_default_or_named(tmp_path: Path, key: str) -> None:
    for value in WRONG:
        try:
            assert isinstance(read(tmp_path, **{key: value}), Sampling)
        except CheckpointError:
            with pytest.raises(CheckpointError) as caught:
                read_sampling(Folder(tmp_path))
            line = one_line(caught)
            assert line.startswith("generation_config.json")
            assert key in line or "surrogates" in line


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=ANYTHING)
def test_a_file_of_anything_is_read_or_named(tmp_path: Path, values: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"x": values, "top_k": values}))
    try:
        assert read_sampling(Folder(tmp_path)).top_k >= 0
    except CheckpointError:
        with pytest.raises(CheckpointError, match=r"generation_config\.json: top_k"):
            read_sampling(Folder(tmp_path))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"temperature": 200}, "temperature must be between 0 and 100"),
        ({"temperature": "0.2"}, "temperature must be a number"),
        ({"top_p": 0}, "top_p must be between"),
        ({"top_p": 1.5}, "top_p must be between"),
        ({"top_k": -1}, "top_k must be a whole number from 0"),
        ({"top_k": 2.0}, "top_k must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1"),
        ({"do_sample": "yes"}, "do_sample must be true or false"),
        ({"do_sample": False, "temperature": -1}, "temperature must be between"),
    ],
)
def test_what_no_request_could_ask_for_is_refused_by_name(
    tmp_path: Path, keys: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {named}"):
        read(tmp_path, **keys)


def test_what_is_not_done_is_told(tmp_path: Path) -> None:
    read(tmp_path, num_beams=1, typical_p=1.0, suppress_tokens=None, temperature=0.5)
    assert unused_keys(Folder(tmp_path)) == []
    read(tmp_path, num_beams=4, suppress_tokens=[3])
    assert unused_keys(Folder(tmp_path)) == ["num_beams", "suppress_tokens"]
