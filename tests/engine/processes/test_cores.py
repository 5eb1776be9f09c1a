"""The number of cores is what the container grants, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.processes.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def cores(tmp: Path, quotas: dict[str, str], own: str = "0::/\n") -> int:
    """As seen with `cpu.max` of the groups so named, from the group that `own` names."""
    for name, quota in quotas.items():
        (tmp / "cgroup" / name).mkdir(parents=True, exist_ok=True)
        (tmp / "cgroup" / name / "cpu.max").write_text(quota + "\n")
    (tmp / "own").write_text(own)
    return usable_cores(tmp / "cgroup", tmp / "own")


def test_without_a_quota_all_cores_of_the_affinity_count(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 8
    assert cores(tmp_path, {}) == 8
    assert cores(tmp_path, {"": "max 100000"}) == 8


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1), ("6400000 100000", 8)],
)
def test_a_container_s_quota_counts_in_whole_cores(
    tmp_path: Path, quota: str, expected: int
) -> None:
    assert cores(tmp_path, {"": quota}) == expected


def test_the_least_quota_of_a_group_and_those_around_it_holds(tmp_path: Path) -> None:
    quotas = {"pods": "400000 100000", "pods/one": "max 100000", "other": "100000 100000"}
    own = "1:cpu:/elsewhere\n0::/pods/one/main\n"
    assert cores(tmp_path, quotas, own) == 4
