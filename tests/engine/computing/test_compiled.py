"""A compiled step against the plain one, and how often it compiles."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine import private
from engine.computing import compiler, loading, shortcut
from engine.computing.attention.gathered import GatheredKv
from engine.computing.loading import load
from engine.computing.runner import ModelExecutor
from engine.computing.weights import load_model
from engine.deciding.plan import NOT_FINITE, Chunk
from engine.deciding.request import Sampling
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
        computed = decodes[len(sequences)] if len(sequences) < len(decodes) else 0
        pages = range(page, page + count)
        sequences.append(make_sequence(tokens, pages, sampling, num_computed=computed))
        page += count
    made = [
        Chunk(sequence, start, length, index % 2 == 0)
        for index, (sequence, (start, length)) in enumerate(
            zip(sequences[len(decodes) :], chunks, strict=True)
        )
    ]
    plan = make_plan(sequences[: len(decodes)], made)
    return [(t.id, t.logprob or 0.0) for t in executor.run(plan)]


def check_shapes(plain: ModelExecutor, fast: ModelExecutor, tolerance: float = 1e-4) -> None:
    """Of one token that samples nothing, too: it is computed as decodes are."""
    for executor in (plain, fast):
        assert executor.run(make_plan([], [Chunk(make_sequence([3, 4], [0]), 0, 1, False)])) == []
    for decodes, chunks in SHAPES:
        pairs = zip(*(likeliest(e, decodes, chunks) for e in (plain, fast)), strict=True)
        for (token, logprob), (same, other) in pairs:
            assert token == same
            assert logprob == pytest.approx(other, abs=tolerance)


def skip_without_compiler() -> None:
    if compiler.compiler_missing(torch.device("cpu")):
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
    monkeypatch.setattr(loading, "fastest_row_layout", lambda *asked: "strips")
    plain = load(folder, dtype="float32", num_pages=64, page_size=4)
    fast = load(folder, dtype="float32", num_pages=64, page_size=4, compile="on")
    assert (plain.compilations, fast.compilations) == (0, 0)
    with torch._dynamo.config.patch(recompile_limit=1):  # of all models of a process together
        fast.warm_up()
    compiled_once = fast.compilations
    assert compiled_once == 9
    assert fast.compile_note == "", "no graph is called through torch"
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
from engine.computing import loading
from engine.computing.loading import load
loading.fastest_row_layout = lambda *asked: "plain"  # a copy that is of no use without a compiler
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


@pytest.fixture
def torch_keeps(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Where torch keeps what, and the temporary files, are put right afterwards."""
    monkeypatch.setattr(compiler, "compiler_missing", lambda device: "")
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    for name in ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def prepared(folder: Path | None) -> tuple[Path, str]:
    """Where it is kept, and the note."""
    can, note = compiler.prepare("auto", torch.device("cpu"), folder)
    assert can
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]), note


def test_where_nothing_can_be_written_compiled_code_is_kept_in_a_temporary_folder_of_its_own(
    tmp_path: Path, torch_keeps: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (None, tmp_path / "file" / "mine"):
        torch_keeps.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "of all"))
        kept, note = prepared(folder)
        assert note.startswith("what is compiled is lost at the end: ")
        assert kept.name.startswith("niyama-")
        assert kept.stat().st_mode & 0o777 == 0o700
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(kept / "temporary")


def test_where_no_temporary_folder_is_private_either_nothing_is_compiled(
    tmp_path: Path, torch_keeps: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    torch_keeps.setattr(tempfile, "tempdir", str(tmp_path))
    torch_keeps.setattr(compiler, "temporary_folder", private.temporary_folder.__wrapped__)
    cpu = torch.device("cpu")
    can, note = compiler.prepare("auto", cpu, tmp_path / "cache")
    assert not can
    assert note.startswith("not compiled: no folder for it is private: others may write to ")
    with pytest.raises(ValueError, match="--compile on: no folder for it is private"):
        compiler.prepare("on", cpu, tmp_path / "cache")


def test_the_folder_that_the_server_is_told_goes_before_the_machines(
    tmp_path: Path, torch_keeps: pytest.MonkeyPatch
) -> None:
    torch_keeps.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "of all"))
    torch_keeps.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepared(None) == (tmp_path / "of all", "")
    assert prepared(tmp_path / "mine") == (tmp_path / "mine", "")
    torch_keeps.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert prepared(None) == (tmp_path / "niyama" / "compiled", "")


