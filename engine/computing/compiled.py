"""An iteration through torch.compile: few graphs, for any number of tokens and of layers.

What lies between one attention and the next is compiled, once for all layers: from the tokens to
the first attention, from one to the next, from the last to the logits. What attention itself wants
compiled (`traced`: decodes on a CPU) ends such a region; the rest is called between them. The
numbers of tokens, of sampled rows and of the pages that decodes read are symbols, from 2 on. A lone
decode has graphs of its own, in which a product with one row need not be one with many, and so have
iterations of nothing but decodes. All are compiled by `warm_up`, none in service: `compilations`
counts, so that an operator can see it. What the compiler makes is kept on disk between starts, in a
folder that is ours alone: it is run by whoever loads it.
"""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from engine.checkpoint.options import COMPILE
from engine.computing.attention.layout import LEAST, KvLayout
from engine.computing.batch import Batch
from engine.computing.model import Block, Decoder
from engine.private import NotPrivate, default_folder, make, private_folder, temporary_folder

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
TRITON_VARIABLE = "TRITON_CACHE_DIR"
# Of a size that is a symbol: of dimension 0, and of 1, the pages of the longest context (a longer
# one is right as well, only summed less carefully).
MOST = (1 << 20, 1 << 12)
# What the first region finds right (a token's id, where keys and values are written), the others
# need not look at again, which costs them a third.
UNCHECKED = {"size_asserts": False, "assert_indirect_indexing": False}
MOST_GRAPHS = 1 << 10
LONGEST_REASON = 300  # characters
COMPILER_ERRORS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)


class CompilationFailed(ValueError):
    """One line: why."""


def prepare(mode: str, device: torch.device, cache: Path | None) -> tuple[bool, str]:
    """Whether to compile, and what the operator should know of that: a line, or nothing. "auto"
    does where a compiler is found. What is compiled is kept in `cache`, or where the environment
    has torch keep it, or in a folder of ours; where that is not private (private.py), in a
    temporary folder of this process. Raises ValueError for "on" where it cannot be done.
    """
    if mode not in COMPILE:
        raise ValueError(f"compile must be one of {', '.join(COMPILE)}, got {mode!r}")
    if mode == "off":
        return False, ""
    missing, note = compiler_missing(device), ""
    if not missing:
        try:
            note = keep_compiled_in(cache or _usual_folder())
        except (OSError, NotPrivate) as error:
            missing = f"no folder for it is private: {error}"
    if missing and mode == "on":
        raise ValueError(f"--compile on: {missing}")
    return (False, f"not compiled: {missing}") if missing else (True, note)


def compiler_missing(device: torch.device) -> str:
    """What torch.compile would not find on this machine; empty when it has what can be looked for
    quickly. That it can use it shows when it compiles.
    """
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")  # as torch looks for it
        return "" if shutil.which(compiler) else f"no C++ compiler ({compiler}) is found"
    from torch.utils._triton import has_triton

    return "" if has_triton() else "torch finds no Triton"


def _usual_folder() -> Path | None:
    kept, ours = os.environ.get(CACHE_VARIABLE), default_folder()
    return Path(kept) if kept else ours and ours / "compiled"


def keep_compiled_in(folder: Path | None) -> str:
    """What this process compiles from now on is kept there, and found again by the next. Where that
    is no private folder, it is kept in a temporary one of this process: returns why, else nothing.
    Raises NotPrivate, or OSError, where there is no such either.

    torch's own choice, of a name that anybody knows among everybody's temporary files, is never
    taken: neither for what it compiles nor for the headers that it prepares for the compiler.
    """
    try:
        if folder is None:
            raise FileNotFoundError("this user has no home folder, and XDG_CACHE_HOME is not set")
        kept, note = private_folder(folder), ""
    except (OSError, NotPrivate) as error:
        kept, note = temporary_folder(), f"what is compiled is lost at the end: {error}"
    os.environ[CACHE_VARIABLE] = str(kept)
    _leave_triton(kept)
    temporary = kept / "temporary"
    make(temporary)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    return note


