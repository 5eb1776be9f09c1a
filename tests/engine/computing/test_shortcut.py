"""What the shortcut past torch relies on, tried on the torch that is installed; and that it is not
taken, and says why, where a torch does not do as it relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from engine.computing.shortcut import Shortcut, expressions


class Inputs(NamedTuple):
    """As attention's inputs: tensors by name."""

    rows: Tensor
    table: Tensor


class Layer(nn.Module):
    """Has a tensor of every kind that the model's layers have."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.gain = nn.Parameter(torch.randn(4, generator=generator), False)
        self.inner = nn.Linear(4, 4).requires_grad_(False)
        self.inner.weight.copy_(torch.randn(4, 4, generator=generator))
        self.stored = torch.randn(4, 4, generator=generator)
        self.absent: Tensor | None = None
        self.register_buffer("rotary", torch.randn(8, 4, generator=generator))


def region(
    layer: Layer, memory: tuple[Tensor, Tensor], inputs: Inputs, x: Tensor
) -> tuple[Tensor, Tensor, None]:
    """Depends on all that it is given, and on the sizes that differ; writes into the memory."""
    scaled = (x * layer.gain) @ layer.stored + layer.rotary.index_select(0, inputs.rows)
    memory[0][inputs.rows] = scaled
    read = memory[1][inputs.table.flatten()].view(*inputs.table.shape, -1).sum((0, 1))
    return layer.inner(scaled) + read, scaled * x.shape[0] + inputs.table.shape[1], None


def alone(layer: Layer, x: Tensor) -> Tensor:
    return layer.inner(x) * x.shape[0]


def arguments(seed: int, count: int) -> tuple[Layer, tuple[Tensor, Tensor], Inputs, Tensor]:
    """Those of `region`, of `count` rows; the tensors of the batch are cut from one, as its are."""
    flat = torch.arange(3 * count) % 8
    rows, table = flat.split((count, 2 * count))
    memory = (torch.zeros(8, 4), torch.randn(8, 4))
    return Layer(seed), memory, Inputs(rows, table.view(2, count)), torch.randn(count, 4)


class Through:
    """A function through torch, as compiled.py has it but for the compiler: its graph is run."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.shortcut = Shortcut(function)
        self.told: list[list[str | None]] = []  # of each graph
        self.calls_of_code = 0
        self.call = torch.compile(
            function,
            backend=self._run_graph,
            fullgraph=True,
            dynamic=False,
            options={"guard_filter_fn": lambda guards: [False] * len(guards)},
        )

    def _run_graph(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        self.told.append(expressions(graph))

        def code(*given: Any) -> Any:
            self.calls_of_code += 1
            return graph(*given)

        return self.shortcut.watched(graph, code)


@torch.inference_mode()
def test_the_shortcut_computes_what_torch_does_for_other_layers_and_sizes() -> None:
    through = Through(region)
    for number, one in enumerate((arguments(1, 5), arguments(2, 5))):
        layer, memory, inputs, x = one
        if not number:
            for tensor, dim in ((x, 0), (inputs.rows, 0), (inputs.table, 1)):
                torch._dynamo.mark_dynamic(tensor, dim, min=2, max=1 << 10)
        through.shortcut.check(one, through.call(*one))
    assert None not in through.told[0]
    assert through.shortcut.doubt == ""
    call = through.shortcut.take()
    assert call is not None
    for layer, memory, inputs, x in (arguments(3, 5), arguments(4, 7)):
        expected_memory = memory[0].clone(), memory[1]
        expected = region(layer, expected_memory, inputs, x)
        found = call(layer, memory, inputs, x)
        torch.testing.assert_close(found[:2], expected[:2])
        assert found[2] is None
        torch.testing.assert_close(memory[0], expected_memory[0])
    assert through.calls_of_code == 4
    assert len(through.told) == 1


@torch.inference_mode()
def test_a_result_that_is_one_tensor_is_returned_as_that() -> None:
    through, layer, x = Through(alone), Layer(1), torch.randn(5, 4)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=1 << 10)
    through.shortcut.check((layer, x), through.call(layer, x))
    call = through.shortcut.take()
    assert call is not None
    other = torch.randn(9, 4)
    torch.testing.assert_close(call(layer, other), alone(layer, other))


