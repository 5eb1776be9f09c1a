"""Profiles on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.checkpoint.source import Folder
from engine.computing.calibration import Measurements
from engine.computing.fit import Sample
from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment, add_chunk
from engine.deciding.plan import Work
from engine.driving import profiles

SEGMENT = Segment(UNBOUNDED, 1e-3, 1e-5, 1e-4)
KEY = {"model_name": "tiny", "device": "abacus", "threads": 1}


@dataclass
class Measure:
    """Measures SEGMENT, and counts how often it is asked to."""

    count: int = 0
    samples: list[Sample] = field(default_factory=list)

    def __call__(self) -> Measurements:
        self.count += 1
        works = [add_chunk(Work(n, 100 * n), 0, 8 * c) for n in range(5) for c in range(1, 9)]
        samples = [Sample(w, SEGMENT.seconds(w)) for w in works]
        return Measurements(samples[:30], samples[30:], 64)


def test_a_profile_is_measured_once_for_a_key_and_remembered(tmp_path: Path) -> None:
    measure = Measure()
    first, made = profiles.obtain(tmp_path / "new", KEY, measure, again=False)
    second, read = profiles.obtain(tmp_path / "new", KEY, measure, again=False)
    assert measure.count == 1
    assert first == second
    assert first.name == "tiny on abacus"
    assert first.max_chunk == 64
    assert (made.from_cache, read.from_cache) == (False, True)
    (path,) = (tmp_path / "new").iterdir()
    assert made.log_fields().keys() == {"took_s", "median_error", "from_cache", "profile"}
    assert read.log_fields().keys() == {"median_error", "from_cache", "profile"}
    assert made.profile == read.profile == str(path)
    assert made.median_error == read.median_error == pytest.approx(0, abs=1e-6)


def test_another_key_or_asking_again_measures(tmp_path: Path) -> None:
    measure = Measure()
    profiles.obtain(tmp_path, KEY, measure, again=False)
    profiles.obtain(tmp_path, KEY | {"threads": 2}, measure, again=False)
    profiles.obtain(tmp_path, KEY, measure, again=True)
    assert measure.count == 3


def test_a_profile_that_other_code_measured_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Measure()
    profiles.obtain(tmp_path, KEY, measure, again=False)
    monkeypatch.setattr(profiles, "code_fingerprint", lambda: "another")
    profiles.obtain(tmp_path, KEY, measure, again=False)
    assert measure.count == 2


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("computing/attention/gathered.py", True),
        ("computing/calibration.py", True),
        ("computing/fit.py", True),
        ("deciding/scheduler.py", False),  # it uses a profile
        ("driving/loop.py", False),
    ],
)
def test_the_code_that_computes_measures_and_fits_is_part_of_the_key(
    tmp_path: Path, name: str, counts: bool
) -> None:
    engine = Path(profiles.__file__).parents[1]
    assert (engine / name).is_file()
    copy = tmp_path / "engine"
    shutil.copytree(engine, copy, ignore=shutil.ignore_patterns("__pycache__", "embedded"))
    before = profiles.code_fingerprint(copy)
    assert before == profiles.code_fingerprint()
    with (copy / name).open("a") as file:
        file.write("# changed")
    assert (profiles.code_fingerprint(copy) != before) == counts


@pytest.mark.parametrize("text", ["", "{", "[]", '{"profile": {"name": "x", "segments": []}}'])
def test_a_file_that_is_no_profile_is_measured_over(tmp_path: Path, text: str) -> None:
    measure = Measure()
    profiles.obtain(tmp_path, KEY, measure, again=False)
    (path,) = tmp_path.iterdir()
    path.write_text(text)
    profiles.obtain(tmp_path, KEY, measure, again=False)
    assert measure.count == 2
    profiles.obtain(tmp_path, KEY, measure, again=False)
    assert measure.count == 2


def test_a_profile_that_others_may_have_written_is_measured_over(tmp_path: Path) -> None:
    measure = Measure()
    profiles.obtain(tmp_path, KEY, measure, again=False)
    (path,) = tmp_path.iterdir()
    path.chmod(0o666)
    profiles.obtain(tmp_path, KEY, measure, again=False)
    assert measure.count == 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_where_there_is_no_folder_nothing_is_remembered() -> None:
    _, made = profiles.obtain(None, KEY, Measure(), again=False)
    assert made.profile is None
    assert "no home folder" in (made.note or "")


def stored(**changes: object) -> str:
    profile = LatencyProfile("x", (SEGMENT,)).to_dict()
    return json.dumps({"profile": profile, "median_error": 0.1} | changes)


def segment(**changes: object) -> dict[str, object]:
    return {"name": "x", "max_chunk": 64, "segments": [SEGMENT._asdict() | changes]}


@pytest.mark.parametrize(
    "text",
    [
        stored(median_error=4.36),
        stored(median_error=-1.0),
        stored(median_error=float("nan")),
        stored(median_error="0.1"),
        stored(median_error=True),
        stored(profile=segment(base=-1e-3)),
        stored(profile=segment(decode=-1e-9)),
        stored(profile=segment(base=float("nan"))),
        stored(profile=segment(base=float("inf"))),
        stored(profile=segment(base=10**400)),
        stored(profile=segment(base=1e12)),
        stored(profile=segment(base="0.001")),
        stored(profile=segment(base=True)),
        stored(profile=segment(base=None)),
        stored(profile=segment(base=0, prefill=0, decode=0)),
        stored(profile=segment(up_to="many")),
        stored(profile=segment() | {"max_chunk": "64"}),
        stored(profile=segment() | {"max_chunk": 0}),
        stored(profile=segment() | {"max_chunk": float("inf")}),
        "[" * 100_000,
    ],
)
def test_a_profile_that_cannot_be_is_measured_over(tmp_path: Path, text: str) -> None:
    measure = Measure()
    profiles.obtain(tmp_path, KEY, measure, again=False)
    (path,) = tmp_path.iterdir()
    path.write_text(stored())
    assert profiles.obtain(tmp_path, KEY, measure, again=False)[1].from_cache
    path.write_text(text)
    profile, calibration = profiles.obtain(tmp_path, KEY, measure, again=False)
    assert not calibration.from_cache
    assert profile.seconds(Work(1, 1)) == pytest.approx(SEGMENT.seconds(Work(1, 1)))
    assert measure.count == 2


@dataclass
class Disturbed:
    """Measures as `Measure`, then something other by the next of so many factors."""

    factors: list[float]

    def __call__(self) -> Measurements:
        samples, held_out, most = Measure()()
        factor = self.factors.pop(0)
        return Measurements(samples, [Sample(w, factor * s) for w, s in held_out], most)


def test_a_profile_that_predicts_nothing_is_measured_again(tmp_path: Path) -> None:
    """An error of 436 % was remembered, and planned with."""
    profile, calibration = profiles.obtain(tmp_path, KEY, Disturbed([5.36, 1.1]), again=False)
    assert calibration.median_error == pytest.approx(0.1)
    assert calibration.note is None
    again, read = profiles.obtain(tmp_path, KEY, Disturbed([]), again=False)
    assert (again, read.median_error) == (profile, calibration.median_error)


def test_the_better_of_two_that_predict_nothing_is_corrected_and_not_remembered(
    tmp_path: Path,
) -> None:
    profile, calibration = profiles.obtain(tmp_path, KEY, Disturbed([5.36, 3.0]), again=False)
    work = add_chunk(Work(3, 300), 0, 16)
    assert profile.seconds(work) == pytest.approx(3 * SEGMENT.seconds(work))
    assert calibration.median_error == pytest.approx(2.0)
    assert calibration.profile is None
    assert "not believed and not remembered: twice measured, off by 200%" in str(calibration.note)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_costs_the_memory_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    profile, calibration = profiles.obtain(tmp_path / "file", KEY, Measure(), again=False)
    assert profile.max_chunk == 64
    assert calibration.profile is None
    assert str(calibration.note).startswith("not remembered: ")


def test_a_saved_profile_is_what_a_simulation_reads(tmp_path: Path) -> None:
    profile = LatencyProfile("mine", (SEGMENT,), 512)
    profiles.save(profile, tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text())
    assert LatencyProfile.from_dict(data) == profile
    with pytest.raises(ValueError, match=r"--save-profile .*: Is a directory"):
        profiles.save(profile, tmp_path)


def test_a_checkpoint_is_known_by_its_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(b"1234")
    one = Folder(tmp_path).shape_digest()
    (tmp_path / "a.safetensors").write_bytes(b"5678")
    assert Folder(tmp_path).shape_digest() == one
    (tmp_path / "a.safetensors").write_bytes(b"56789")
    assert Folder(tmp_path).shape_digest() != one
