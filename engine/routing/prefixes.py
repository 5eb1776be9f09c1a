"""Which beginnings of prompts a router knows each replica to hold, because it has sent them there.

A beginning is named by a hash that is chained, part by part, as in `engine.deciding.prefix_index`:
equal keys mean equal beginnings, of prompts of one tenant. What a replica has thrown away in the
meantime is not known; what was sent there long ago is forgotten, so that it matters little.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

PREFIX_LEN = 64  # tokens that each key adds
MOST_KEYS = 64  # of a prompt
MOST_KNOWN = 16_384  # keys of one replica: a million tokens


def prefix_keys(tenant: str, prompt: Sequence[int] | bytes, length: int) -> tuple[bytes, ...]:
    """Returns a key for each beginning of the prompt that is a multiple of `length` tokens (or
    bytes, where it is a text not tokenized yet), the shortest first, MOST_KEYS at most.
    """
    keys = []
    parent = blake2b(tenant.encode(), digest_size=16).digest()
    for i in range(min(MOST_KEYS, len(prompt) // length)):
        part = prompt[i * length : (i + 1) * length]
        tokens = part if isinstance(part, bytes) else array("Q", part).tobytes()
        parent = blake2b(parent + tokens, digest_size=16).digest()
        keys.append(parent)
    return tuple(keys)


class KnownPrefixes:
    """The keys that one replica is known to hold, at most `most`: the ones used last."""

    def __init__(self, most: int = MOST_KNOWN) -> None:
        self._most = most
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def count(self, keys: Sequence[bytes]) -> int:
        """Returns how many of the keys, from the first on, are known without a gap."""
        return next((i for i, key in enumerate(keys) if key not in self._keys), len(keys))

    def add(self, keys: Iterable[bytes]) -> None:
        """A prompt with these keys was sent there. The longest beginnings are forgotten first."""
        for key in reversed(tuple(keys)):
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._most:
            self._keys.popitem(last=False)
