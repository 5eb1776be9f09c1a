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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.computing.batch import Batch

MODES = ("auto", "on", "off")
_INPUTS = ("tokens", "positions", "rows")
LEAST, MOST = 2, 1 << 20  # tokens, and sampled rows, of a graph that is not for a lone decode
SMALL = 256  # tokens up to which an iteration is not worth sharing among threads kernel by kernel


def wants_compiler(mode: str, device: torch.device) -> bool:
    """Whether to compile. "auto" does where a compiler is found. Raises ValueError for "on" where
    none is.
    """
    if mode not in MODES:
        raise ValueError(f"compile must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "off":
        return False
    missing = _missing(device)
    if missing and mode == "on":
        raise ValueError(f"--compile on: {missing}")
    return not missing


def _missing(device: torch.device) -> str:
    """What torch.compile would not find on this machine; empty when it has all."""
    if device.type == "cpu":
        compilers = [os.environ.get("CXX") or "g++", "clang++"]
        return "" if any(map(shutil.which, compilers)) else "no C++ compiler (g++) is found"
    from torch.utils._triton import has_triton

    return "" if has_triton() else "torch finds no Triton"


def keep_compiled_in(folder: Path) -> None:
    """What this process compiles from now on is kept there, and found again by the next."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def end_compilers() -> None:
    """Ends the processes in which torch compiles: nothing is compiled in service."""
    from torch._inductor.async_compile import shutdown_compile_workers

    shutdown_compile_workers()


class CompiledStep:
    """`forward(tokens, positions, rows)` of a model; each graph is compiled at its first call."""

    def __init__(self, forward: Callable[..., Tensor], has_large: bool) -> None:
        self.compilations = 0
        self._steps = {"lone": self._compiled(forward), "small": self._compiled(forward, 1)}
        if has_large:
            self._steps["large"] = self._compiled(forward, torch.get_num_threads())
        self._unmarked = set(self._steps) - {"lone"}

    def __call__(self, batch: Batch) -> Tensor:
        arguments = (batch.tokens, batch.positions, batch.rows)
        kind = self._kind(batch)
        if kind in self._unmarked:
            for argument in arguments:
                torch._dynamo.mark_dynamic(argument, 0, min=LEAST, max=MOST)
            self._unmarked.remove(kind)
        return self._steps[kind](*arguments)

    def _kind(self, batch: Batch) -> str:
        if len(batch.tokens) < LEAST:
            return "lone"
        return "large" if len(batch.tokens) > SMALL and "large" in self._steps else "small"

    def _compiled(self, forward: Callable[..., Tensor], threads: int = -1) -> Callable[..., Tensor]:
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
    inputs. The model does not change, and looking at it all takes half a millisecond.
    """
    return [guard.guard_type == "SHAPE_ENV" or guard.name in _INPUTS for guard in guards]
