"""A compiled step against the plain one, and how often it compiles."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine.computing import compiled, runner
from engine.computing.checkpoint import load_model
from engine.computing.kv import KvSlots
from engine.computing.runner import ModelExecutor, load
from engine.deciding.plan import NOT_FINITE, Chunk
from engine.deciding.request import Sampling
from engine.driving import build
from engine.driving.config import EngineConfig
from tests.engine.computing.parts import (
    TORCHS_OWN,
    Saved,
    content_shape,
    fill,
    make_plan,
    make_sequence,
)

# (contexts of the decodes, (start, length) of the chunks)
SHAPES: list[tuple[list[int], list[tuple[int, int]]]] = [
    ([5], []),
    ([5, 9], []),
    ([4, 4, 30, 2, 11], []),
    ([], [(0, 1)]),
    ([], [(0, 31)]),
    ([], [(8, 17), (0, 3)]),
    ([3, 20], [(0, 9)]),
    ([1] * 20, [(0, 2), (3, 9)]),
    ([7], [(12, 1)]),
]


def likeliest(
    executor: ModelExecutor, decodes: list[int], chunks: list[tuple[int, int]]
) -> list[tuple[int, float]]:
    """Tokens of one iteration with log probabilities, on memory that was filled the same way."""
    content = torch.randn(content_shape(executor.kv), generator=torch.manual_seed(5))
    fill(executor.kv, content)
    page, sequences = 0, []
    for length in [n + 1 for n in decodes] + [start + n for start, n in chunks]:
        count = -(-length // executor.page_size)
        tokens = [(3 * page + j) % 97 for j in range(length)]
        sampling = Sampling(temperature=0.0, logprobs=20)
        sequences.append(make_sequence(tokens, range(page, page + count), sampling))
        page += count
    for sequence, computed in zip(sequences, decodes, strict=False):
        sequence.num_computed = computed
    made = [
        Chunk(sequence, start, length, index % 2 == 0)
        for index, (sequence, (start, length)) in enumerate(
            zip(sequences[len(decodes) :], chunks, strict=True)
        )
    ]
    plan = make_plan(sequences[: len(decodes)], made)
    return [(t.id, t.logprob or 0.0) for t in executor.run(plan)]


def check_shapes(plain: ModelExecutor, fast: ModelExecutor) -> None:
    """Of one token that samples nothing, too: it is computed as decodes are."""
    for executor in (plain, fast):
        assert executor.run(make_plan([], [Chunk(make_sequence([3, 4], [0]), 0, 1, False)])) == []
    for decodes, chunks in SHAPES:
        pairs = zip(*(likeliest(e, decodes, chunks) for e in (plain, fast)), strict=True)
        for (token, logprob), (same, other) in pairs:
            assert token == same
            assert logprob == pytest.approx(other, abs=1e-4)


def through_torch(executor: ModelExecutor) -> list[bool]:
    """Of each region, whether it is called through torch."""
    assert executor._compiled is not None
    calls = [call for regions in executor._compiled._regions.values() for call in regions]
    return [hasattr(call, "_torchdynamo_orig_callable") for call in calls]


def skip_without_compiler() -> None:
    if compiled.compiler_missing(torch.device("cpu")):
        pytest.skip("no C++ compiler on this machine")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(saved: Callable[[str], Saved]) -> Path:
    return saved("qwen3").folder


@TORCHS_OWN
def test_what_warm_up_compiles_serves_every_shape_and_computes_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    """With a copy of the matrices for the lone decode: not every CPU would choose one."""
    skip_without_compiler()
    monkeypatch.setattr(runner, "fastest_row_layout", lambda *asked: "lanes")
    plain = load(folder, dtype="float32", num_pages=64, page_size=4)
    fast = load(folder, dtype="float32", num_pages=64, page_size=4, compile="on")
    assert (plain.compilations, fast.compilations) == (0, 0)
    with torch._dynamo.config.patch(recompile_limit=1):  # of all models of a process together
        fast.warm_up()
    compiled_once = fast.compilations
    assert compiled_once == 9
    assert through_torch(fast) == [False] * 9  # torch told what they fetch
    check_shapes(plain, fast)
    for executor in (plain, fast):
        executor.model.embedding[22] = torch.nan  # of a token in the first chunk
    expected, found = (
        [t for t, _ in likeliest(e, [3, 20], [(0, 9), (0, 3), (0, 4)])] for e in (plain, fast)
    )
    assert found == expected
    assert [t == NOT_FINITE for t in found] == [False, False, True, False]
    assert fast.compilations == compiled_once


def test_without_a_compiler_auto_is_eager_and_on_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another compiler than the one that torch asks for is none."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = r"no C\+\+ compiler \(no-such-compiler\)"
    executor = load(folder, num_pages=4, compile="auto")
    assert executor.is_compiled is False
    assert re.match(f"not compiled: {reason}", executor.compile_note)
    with pytest.raises(ValueError, match=f"--compile on: {reason}"):
        load(folder, num_pages=4, compile="on")
    with pytest.raises(ValueError, match="must be one of auto, on, off"):
        load(folder, num_pages=4, compile="maybe")


# Warm-ups in a process of their own: torch remembers the compiler that it has found.
START = """
import json, sys
import torch
from engine.computing import runner
from engine.computing.runner import load
runner.fastest_row_layout = lambda *asked: "plain"  # a copy that is of no use without a compiler
torch.set_num_threads(1)
found = []
for mode in ("auto", "on"):
    executor = load(sys.argv[1], dtype="float32", num_pages=16, page_size=4, compile=mode)
    try:
        executor.warm_up()
    except ValueError as error:
        found.append(str(error))
    else:
        has_rows = any(linear.row is not None for linear in executor.model.linears())
        found.append([executor.is_compiled, has_rows, executor.compile_note])
