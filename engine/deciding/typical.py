"""What a typical request of a tier looks like, of late. Lengths are in tokens."""

from __future__ import annotations

from typing import Final, NamedTuple

WEIGHT: Final = 1 / 64  # of the newest request in the averages
_ALL = None  # the key of everybody's


class Typical(NamedTuple):
    """`output_len` is None while no request has ended by itself."""

    prompt_len: int
    output_len: int | None


class _Mean:
    """A mean that is weighted by recency, plain until there are many."""

    __slots__ = ("_num", "value")

    def __init__(self) -> None:
        self._num = 0
        self.value = 0.0

    def add(self, length: int) -> None:
        self._num += 1
        self.value += max(WEIGHT, 1 / self._num) * (length - self.value)

    def rounded(self) -> int | None:
        return max(1, round(self.value)) if self._num else None


class TypicalRequests:
    """Knows how long prompts and outputs of each tier are on average. There are as many tiers as
    the operator has named; a tier that has had no request is like all of them together.
    """

    def __init__(self) -> None:
        self._prompts: dict[str | None, _Mean] = {_ALL: _Mean()}
        self._outputs: dict[str | None, _Mean] = {_ALL: _Mean()}

    def came(self, tier: str, prompt_len: int) -> None:
        """Takes note of a request that was taken in."""
        self._prompts[_ALL].add(prompt_len)
        self._prompts.setdefault(tier, _Mean()).add(prompt_len)

    def ended(self, tier: str, output_len: int) -> None:
        """Takes note of a request that ended by itself."""
        self._outputs[_ALL].add(output_len)
        self._outputs.setdefault(tier, _Mean()).add(output_len)

    def of(self, tier: str) -> Typical | None:
        """Returns what is typical of the tier; None before the first request of any."""
        prompt_len = self._prompts.get(tier, self._prompts[_ALL]).rounded()
        if prompt_len is None:
            return None
        return Typical(prompt_len, self._outputs.get(tier, self._outputs[_ALL]).rounded())