def test_a_size_that_becomes_a_number_in_the_graph_is_an_error_of_torch() -> None:
    """It would be computed wrong for all others, as torch's guards are not looked at."""
    x = torch.randn(5, 4)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=1 << 10)
    through = Through(lambda x: x + torch.ones(5, 1))
    with pytest.raises(RuntimeError, match="your code specialized it to be a constant"):
        through.call(x)


def graph_of(*names: object) -> torch.fx.GraphModule:
    """A graph of values that torch tells of by these names, or of which it tells nothing (None)."""
    graph = torch.fx.Graph()
    for number, name in enumerate(names):
        node = graph.placeholder(f"value_{number}")
        if name is not None:
            node.meta["grapharg"] = SimpleNamespace(source=SimpleNamespace(name=name))
    graph.output(())
    return torch.fx.GraphModule(nn.Module(), graph)


def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x + 1, y + 1


X, Y, RESULT = torch.ones(3), torch.zeros(3), (torch.full((3,), 2.0), torch.ones(3))


def doubt(
    names: Sequence[object],
    given: Sequence[Any] = (X, Y),
    results: Sequence[Sequence[Any]] = (RESULT, RESULT),
) -> str:
    """Why no shortcut is taken after calls in which torch gave these values to code that returns
    RESULT, and made these results of it.
    """
    shortcut = Shortcut(function)
    code = shortcut.watched(graph_of(*names), lambda *given: RESULT)
    for result in results:
        code(*given)
        shortcut.check((X, Y), result)
    assert (shortcut.take() is None) == bool(shortcut.doubt)
    return shortcut.doubt


TOLD = ("L['x']", "L['y']")


def test_what_is_as_it_is_told_raises_no_doubt() -> None:
    assert doubt(TOLD) == ""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("L['x']", None), "torch does not tell what compiled code is given"),
        (("L['x']", lambda: "L['y']"), "torch does not tell what compiled code is given"),
        (("L['x']", "L['y'"), "torch tells what compiled code is given in a language of its own"),
        (("L['x']", "G['y']"), "what compiled code is given cannot be fetched: name 'G'"),
        (("L['x']", "min(L['y'])"), "what compiled code is given cannot be fetched: name 'min'"),
        (("L['x']", "L['z']"), "what compiled code is given cannot be fetched: 'z'"),
        (("L['x']", "L['y'].z"), "what compiled code is given cannot be fetched: 'Tensor' object"),
        (("L['y']", "L['x']"), "torch gives to compiled code something else than it tells"),
        (("L['x']", "L['y'] + 0"), "torch gives to compiled code something else than it tells"),
        (("L['x']", "L['y'].size()[0]"), "torch gives to compiled code something else"),
        (("L['x']",), "torch gives to compiled code something else than it tells"),
    ],
)
def test_a_torch_that_does_not_tell_how_to_fetch_is_doubted(
    names: Sequence[object], expected: str
) -> None:
    assert doubt(names).startswith(expected)


@pytest.mark.parametrize(
    "results",
    [
        [(RESULT[0], RESULT[1].clone())],
        [RESULT, (RESULT[1], RESULT[0])],
        [RESULT, RESULT, (RESULT[0], None)],
    ],
)
def test_a_torch_that_makes_something_else_of_what_code_returns_is_doubted(
    results: Sequence[Sequence[Any]],
) -> None:
    expected = "torch makes more of what compiled code returns than it passes on"
    assert doubt(TOLD, results=results) == expected


def test_a_torch_that_does_not_call_the_code_is_doubted() -> None:
    """Neither in the first call nor in a later one."""
    shortcut = Shortcut(function)
    code = shortcut.watched(graph_of(*TOLD), lambda *given: RESULT)
    code(X, Y)
    shortcut.check((X, Y), RESULT)
    shortcut.check((X, Y), RESULT)
    assert shortcut.doubt == "torch did not call the code that it was given"
    assert shortcut.take() is None
    unused = Shortcut(function)
    assert unused.take() is None