print(json.dumps(found))
"""


def test_a_compiler_that_fails_leaves_auto_eager_with_a_note_and_on_ends_with_one_line(
    folder: Path, tmp_path: Path
) -> None:
    """As on a machine without Python's headers."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        """#!/bin/sh
case "$*" in *--version*) echo "g++ 13.2.0"; exit 0;; esac
echo "main.cpp:3:10: fatal error: Python.h: No such file or directory" >&2
exit 1
"""
    )
    compiler.chmod(0o755)
    cache = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START, str(folder)],
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    (is_compiled, has_rows, note), line = json.loads(found.stdout)
    assert (is_compiled, has_rows) == (False, False)
    assert note.startswith("not compiled: ")
    assert line.startswith("--compile on: ")
    for told in (note, line):
        assert told.endswith("Python.h: No such file or directory")
        assert "\n" not in told


def test_where_nothing_can_be_written_compiled_code_is_kept_in_torchs_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "compiler_missing", lambda device: "")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "of all"))
    for folder in (None, tmp_path / "file" / "mine"):
        can, note = compiled.prepare("auto", torch.device("cpu"), folder)
        assert can
        assert note.startswith("compiled code is kept in a temporary folder: ")
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def test_the_folder_that_the_server_is_told_goes_before_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "compiler_missing", lambda device: "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "of all"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def used(folder: Path | None) -> Path:
        config = EngineConfig(compile_cache=folder)
        cpu = torch.device("cpu")
        assert compiled.prepare("auto", cpu, build._compile_cache(config)) == (True, "")
        return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])

    assert used(None) == tmp_path / "of all"
    assert used(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert used(None) == tmp_path / "niyama" / "compiled"


def test_int8_serves_and_stays_close(folder: Path) -> None:
    plain = load(folder, dtype="float32", num_pages=64, page_size=4)
    small = load(folder, dtype="float32", num_pages=64, page_size=4, quantize="int8")
    pairs = zip(likeliest(plain, [], [(0, 9)]), likeliest(small, [], [(0, 9)]), strict=True)
    for (_, expected), (_, found) in pairs:
        assert found == pytest.approx(expected, abs=0.5)
    with pytest.raises(ValueError, match="must be one of none, int8"):
        load(folder, num_pages=4, quantize="int2")


@TORCHS_OWN
def test_regions_around_attention_that_is_not_compiled_compute_the_same(folder: Path) -> None:
    """As on CUDA, where decodes are no kind of their own."""
    skip_without_compiler()
    model = load_model(folder, torch.float32, "cpu")
    plain, fast = (
        ModelExecutor(model, KvSlots(model.config, 64, 4), is_compiled)
        for is_compiled in (False, True)
    )
    fast.warm_up()
    assert fast.compilations == 6
    check_shapes(plain, fast)
    assert fast.compilations == 6


@TORCHS_OWN
def test_a_region_is_called_through_torch_where_it_does_not_tell_what_it_fetches(
    folder: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    """And computes the same."""
    skip_without_compiler()
    monkeypatch.setattr(runner, "fastest_row_layout", lambda *asked: "lanes")
    monkeypatch.setattr(compiled, "_source", lambda argument: None)
    plain = load(folder, dtype="float32", num_pages=64, page_size=4)
    fast = load(folder, dtype="float32", num_pages=64, page_size=4, compile="on")
    fast.warm_up()
    assert through_torch(fast) == [True] * 9
    check_shapes(plain, fast)
    assert fast.compilations == 9