def test_tritons_folder_is_private_too(tmp_path: Path, torch_keeps: pytest.MonkeyPatch) -> None:
    own, shared = tmp_path / "own", tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for folder, used in ((own, own), (shared, tmp_path / "cache" / "triton")):
        torch_keeps.setenv("TRITON_CACHE_DIR", str(folder))
        prepared(tmp_path / "cache")
        assert os.environ["TRITON_CACHE_DIR"] == str(used)


# Compiles a function, where an engine would; or, to fill it, where torch does by itself.
COMPILES = """
import sys
from pathlib import Path
import torch
from engine.computing import compiler
if sys.argv[1]:
    print(compiler.prepare("on", torch.device("cpu"), Path(sys.argv[1]))[1])
torch.compile(lambda x: x * 3 + 1)(torch.ones(4))
from torch._inductor import codecache
print(codecache._HEADER_DIR)
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_what_anybody_may_have_put_among_the_temporary_files_is_not_loaded(tmp_path: Path) -> None:
    """torch looks for pickles in a folder there whose name it makes of the user's: whoever makes
    that folder first has them run what he likes.
    """
    shared, marker, bad = tmp_path / "shared", tmp_path / "marker", tmp_path / "file"
    shared.mkdir()
    shared.chmod(0o1777)
    bad.write_text("")
    quickly = {"TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}
    environment = {**os.environ, **quickly, "TMPDIR": str(shared)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)

    def compiles(folder: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", COMPILES, folder],
            env=environment,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[3],
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    compiles("")
    (planted,) = shared.glob("torchinductor_*")
    call = f"cos\nsystem\n(S'touch {marker}'\ntR."  # what `pickle` does with it
    for path in [p for p in planted.rglob("*") if p.is_file() and "graph" in str(p)]:
        path.write_text(call)
    before = sorted(planted.rglob("*"))

    note, headers = compiles(str(bad / "cache"))
    assert not marker.exists()
    assert note.startswith("what is compiled is lost at the end: ")
    assert Path(headers).parts[len(shared.parts)].startswith("niyama-")
    assert sorted(planted.rglob("*")) == before
    assert list(shared.iterdir()) == [planted], "the temporary folder is removed at the end"


def test_int8_serves_and_stays_close(folder: Path) -> None:
    plain = load(folder, dtype="float32", num_pages=64, page_size=4)
    small = load(folder, dtype="float32", num_pages=64, page_size=4, quantize="int8")
    pairs = zip(likeliest(plain, [], [(0, 9)]), likeliest(small, [], [(0, 9)]), strict=True)
    for (_, expected), (_, found) in pairs:
        assert found == pytest.approx(expected, abs=0.5)
    with pytest.raises(ValueError, match="must be one of none, int8"):
        load(folder, num_pages=4, quantize="int2")


@TORCHS_OWN
def test_int8_computes_the_same_compiled(folder: Path) -> None:
    """But for numbers that lie between two of 8 bits, which may be rounded to either."""
    skip_without_compiler()
    plain, fast = (
        load(folder, dtype="float32", num_pages=64, page_size=4, quantize="int8", compile=how)
        for how in ("off", "on")
    )
    fast.warm_up()
    check_shapes(plain, fast, tolerance=0.05)


@TORCHS_OWN
def test_regions_around_attention_that_is_not_compiled_compute_the_same(folder: Path) -> None:
    """As on CUDA, where decodes are no kind of their own."""
    skip_without_compiler()
    model = load_model(folder, torch.float32, "cpu")
    plain, fast = (
        ModelExecutor(model, GatheredKv(model.config, 64, 4), is_compiled)
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
    told = shortcut.expressions
    monkeypatch.setattr(loading, "fastest_row_layout", lambda *asked: "strips")
    monkeypatch.setattr(shortcut, "expressions", lambda graph: [None] * len(told(graph)))
    plain = load(folder, dtype="float32", num_pages=64, page_size=4)
    fast = load(folder, dtype="float32", num_pages=64, page_size=4, compile="on")
    fast.warm_up()
    assert fast.compile_note.startswith("9 of 9 compiled graphs are called through torch, ")
    check_shapes(plain, fast)
    assert fast.compilations == 9
