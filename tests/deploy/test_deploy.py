"""What lies under deploy/ holds: the example configuration, the load beside it, image and unit."""

from __future__ import annotations

import configparser
import itertools
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from deploy import install
from loadgen.cli import main as loadgen
from server import check
from server.config import ServerConfig
from server.ending import REST_S
from server.settings import ask

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOML = DEPLOY / "niyama.toml"
H100 = "roofline:h100:loadgen/adversary/models/llama-3-8b.json"
WORK = {"chat", "completion", "nightly"}


def checked(capsys: pytest.CaptureFixture[str], **environment: str) -> str:
    """What `--check-config` prints of the example, with these variables."""
    status = check.main(ask(["--config", str(TOML), "--check-config"], environment))
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def test_the_example_configuration_holds_as_it_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, stated = tomllib.loads(checked(capsys)), tomllib.loads(TOML.read_text())
    assert set(stated["tiers"]) == WORK
    for table, values in stated.items():
        if not isinstance(values, dict):
            assert found[table] == values
            continue
        for name, value in values.items():
            assert found[table][name] == value, f"{table}.{name}"


def test_every_number_of_the_example_has_its_reason_above_it() -> None:
    lines = TOML.read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if re.match(r"(ttft|tbt|ttlt|drain)_s|max_|importance", line):
            assert above.startswith("# "), line


def test_the_load_beside_it_is_on_time_on_the_device_that_its_page_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    report = tmp_path / "report.json"
    files = ("--tiers", str(TOML), "--workload", str(DEPLOY / "workload.toml"))
    short = ("--rps", "4", "--duration", "20s", "--json", str(report))
    assert loadgen(["--simulate", H100, *files, *short]) == 0
    (run,) = json.loads(report.read_text())["runs"]
    assert {tier["group"] for tier in run["by_tier"]} == WORK
    assert run["total"]["attainment"] > 0.97


class Dockerfile:
    """Its instructions, each with its arguments in one line."""

    def __init__(self) -> None:
        text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
        lines = text.replace("\\\n", " ").splitlines()
        self.instructions = [line.split(maxsplit=1) for line in lines if line]

    def of(self, name: str) -> list[str]:
        return [arguments for each, arguments in self.instructions if each == name]

    def last_stage(self) -> list[list[str]]:
        starts = [i for i, (name, _) in enumerate(self.instructions) if name == "FROM"]
        return self.instructions[starts[-1] :]

    def environment(self) -> dict[str, str]:
        pairs = [pair for each in self.of("ENV") for pair in shlex.split(each)]
        return dict(pair.split("=", 1) for pair in pairs)


def test_the_image_runs_as_nobody_special_and_says_nothing_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = Dockerfile()
    (user,) = file.of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number, which can be seen not to be root"
    last = [name for name, _ in file.last_stage()]
    assert last.index("USER") > last.index("COPY")
    assert file.of("ENTRYPOINT") == ['["niyama-server"]']
    assert file.of("STOPSIGNAL") == ["SIGTERM"]
    told = " ".join(file.of("ARG") + file.of("ENV"))
    assert not re.search("token|secret|password|key", told, re.IGNORECASE)
    variables = {n: v for n, v in file.environment().items() if n.startswith("NIYAMA_")}
    variables["NIYAMA_DECISION_LOG"] = "decisions.jsonl"  # its folder is the image's
    assert "metrics_port = 9464  # environment NIYAMA_METRICS_PORT" in checked(capsys, **variables)


def test_the_image_gets_the_packages_and_nothing_that_lies_about() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = config["options.packages.find"]["include"].split()
    wanted = {line.strip("*") for line in packages if not line.startswith("#")}
    let = {line[1:] for line in ignored if line.startswith("!")}
    files = {"LICENSE", "README.md", "pyproject.toml", "setup.cfg"}
    named = {name for name in wanted if (ROOT / name).is_dir()}
    assert let == named | files
    (line,) = (line for line in Dockerfile().of("RUN") if "/src" in line)
    assert "/src/client" in line.split()


def test_the_image_has_the_torch_that_make_installs() -> None:
    (torch,) = (said for said in Dockerfile().of("ARG") if said.startswith("TORCH="))
    version = torch.removeprefix("TORCH=")
    assert f"torch=={version}+cpu" == install.TORCH_CPU


class Unit:
    """What the unit of systemd says, the last of each name."""

    def __init__(self) -> None:
        text = (DEPLOY / "niyama.service").read_text().replace("\\\n", "")
        pairs = (line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z]", line))
        self.values = dict(pairs)
        self.environment = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))


def test_the_unit_gives_the_server_the_time_to_drain(capsys: pytest.CaptureFixture[str]) -> None:
    unit = Unit()
    stated = tomllib.loads(TOML.read_text())["lifetime"]["drain_s"]
    most = max(stated, ServerConfig().drain_s)
    assert float(unit.values["TimeoutStopSec"]) >= most + REST_S
    assert unit.values["KillMode"] == "mixed"
    assert unit.values["ExecReload"].endswith("-HUP $MAINPID")
    variables = {n: v for n, v in unit.environment.items() if n.startswith("NIYAMA_")}
    assert "NIYAMA_DECISION_LOG" in variables
    variables["NIYAMA_DECISION_LOG"] = "decisions.jsonl"
    checked(capsys, **variables)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here (Debian: apt-get install systemd)")
    for program in ("opt/niyama/bin/niyama-server", "bin/kill", "bin/sh"):
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    shutil.copy(DEPLOY / "niyama.service", units)
    for path in Path("/usr/lib/systemd/system").glob("*.target"):
        shutil.copy(path, units, follow_symlinks=True)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--root", str(tmp_path), "--man=no", "niyama.service"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if "niyama" in line]
    assert not said, done.stderr
