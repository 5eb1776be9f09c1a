"""Who may import whom, as the design has it: by reading every import, and by importing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What the modules of a folder must not name in any import statement, at any depth.
FORBIDDEN = {
    "engine/computing": {"asyncio", "grpc", "proto", "server", "client", "loadgen"},
    "engine/driving": {"grpc", "proto", "server", "client", "loadgen"},
    "server": {"torch", "client", "loadgen"},
    "client": {"torch", "engine", "server", "loadgen"},
    "loadgen": {"torch", "server"},
}
# The deciding core is stricter: nothing but itself, one library, and what computes without acting.
PURE = {
    *("__future__", "abc", "array", "bisect", "collections", "dataclasses", "enum", "functools"),
    *("hashlib", "heapq", "itertools", "math", "operator", "statistics", "typing"),
    *("sortedcontainers", "engine.deciding"),
}
HEAVY = {"torch", "grpc", "asyncio"}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file's import statements name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def within(name: str, packages: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in packages for i in range(len(parts)))


def modules(folder: str) -> list[str]:
    """Dotted names of the modules below a folder, without generated stubs."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, f"nothing in {folder}"
    return [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths]


def loaded_by(names: list[str]) -> set[str]:
    """Top-level packages in a fresh interpreter after importing the modules."""
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, json.dumps(names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return set(json.loads(found.stdout.splitlines()[-1]))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_module_names_what_its_layer_must_not_know(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        found = {name for name in imports(path) if within(name, FORBIDDEN[folder])}
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_the_deciding_core_computes_and_does_not_act() -> None:
    """No clock, no randomness, no environment, no threads, no files: time is an argument."""
    for path in sorted((ROOT / "engine/deciding").glob("*.py")):
        found = {name for name in imports(path) if not within(name, PURE)}
        assert not found, f"{path.name} imports {found}"
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = {f.id for f in calls if isinstance(f, ast.Name)}
        assert not names & {"open", "input", "print", "hash", "id"}, f"{path.name} acts"


def test_deciding_and_simulating_load_neither_torch_nor_grpc_nor_asyncio() -> None:
    names = [*modules("engine/deciding"), "engine.simulator"]
    assert not loaded_by(names) & HEAVY


@pytest.mark.parametrize("folder", ["server", "client", "loadgen"])
def test_front_end_and_clients_load_no_torch(folder: str) -> None:
    """All that they import is counted too, whatever its name."""
    loaded = loaded_by([n for n in modules(folder) if not n.endswith("__main__")])
    assert "torch" not in loaded
    assert folder == "server" or "server" not in loaded
    assert folder != "client" or "engine" not in loaded
