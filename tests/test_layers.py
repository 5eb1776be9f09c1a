"""Who may import whom, as the design has it: by reading every import, and by importing."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Who stands on whom, lowest first: a module imports from its own layer and from those above it in
# this list. A module belongs to the longest name that it begins with.
LAYERS = (
    ("niyama.v1",),
    ("niyama.client",),
    ("client",),
    ("engine.private", "engine.processes", "engine.embedded"),
    ("engine.deciding",),
    ("engine.routing",),
    ("engine.checkpoint",),
    ("engine",),  # what both sides of the socket know: messages, config, tiers; the simulator
    ("engine.inferring",),
    ("engine.computing",),
    ("engine.driving",),
    ("engine.linking",),
    (
        *("server.bounded", "server.violations", "server.errors", "server.defects"),
        *("server.tier_port", "server.config", "server.settings"),
    ),
    ("server.loads",),
    ("server.admission",),
    ("server.convert",),
    ("server.identity",),
    ("server.reading",),
    ("server.listening",),
    ("server",),
    ("server.status",),
    ("server.frontends",),
    ("server.app", "server.check", "server.command", "server.__main__"),
    ("server.ray",),
    ("loadgen.interrupts", "loadgen.steps"),
    ("loadgen.workload",),
    ("loadgen.targets",),
    ("loadgen.scoring",),
    ("loadgen.reports",),
    ("loadgen.silos",),
    ("loadgen.paper",),
    ("loadgen",),
    ("loadgen.adversary", "loadgen.audit"),
)
# What no module of a folder names in any import statement, at any depth, though it be lower.
FORBIDDEN = {
    "engine/checkpoint": {"torch", "asyncio", "grpc", "niyama"},
    "engine/computing": {"asyncio", "grpc", "niyama", "engine.messages", "engine.config"},
    "engine/routing": {"torch", "asyncio", "grpc", "niyama", "time", "random", "os"},
    "engine/inferring": {"torch", "asyncio", "grpc", "niyama", "time", "random", "os"},
    "engine/driving": {"asyncio", "grpc", "niyama"},
    "engine/linking": {"torch", "grpc", "niyama", "engine.computing", "engine.driving"},
    "engine/processes": {"torch", "grpc", "niyama", "engine.private", "engine.embedded"},
    "server": {"torch", "niyama.client", "client", "engine.computing", "engine.driving"},
    "client": {"torch"},
    "loadgen": {"torch", "server", "engine.computing", "engine.driving", "engine.linking"},
}
# What decides is stricter: nothing but itself, one library, and what computes without acting.
PURE = {
    *("__future__", "abc", "array", "bisect", "collections", "dataclasses", "enum", "functools"),
    *("hashlib", "heapq", "itertools", "math", "operator", "statistics", "typing"),
    *("sortedcontainers", "engine.deciding"),
}
DECIDING = {"engine/deciding": PURE, "engine/routing": PURE | {"engine.routing"}}
EXTRAS = {"server.ray": "ray"}
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


def modules(folder: str) -> dict[str, Path]:
    """The modules below a folder, by their dotted names."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, f"nothing in {folder}"
    return {".".join(path.relative_to(base_of(path)).with_suffix("").parts): path for path in paths}


def base_of(path: Path) -> Path:
    """The folder from which a file is imported: `client/` is that of a distribution of its own."""
    return ROOT / "client" if path.is_relative_to(ROOT / "client/niyama") else ROOT


def layer(module: str) -> int:
    """The place of a module among LAYERS, 0 for the lowest."""
    found = [
        (len(name), i) for i, names in enumerate(LAYERS) for name in names if within(module, {name})
    ]
    assert found, f"{module} is in no layer"
    return max(found)[1]


def internal_imports() -> dict[str, set[str]]:
    """For each module of ours, the modules of ours that it imports, wherever in its text.

    A package that imports nothing is only a name.
    """
    packages = ("client", "engine", "server", "loadgen")
    files = {
        name.removesuffix(".__init__"): path for p in packages for name, path in modules(p).items()
    }
    graph = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text())
        named = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= (members & files.keys()) or {node.module or ""}
        graph[module] = named & files.keys() - {module}
    empty = {m for m, path in files.items() if path.name == "__init__.py" and not graph[m]}
    return {module: names - empty for module, names in graph.items()}


def has_its_extra(module: str) -> bool:
    """Whether what the module's folder takes beyond the base dependencies is installed."""
    wanted = {extra for folder, extra in EXTRAS.items() if within(module, {folder})}
    return all(importlib.util.find_spec(extra) for extra in wanted)


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


def test_no_module_imports_from_a_higher_layer() -> None:
    upward = [
        f"{module} imports {name}"
        for module, names in internal_imports().items()
        for name in sorted(names)
        if layer(name) > layer(module)
    ]
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other_in_a_circle() -> None:
    sorter = graphlib.TopologicalSorter(internal_imports())
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(error.args[1][::-1]))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_module_names_what_its_layer_must_not_know(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        found = {name for name in imports(path) if within(name, FORBIDDEN[folder])}
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


@pytest.mark.parametrize("folder", DECIDING)
def test_what_decides_computes_and_does_not_act(folder: str) -> None:
    """No clock, no randomness, no environment, no threads, no files: time is an argument."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        found = {name for name in imports(path) if not within(name, DECIDING[folder])}
        assert not found, f"{path.name} imports {found}"
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = {f.id for f in calls if isinstance(f, ast.Name)}
        assert not names & {"open", "input", "print", "hash", "id"}, f"{path.name} acts"


def test_deciding_and_simulating_load_neither_torch_nor_grpc_nor_asyncio() -> None:
    names = [*modules("engine/deciding"), *modules("engine/routing"), "engine.simulator"]
    assert not loaded_by(names) & HEAVY


@pytest.mark.parametrize("folder", ["server", "client", "loadgen"])
def test_front_end_and_clients_load_no_torch(folder: str) -> None:
    """All that they import is counted too, whatever its name."""
    names = [n for n in modules(folder) if not n.endswith("__main__") and has_its_extra(n)]
    loaded = loaded_by(names)
    assert "torch" not in loaded
    assert folder == "server" or "server" not in loaded
    assert folder != "client" or "engine" not in loaded