def _leave_triton(kept: Path) -> None:
    """Its folder, where the environment names one that is not private, to torch, which has it keep
    what it compiles beside its own.
    """
    named = os.environ.get(TRITON_VARIABLE)
    if named is not None:
        try:
            private_folder(Path(named))
        except (OSError, NotPrivate):
            os.environ[TRITON_VARIABLE] = str(kept / "triton")


def end_compilers() -> None:
    """Ends the processes in which torch compiles, if any: nothing is compiled in service."""
    if compilers := sys.modules.get("torch._inductor.async_compile"):
        compilers.shutdown_compile_workers()


Traced = Callable[[Tensor, Any, Any], Tensor | None]
Regions = Sequence[Callable[..., Any]]


def _first_region(
    model: Decoder,
    block: Block,
    traced: Traced,
    memory: Any,
    inputs: Any,
    tokens: Tensor,
    positions: Tensor,
) -> Any:
    x, cos, sin = model.embed(tokens, positions)
    qkv = block.before(x, cos, sin)
    return x, cos, sin, qkv, traced(qkv, memory, inputs)


def _next_region(
    block: Block,
    following: Block,
    traced: Traced,
    memory: Any,
    inputs: Any,
    x: Tensor,
    attended: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Any:
    x = block.after(x, attended)
    qkv = following.before(x, cos, sin)
    return x, qkv, traced(qkv, memory, inputs)


def _last_region(model: Decoder, block: Block, x: Tensor, attended: Tensor, rows: Tensor) -> Tensor:
    x, attended = x.index_select(0, rows), attended.index_select(0, rows)
    return model.logits(block.after(x, attended))


class CompiledStep:
    """An iteration of a model; each graph is compiled at its first call, which raises
    CompilationFailed.
    """

    def __init__(self, model: Decoder, kv: KvLayout) -> None:
        self.compilations = 0
        self._model = model
        self._blocks = list(model.blocks)
        self._traced = kv.traced
        self._memories = [kv.memory(layer) for layer in range(len(model.blocks))]
        self._regions: dict[str, Regions] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """Logits [S, V]."""
        kind = self._kind(batch)
        if kind in self._regions:
            return self._run(batch, self._regions[kind])
        regions = [
            _Region(_first_region, {}),
            _Region(_next_region, UNCHECKED),
            _Region(_last_region, UNCHECKED),
        ]
        for tensor in batch.attention.inputs:
            _mark_symbols(tensor, range(tensor.dim()))
        try:
            # Of the same code, for all models of the process.
            with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
                logits = self._run(batch, [region.compile for region in regions])
        except COMPILER_ERRORS as error:
            raise CompilationFailed(_reason(error)) from error
        finally:
            self.compilations += sum(region.compilations for region in regions)
        self._regions[kind] = [region.call for region in regions]
        return logits

    def _run(self, batch: Batch, regions: Regions) -> Tensor:
        first, following, last = regions
        model, blocks, attention = self._model, self._blocks, batch.attention
        traced, inputs, memories = self._traced, attention.inputs, self._memories
        x, cos, sin, qkv, decoded = first(
            model, blocks[0], traced, memories[0], inputs, batch.tokens, batch.positions
        )
        for layer in range(1, len(blocks)):
            attended = attention.attend(qkv, layer - 1, decoded)
            block, memory = blocks[layer - 1], memories[layer]
            x, qkv, decoded = following(
                block, blocks[layer], traced, memory, inputs, x, attended, cos, sin
            )
        attended = attention.attend(qkv, len(blocks) - 1, decoded)
        return last(model, blocks[-1], x, attended, batch.rows)

    def _kind(self, batch: Batch) -> str:
        if len(batch.tokens) < LEAST:
            return "lone"
        return "mixed" if batch.attention.has_rest else "decodes"


class _Region:
    """One of the functions above, for one kind of iteration.

    `compile` is its first call. From then on `call` fetches what the compiled code asks for and
    runs that, without torch's look at the function and at its caller, which takes as long as a
    small layer; unless what it would fetch is not what torch did.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        """`options` are inductor's."""
        self.compilations = 0
        self._function = torch.compile(
            function,
            backend=self._compile_graph,
            fullgraph=True,
            dynamic=False,
            options={"guard_filter_fn": _no_guards},
        )
        self._names = list(inspect.signature(function).parameters)
        self._options = options
        self._sources: list[str | None] = []
        self._code: Callable[..., Any] | None = None
        # What the code is given and makes, while torch calls it for the first time.
        self._noted: list[tuple[Sequence[Any], Sequence[Any]]] | None = None
        self.call: Callable[..., Any] = self._function

    def compile(self, *arguments: Any) -> Any:
        if self._code is not None:  # for an earlier block
            return self.call(*arguments)
        for argument in arguments:
            if isinstance(argument, Tensor):
                _mark_symbols(argument, (0,))
        self._noted = []
        try:
            result = self._function(*arguments)
            self.call = self._direct(arguments, result) or self._function
        finally:
            self._noted = None
        return result

    def _compile_graph(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        """The backend: one for each region, as torch would take graphs of the same one for each
        other.
        """
        from torch._inductor.compile_fx import compile_fx

        self.compilations += 1
        if any(node.op == "get_attr" for node in graph.graph.nodes):
            raise RuntimeError("torch made a tensor of one block part of the code for all")
        arguments = [n.meta.get("grapharg") for n in graph.graph.nodes if n.op == "placeholder"]
        self._sources = [_source(argument) for argument in arguments]
        code = cast(Callable[..., Any], compile_fx(graph, example, config_patches=self._options))
        self._code = code

        def noted(*given: Any) -> Any:
            made = code(*given)
            if self._noted is not None:
                self._noted.append((given, made))
            return made

        return noted

    def _direct(self, arguments: tuple[Any, ...], result: Any) -> Callable[..., Any] | None:
        """None where it would not be the same, or torch does not tell."""
        if self._code is None or None in self._sources or not self._noted:
            return None
        names, code, (given, made) = self._names, self._code, self._noted[0]
        expressions = ", ".join(str(source) for source in self._sources)
        try:  # as torch writes them: L['x'].size()[0]
            fetch = eval(f"lambda L: ({expressions},)")
            fetched = fetch(dict(zip(names, arguments, strict=True)))
        except (SyntaxError, NameError, LookupError, AttributeError, TypeError):
            return None  # in a language of its own
        if len(fetched) != len(given) or not all(map(_is_same, fetched, given)):
            return None
        is_alone = isinstance(result, Tensor)
        index_of = {id(tensor): index for index, tensor in enumerate(made)}
        order = [
            None if tensor is None else index_of.get(id(tensor), -1)
            for tensor in ((result,) if is_alone else result)
        ]
        if -1 in order:
            return None

        def call(*arguments: Any) -> Any:
            made = code(*fetch(dict(zip(names, arguments, strict=True))))
            results = [None if index is None else made[index] for index in order]
            return results[0] if is_alone else results

        return call


def _source(argument: Any) -> str | None:
    """How torch would fetch this argument of a graph, an expression of `L`; None if not told."""
    name = getattr(getattr(argument, "source", None), "name", None)
    return name() if callable(name) else name


def _is_same(one: Any, other: Any) -> bool:
    return one is other if isinstance(one, Tensor) else bool(one == other)


def _no_guards(guards: list[Any]) -> list[bool]:
    """Which of its conditions compiled code looks at before each call: none. What an iteration may
    be like is known, and the model does not change.
    """
    return [False] * len(guards)


def _mark_symbols(tensor: Tensor, dims: Iterable[int]) -> None:
    for dim in dims:
        if tensor.shape[dim] >= LEAST:
            torch._dynamo.mark_dynamic(tensor, dim, min=LEAST, max=MOST[dim])


def _reason(error: BaseException) -> str:
    """One line. torch wraps what went wrong, and a compiler has said more than that it is so."""
    while isinstance(inner := getattr(error, "inner_exception", None), BaseException):
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line] or lines or [""]
    return f"{type(error).__name__}: {told[0]}"[:LONGEST_REASON]
