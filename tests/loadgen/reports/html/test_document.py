"""The page, opened in a real browser: every chart drawn, every value under the pointer, no error in
the console. Runs on the real server where there is one to measure, in virtual time elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli import main
from tests.loadgen.chromium import Opened, chromium, opened
from tests.loadgen.conftest import LittleServer
from tests.server_process import ServerProcess

SIMULATED = ("--simulate", "a100-llama3-8b", "--duration", "40s", "--prompt-tokens", "2000/6000")
Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Written:
    """The page that a command writes, under a name of its own."""

    def write(name: str, *flags: str, status: int = 0) -> Path:
        path = tmp_path / f"{name}.html"
        assert main([*flags, "--html", str(path)]) == status
        capsys.readouterr()
        return path

    return write


def charts(page: Path) -> list[dict[str, Any]]:
    """What the page's script is told to draw."""
    found = re.search(r'id="charts">(.*?)</script>', page.read_text(), re.S)
    assert found is not None
    return [chart for section in json.loads(found[1]) for chart in section]


def check(page: Path, profile: Path) -> Opened:
    """Opens it; everything that there is to draw is drawn."""
    seen = opened(page, profile)
    assert seen.console == []
    assert seen.html["data-ready"] == "yes"
    drawable = [chart for chart in charts(page) if chart["kind"] != "absent"]
    assert len(seen.figures) == len(drawable) > 0
    for chart, figure, shapes in zip(drawable, seen.figures, seen.shapes, strict=True):
        title = chart["title"]
        assert figure["data-drawn"] == "yes", title
        assert figure["data-tip"], title
        paths = [shape["d"] or "" for shape in shapes if "d" in shape]
        assert all(len(d) > 5 and "NaN" not in d for d in paths), title
        num_wanted = len(chart.get("lines") or chart.get("bars") or chart["series"])
        assert len(shapes) >= num_wanted, title
    for absent in (chart for chart in charts(page) if chart["kind"] == "absent"):
        assert f"{absent['title']}: {absent['reason']}" in seen.text
    return seen


def test_a_run_on_the_real_server(server: ServerProcess, written: Written, tmp_path: Path) -> None:
    load = (
        "--rps",
        "20",
        "--duration",
        "2",
        "--mix",
        "interactive:0.6",
        "--tenants",
        "a:0.6,b:0.4",
    )
    lengths = ("--prompt-tokens", "10", "--output-tokens", "5", "--max-lag", "10s", "--seed", "3")
    seen = check(written("run", "--target", server.address, *load, *lengths), tmp_path / "profile")
    assert "requests were on time" in seen.text
    assert f"python -m loadgen --target {server.address} --rps 20" in seen.text
    assert "server 0.1.0" in seen.text
    for title in (
        "On time by tier",
        "On time by tenant",
        "TTFT by tier",
        "TBT by tier",
        "In flight",
    ):
        assert title in seen.text
    assert "The target does not tell them." in seen.text


def test_a_comparison_of_four_policies_at_one_load(written: Written, tmp_path: Path) -> None:
    names = "niyama,edf,srpf,fcfs"
    page = written("compare", *SIMULATED, "--rps", "5", "--compare", names)
    seen = check(page, tmp_path / "profile")
    assert set(names.split(",")) == {
        line["name"]
        for chart in charts(page)
        if chart["title"] == "In flight"
        for line in chart["lines"]
    }
    for title in (
        "On time: ",
        "TTFT of interactive",
        "TTLT of batch",
        "Chunk size",
        "Queue length",
    ):
        assert title in seen.text


def test_a_comparison_over_loads_shows_one_load_at_a_time(written: Written, tmp_path: Path) -> None:
    page = written("sweep", *SIMULATED, "--compare", "niyama,fcfs", "--sweep", "1,3,5")
    seen = check(page, tmp_path / "profile")
    assert "At a load of" in seen.text
    assert "Late share against load: interactive" in seen.text
    assert "TTLT against load: standard" in seen.text
    assert re.search(r"serves \d requests/s with at most 1\s%\slate", seen.text)


def test_the_capacities_of_a_search(written: Written, tmp_path: Path) -> None:
    search = ("--find-capacity", "--precision", "0.5", "--repeats", "1", "--rps", "4")
    page = written("capacity", *SIMULATED, "--compare", "niyama,fcfs", *search)
    seen = check(page, tmp_path / "profile")
    (ranking,) = (chart for chart in charts(page) if chart["kind"] == "ranking")
    assert [bar["name"] for bar in ranking["bars"]] == ["niyama", "fcfs"]
    assert all(bar["up_to"] > bar["value"] > 0 for bar in ranking["bars"])
    assert "The thin line ends at the smallest rate that failed." in seen.text


def test_an_invalid_run_says_so_and_a_name_is_only_a_name(
    little: LittleServer, written: Written, tmp_path: Path
) -> None:
    """A banner before every figure; a tenant called like a tag is text."""
    load = ("--rps", "50", "--duration", "0.3s", "--max-lag", "0ms", "--prompt-tokens", "5")
    tenants = ("--tenants", "</script><script>nothing():0.5,b:0.5")
    page = written("invalid", "--target", little.address, *load, *tenants)
    seen = check(page, tmp_path / "profile")
    assert "Invalid run: it says nothing of the server." in seen.text
    assert "the generator could not keep up" in seen.text
    assert "</script><script>nothing()" in seen.text
    assert seen.text.index("Invalid run") < seen.text.index("Figures")


def test_a_load_at_which_nothing_arrived_leaves_the_others_drawn(
    written: Written, tmp_path: Path
) -> None:
    seen = check(written("empty", *SIMULATED, "--sweep", "0.001,2"), tmp_path / "profile")
    assert "Invalid run 0.001/s: it says nothing of the server." in seen.text


def test_the_page_needs_nothing_else(written: Written) -> None:
    text = written("alone", *SIMULATED, "--rps", "2").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_an_error_in_a_page_is_seen(written: Written, tmp_path: Path) -> None:
    """What the other tests would see of a chart that is not drawn."""
    chromium()
    page = written("broken", *SIMULATED, "--rps", "2")
    page.write_text(page.read_text().replace('"kind": "curves"', '"kind": "unknown"', 1))
    seen = opened(page, tmp_path / "profile")
    assert "DRAW[spec.kind] is not a function" in "".join(seen.console)
    assert "data-ready" not in seen.html
