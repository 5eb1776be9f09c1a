"""A shortcut into compiled code, past what torch.compile does before and after each call of it.

torch.compile makes two things of a function. One is code: it is given a flat list of values, such
as the batch's tensors, a layer's matrices and the sizes that vary, and returns a flat list of
tensors. The other is an entry around it, which at each call looks whether the code still holds for
these arguments, fetches the values out of them, and puts the function's result together. The engine
knows that the code holds (compiled.py), and an entry takes as long as a small layer: without it, a
lone decode of a tiny Llama took 0.54 ms for each layer instead of 0.65. So the engine fetches by
itself, by one expression, and calls the code.

How to fetch, torch does not tell in public. This file relies on the following, which is so in torch
2.11 and 2.13 (tests/engine/computing/test_shortcut.py tries it on the torch that is installed):

* In the graph that torch hands to a backend, each node for a value has `meta["grapharg"]`, whose
  `source.name` is a Python expression that fetches the value from `L`, the function's arguments by
  name: "L['block']._modules['out'].stored", or "L['x'].size()[0]".
* The code is given these values in the order of the nodes.
* The function's results are tensors that the code returned, or None.

None of it is believed. At first the function is called through torch's entry, in the engine for
every layer, and each time what torch gave to the code is compared with what the expressions fetch,
and where the code's tensors stand in the result with where they stood before. Where torch does not
tell, or something differs, the shortcut is not taken: the function is called through torch's entry
for ever, with the same results and slower, and `doubt` says why, for the operator. Expressions see
the name L and no other, not even Python's built-in ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Value = Tensor | int | float
Code = Callable[..., Sequence[Any]]
Fetch = Callable[[dict[str, Any]], tuple[Value, ...]]


class _Call(NamedTuple):
    """What torch gave to the code in one call, and what the code returned."""

    given: Sequence[Value]
    returned: Sequence[Any]


def expressions(graph: torch.fx.GraphModule) -> list[str | None]:
    """Returns for each value that the code of this graph is given how torch would fetch it, as an
    expression of `L`, or None where torch does not tell.
    """
    arguments = [n.meta.get("grapharg") for n in graph.graph.nodes if n.op == "placeholder"]
    names = [getattr(getattr(argument, "source", None), "name", None) for argument in arguments]
    return [name if isinstance(name, str) else None for name in names]


class Shortcut:
    """The shortcut into the code of one function.

    The backend that compiles the function's graph hands the code to `watched`. Then the function is
    called through torch, once or more, and `check` is told of each call. `take` ends that and
    returns the way to call from then on.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.doubt = ""  # why the shortcut is not taken
        self._names = list(inspect.signature(function).parameters)
        self._code: Code | None = None
        self._fetch: Fetch | None = None
        self._places: list[int | None] = []  # of each result among what the code returned
        self._is_alone = False  # the function's result is one tensor
        self._is_watching = True
        self._last: _Call | None = None

    def watched(self, graph: torch.fx.GraphModule, code: Code) -> Code:
        """Returns the code such that its calls are noted until `take`."""
        self._code = code
        fetches = expressions(graph)
        if None in fetches:
            self.doubt = "torch does not tell what compiled code is given"
        else:
            self._fetch = self._compiled_fetch([str(fetch) for fetch in fetches])

        def noted(*given: Any) -> Sequence[Any]:
            returned = code(*given)
            if self._is_watching:
                self._last = _Call(given, returned)
            return returned

        return noted

    def _compiled_fetch(self, fetches: list[str]) -> Fetch | None:
        try:
            fetch: Fetch = eval(f"lambda L: ({''.join(f'{f}, ' for f in fetches)})", _NO_NAMES)
        except SyntaxError:
            self.doubt = "torch tells what compiled code is given in a language of its own"
            return None
        return fetch

    def check(self, arguments: Sequence[Any], result: Any) -> None:
        """Compares a call through torch, of the function with these arguments and this result, with
        what the shortcut would have done. `result` is a tensor, or a sequence of tensors and None.
        """
        call, self._last = self._last, None
        if not self.doubt:
            self.doubt = self._difference(arguments, result, call)

    def _difference(self, arguments: Sequence[Any], result: Any, call: _Call | None) -> str:
        if call is None or self._fetch is None:
            return "torch did not call the code that it was given"
        try:
            fetched = self._fetch(dict(zip(self._names, arguments, strict=True)))
        except (NameError, LookupError, AttributeError, TypeError) as error:
            return f"what compiled code is given cannot be fetched: {error}"
        if len(fetched) != len(call.given) or not all(map(_is_same, fetched, call.given)):
            return "torch gives to compiled code something else than it tells"
        places = _places(result, call.returned)
        if _NOWHERE in places or self._places not in ([], places):
            return "torch makes more of what compiled code returns than it passes on"
        self._places, self._is_alone = places, isinstance(result, Tensor)
        return ""

    def take(self) -> Callable[..., Any] | None:
        """Returns the function that fetches and calls the code, given what the compiled function
        is; or None where there is a doubt, or no call was checked. Calls are no longer noted.
        """
        self._is_watching, self._last = False, None
        code, fetch, names, places = self._code, self._fetch, self._names, self._places
        if self.doubt or code is None or fetch is None or not places:
            return None
        is_alone = self._is_alone

        def call(*arguments: Any) -> Any:
            returned = code(*fetch(dict(zip(names, arguments, strict=True))))
            results = [None if place is None else returned[place] for place in places]
            return results[0] if is_alone else results

        return call


_NO_NAMES: dict[str, Any] = {"__builtins__": {}}
_NOWHERE = -1


def _places(result: Any, returned: Sequence[Any]) -> list[int | None]:
    """Returns where each tensor of a result is among those that the code returned."""
    place_of = {id(tensor): place for place, tensor in enumerate(returned)}
    results = (result,) if isinstance(result, Tensor) else result
    return [None if one is None else place_of.get(id(one), _NOWHERE) for one in results]


def _is_same(one: Value, other: Value) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return one == other
