"""An iteration of the model in compiled code: few graphs, for any number of tokens and of layers.

What torch.compile makes of a function, a graph, is code for the shapes that it saw, and compiling
takes seconds to minutes: too long to happen while requests wait. So everything that an iteration
can be like must be served by few graphs, all compiled at start-up.

* Regions. A region is what lies between the attention of one layer and that of the next. Attention
  itself is mostly called, not compiled: its shapes follow from who shares the batch. There are
  three functions: from the tokens to the first attention, from one attention to the next, and from
  the last to the logits. The second serves all layers with one graph, in which a layer's matrices
  are not constants but given, so that compiling takes no longer for a deep model than for a flat
  one. The part of attention that a KV layout wants compiled (`KvLayout.traced`: decodes, in place)
  ends the first two.
* Symbols. The numbers that differ between iterations (tokens, sampled rows, pages that decodes
  read) are symbols in a graph and may have any value from LEAST on, to which a batch is padded
  (batch.py). Below it torch makes other code. A number that the code could only have as the one
  that it saw fails to compile, instead of being served wrong.
* Kinds. A lone decode has graphs of its own, in which the product with one row is another than that
  with many; so has an iteration of which attention leaves nothing but compiled decodes. Three kinds
  of three regions make nine graphs; where no attention is compiled, two kinds make six.

torch looks before each call whether the code still holds (guards). Here it need not: the model does
not change, and what may differ between iterations is a symbol. The warm-up compiles all kinds
(runner.py), and `compilations` counts, so that an operator would see one in service. How compiled
code is called without torch's entry stands in shortcut.py; where it is kept, in compiler.py.

Legend: T tokens of the iteration, S rows that are sampled, H query heads, KH key-value heads, D
head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from engine.computing.attention.layout import LEAST, KvLayout
from engine.computing.batch import Batch
from engine.computing.compiler import compiling
from engine.computing.model import Block, Decoder
from engine.computing.shortcut import Code, Shortcut

# The largest values of symbols, by the dimension of a tensor that they are the size of: tokens or
# pages in dimension 0; in dimension 1 the pages of the longest context (a longer one is computed
# right as well, only summed less carefully).
MOST = (1 << 20, 1 << 12)
# Options of inductor, torch's compiler. What the first region has checked (that a token's id is in
# the vocabulary, where keys and values are written), the others need not check again: it would cost
# them a third more.
UNCHECKED = {"size_asserts": False, "assert_indirect_indexing": False}

Traced = Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]], Tensor | None]


def first_region(
    model: Decoder,
    block: Block,
    traced: Traced,
    memory: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    tokens: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Computes from tokens and positions [T]: x [T, E], cosines and sines [T, 1, D], what the first
    attention is given [T, H + 2 * KH, D], and what `traced` has computed of that attention.
    """
    x, cos, sin = model.embed(tokens, positions)
    qkv = block.before(x, cos, sin)
    return x, cos, sin, qkv, traced(qkv, memory, inputs)


