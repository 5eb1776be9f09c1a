"""A whole step through torch.compile: few graphs, for any number of tokens.

The numbers of tokens and of sampled rows are symbols of the compiled code, from 2 on, and attention
is one opaque call per layer, so one graph serves every iteration. A lone decode has a graph of its
own, in which a product with one row need not be one with many; and where several threads compute,
large iterations have one that shares the work of every kernel among them, which small ones would
only wait for. All are compiled by `warm_up`, none in service: `compilations` counts, so that an
operator can see it. What the compiler makes is kept on disk between starts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.computing.batch import Batch
from engine.computing.options import COMPILE

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_INPUTS = ("tokens", "positions", "rows")
LEAST, MOST = 2, 1 << 20  # tokens, and sampled rows, of a graph that is not for a lone decode
MOST_GRAPHS = 1 << 10
LONGEST_REASON = 300  # characters
COMPILER_ERRORS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
SMALL = 256  # tokens up to which an iteration is not worth sharing among threads kernel by kernel


class CompilationFailed(ValueError):
    """One line: why."""


def prepare(mode: str, device: torch.device, cache: Path | None) -> tuple[bool, str]:
    """Whether to compile, and what the operator should know of that: a line, or nothing. "auto"
    does where a compiler is found. What is compiled is kept in `cache`, or where torch keeps it.
    Raises ValueError for "on" where no compiler is found.
    """
    if mode not in COMPILE:
        raise ValueError(f"compile must be one of {', '.join(COMPILE)}, got {mode!r}")
    if mode == "off":
        return False, ""
    missing = _missing(device)
    if missing and mode == "on":
        raise ValueError(f"--compile on: {missing}")
    if missing:
        return False, f"not compiled: {missing}"
    folder = cache or os.environ.get(CACHE_VARIABLE)
    return True, _keep_compiled_in(Path(folder)) if folder else ""


def _missing(device: torch.device) -> str:
    """What torch.compile would not find on this machine; empty when it has what can be looked for
    quickly. That it can use it shows when it compiles.
    """
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")  # as torch looks for it
        return "" if shutil.which(compiler) else f"no C++ compiler ({compiler}) is found"
    from torch.utils._triton import has_triton

    return "" if has_triton() else "torch finds no Triton"


def _keep_compiled_in(folder: Path) -> str:
    """What this process compiles from now on is kept there, and found again by the next. Where
    nothing can be written, it is kept in torch's own temporary folder: returns why, else nothing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        os.environ.pop(CACHE_VARIABLE, None)
        return f"compiled code is kept in a temporary folder: {error}"
    os.environ[CACHE_VARIABLE] = str(folder)
    return ""


def end_compilers() -> None:
    """Ends the processes in which torch compiles, if any: nothing is compiled in service."""
    if compilers := sys.modules.get("torch._inductor.async_compile"):
        compilers.shutdown_compile_workers()


class CompiledStep:
    """`forward(tokens, positions, rows)` of a model; each graph is compiled at its first call,
    which raises CompilationFailed.
    """

    def __init__(self, forward: Callable[..., Tensor], has_large: bool) -> None:
        self.compilations = 0
        self._forward = forward
        self._has_large = has_large
        self._steps: dict[str, Callable[..., Tensor]] = {}

    def __call__(self, batch: Batch) -> Tensor:
        kind = self._kind(batch)
        if kind not in self._steps:
            return self._first(kind, batch)
        return self._steps[kind](batch.tokens, batch.positions, batch.rows)

    def _first(self, kind: str, batch: Batch) -> Tensor:
        arguments = (batch.tokens, batch.positions, batch.rows)
        try:
            threads = {"lone": -1, "small": 1, "large": torch.get_num_threads()}[kind]
            step = self._compiled(self._forward, threads)
            if kind != "lone":
                for argument in arguments:
                    torch._dynamo.mark_dynamic(argument, 0, min=LEAST, max=MOST)
            # Of the same code, for all models of the process.
            with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
                logits = step(*arguments)
        except COMPILER_ERRORS as error:
            raise CompilationFailed(_reason(error)) from error
        self._steps[kind] = step
        return logits

    def _kind(self, batch: Batch) -> str:
        if len(batch.tokens) < LEAST:
            return "lone"
        return "large" if len(batch.tokens) > SMALL and self._has_large else "small"

    def _compiled(self, forward: Callable[..., Tensor], threads: int) -> Callable[..., Tensor]:
        """Its kernels are shared among so many threads, where torch thinks it worth while. The
        number makes graphs of the same code differ in the cache of what was compiled.
        """

        def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
            self.compilations += 1
            from torch._inductor.compile_fx import compile_fx

            return compile_fx(graph, example, config_patches={"cpp.threads": threads})

        # A backend of its own: torch would take graphs of the same one for each other.
        return torch.compile(
            forward,
            backend=backend,
            fullgraph=True,
            dynamic=False,
            options={"guard_filter_fn": _guards_of_inputs},
        )


def _guards_of_inputs(guards: list[Any]) -> list[bool]:
    """Which of the conditions of the compiled code are looked at before each call: those on its
    inputs. The model does not change, and has many parts to look at.
    """
    return [guard.guard_type == "SHAPE_ENV" or guard.name in _INPUTS for guard in guards]


def _reason(error: BaseException) -> str:
    """One line. torch wraps what went wrong, and a compiler has said more than that it is so."""
    while isinstance(inner := getattr(error, "inner_exception", None), BaseException):
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line] or lines or [""]
    return f"{type(error).__name__}: {told[0]}"[:LONGEST_REASON]
