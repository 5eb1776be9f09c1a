"""What is installed: the server's distribution, and niyama-client, which stands on its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "node_modules")


class Wheel(NamedTuple):
    path: Path
    files: frozenset[str]
    metadata: Message

    @property
    def packages(self) -> set[str]:
        tops = {name.partition("/")[0] for name in self.files}
        return {name for name in tops if not name.endswith(".dist-info")}

    @property
    def requires(self) -> dict[str, str]:
        """What it cannot do without, by name."""
        lines = [line for line in self.metadata.get_all("Requires-Dist", []) if "extra" not in line]
        found = [re.fullmatch(r"([\w.-]+)(.*)", line) for line in lines]
        return {match[1]: match[2] for match in found if match}


def built(project: Path, folder: Path) -> Wheel:
    """Builds the wheel of a project's folder, with the packages that there are."""
    subprocess.run([sys.executable, "-c", BUILD, folder], cwd=project, check=True)
    (path,) = folder.glob("*.whl")
    with ZipFile(path) as wheel:
        names = frozenset(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return Wheel(path, names, Parser().parsestr(wheel.read(metadata).decode()))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wheel, Wheel]:
    """The server's and the client's."""
    folder = tmp_path_factory.mktemp("wheels")
    copy = folder / "project"
    copy.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("client", "engine", "loadgen", "server"):
        shutil.copytree(ROOT / name, copy / name, ignore=NOT_SOURCE)
    return built(copy, folder / "server"), built(copy / "client", folder / "client")


def test_each_distribution_owns_its_own_packages(wheels: tuple[Wheel, Wheel]) -> None:
    server, client = wheels
    assert client.packages == {"niyama"}
    assert server.packages == {"client", "engine", "loadgen", "server"}
    assert not server.files & client.files
    shim = {name for name in server.files if name.startswith("client/")}
    assert shim == {"client/__init__.py", "client/__main__.py"}
    assert {
        *("niyama/py.typed", "niyama/client/service_config.json", "niyama/v1/inference_pb2.pyi"),
        *("niyama/v1/inference_pb2.py", "niyama/v1/inference_pb2_grpc.py"),
    } <= client.files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in client.files)


def test_the_client_needs_grpc_and_protobuf_alone(wheels: tuple[Wheel, Wheel]) -> None:
    server, client = wheels
    assert set(client.requires) == {"grpcio", "grpcio-status", "protobuf"}
    assert server.requires["niyama-client"] == f"=={client.metadata['Version']}"
    assert server.metadata["Version"] == client.metadata["Version"]
    common = client.requires.keys() & server.requires
    assert {name: client.requires[name] for name in common} == {
        name: server.requires[name] for name in common
    }


def test_both_have_the_same_license() -> None:
    assert (ROOT / "client/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


SNIPPETS = [
    (page, number, text)
    for page in ("README.md", "client/README.md", "docs/adopt.md")
    for number, text in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    )
]


def test_snippets_are_strictly_typed_where_the_client_alone_is_installed(
    wheels: tuple[Wheel, Wheel], tmp_path: Path
) -> None:
    """And what of it is no type does not pass for one: a mistake in a snippet is found."""
    _, client = wheels
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    with ZipFile(client.path) as wheel:
        wheel.extractall(site)
    paths = []
    for page, number, text in SNIPPETS:
        path = tmp_path / f"snippet_{page.replace('/', '_').removesuffix('.md')}_{number}.py"
        path.write_text(text)
        paths.append(path)
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from niyama.client import Client\n"
        "Client(tsl=True)\n"
        "Client().generate('a', ttft='soon')\n"
        "Client().complete('a').finished.timings.ttft + 1\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file="]
    command += ["--python-executable", str(tmp_path / "venv/bin/python")]
    command += ["--cache-dir", str(tmp_path / "cache")]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environment.pop("MYPYPATH", None)
    done = subprocess.run(
        [*command, *paths, wrong],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert [line.split(":")[:2] for line in lines if ": error:" in line] == [
        ["wrong.py", str(number)] for number in (2, 3, 4)
    ], done.stdout + done.stderr