def next_region(
    block: Block,
    following: Block,
    traced: Traced,
    memory: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    x: Tensor,
    attended: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Computes from x [T, E] and what a layer's attention gave [T, H * D]: the next x, what the
    attention of the following layer is given, and what `traced` has computed of that attention.
    `memory` is the following layer's.
    """
    x = block.after(x, attended)
    qkv = following.before(x, cos, sin)
    return x, qkv, traced(qkv, memory, inputs)


def last_region(model: Decoder, block: Block, x: Tensor, attended: Tensor, rows: Tensor) -> Tensor:
    """Computes the logits [S, V] of `rows` [S] from x [T, E] and what the last attention gave
    [T, H * D].
    """
    x, attended = x.index_select(0, rows), attended.index_select(0, rows)
    return model.logits(block.after(x, attended))


Regions = Sequence[Callable[..., Any]]  # first, next and last


class CompiledStep:
    """The forward pass of a model over one KV memory in compiled code.

    A kind of iteration is compiled when it is called for the first time, which raises
    CompilationFailed where it cannot be.
    """

    def __init__(self, model: Decoder, kv: KvLayout) -> None:
        self.compilations = 0  # graphs that were compiled so far
        self._doubts: list[str] = []  # why graphs are called through torch, one for each
        self._model = model
        self._blocks = [cast(Block, block) for block in model.blocks]
        self._traced = kv.traced
        self._memories = [kv.memory(layer) for layer in range(len(model.blocks))]
        self._regions: dict[str, Regions] = {}  # by kind

    @property
    def note(self) -> str:
        """What an operator should know of the graphs compiled so far: a line, or nothing."""
        if not self._doubts:
            return ""
        return (
            f"{len(self._doubts)} of {self.compilations} compiled graphs are called through torch,"
            f" which takes longer: {self._doubts[0]} (torch {torch.__version__})"
        )

    def __call__(self, batch: Batch) -> Tensor:
        """Computes the logits [S, V] of one iteration."""
        kind = self._kind(batch)
        if kind in self._regions:
            return self._run(batch, self._regions[kind])
        regions = [
            _Region(first_region, {}),
            _Region(next_region, UNCHECKED),
            _Region(last_region, UNCHECKED),
        ]
        for tensor in batch.attention.inputs:
            _mark_symbols(tensor, range(tensor.dim()))
        try:
            with compiling():
                logits = self._run(batch, [region.compile for region in regions])
        finally:
            self.compilations += sum(region.compilations for region in regions)
        self._regions[kind] = [region.settle() for region in regions]
        self._doubts += [region.doubt for region in regions if region.doubt]
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
        logits: Tensor = last(model, blocks[-1], x, attended, batch.rows)
        return logits

    def _kind(self, batch: Batch) -> str:
        if len(batch.tokens) < LEAST:
            return "lone"
        return "mixed" if batch.attention.has_rest else "decodes"


class _Region:
    """The graph of one of the region functions, for one kind of iteration."""

    def __init__(self, function: Callable[..., Any], options: dict[str, bool]) -> None:
        """`options` are inductor's."""
        self.compilations = 0
        self._options = options
        self._shortcut = Shortcut(function)
        self._through_torch = torch.compile(
            function,
            backend=self._compile_graph,
            fullgraph=True,
            dynamic=False,
            options={"guard_filter_fn": _no_guards},
        )

    @property
    def doubt(self) -> str:
        """Why the graph is called through torch, if it is."""
        return self._shortcut.doubt

    def compile(self, *arguments: Any) -> Any:
        """Calls the function through torch, which compiles it for the first of the layers that it
        is called for, and has the shortcut look at each call.
        """
        if not self.compilations:
            for argument in arguments:
                if isinstance(argument, Tensor):
                    _mark_symbols(argument, (0,))
        result = self._through_torch(*arguments)
        self._shortcut.check(arguments, result)
        return result

    def settle(self) -> Callable[..., Any]:
        """Returns the way to call the compiled function from now on."""
        return self._shortcut.take() or self._through_torch

    def _compile_graph(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Code:
        """Compiles the graph of the function. Each region has a backend of its own, this method: of
        one backend torch would take the code of one region for that of another.
        """
        from torch._inductor.compile_fx import compile_fx

        self.compilations += 1
        if any(node.op == "get_attr" for node in graph.graph.nodes):
            raise RuntimeError("torch made a tensor of one block part of the code for all")
        code = cast(Code, compile_fx(graph, example, config_patches=self._options))
        return self._shortcut.watched(graph, code)


def _no_guards(guards: list[Any]) -> list[bool]:
    """Says which of its guards torch looks at before each call: none, as the module explains."""
    return [False] * len(guards)


def _mark_symbols(tensor: Tensor, dims: Iterable[int]) -> None:
    """Makes symbols of these sizes of a tensor, where they are not too small to be one."""
    for dim in dims:
        if tensor.shape[dim] >= LEAST:
            torch._dynamo.mark_dynamic(tensor, dim, min=LEAST, max=MOST[dim])
