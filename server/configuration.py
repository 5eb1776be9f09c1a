"""The operator's file of tiers, presets and tenants (`--config`), as it was last found good.

The file is read at start and when the operator says so (SIGHUP), and at no other time: an engine or
a front end that is started again must not stumble over a file that is just being written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine import tiers_file
from engine.tiers import BUILT_IN, Tier, Tiers


class Configuration:
    """What one process knows of the file.

    `text` is the file's, None where there is no file. `tiers` are those that hold now: the file's,
    else those that the engine proposes, else the built-in ones.
    """

    def __init__(self, path: Path | None, text: str | None = None) -> None:
        """Reads the file, unless another process has and gives its text. Raises ValueError, naming
        file and key.
        """
        self.path = path
        self._proposed: Sequence[Tier] = ()  # by the engine, for the model on this machine
        self.text = tiers_file.read(path) if path is not None and text is None else text
        self.tiers = self._parse(self.text)

    def propose(self, proposed: Sequence[Tier]) -> Tiers:
        """Takes the tiers that an engine proposes; returns those that hold from now on."""
        self._proposed = proposed
        self.tiers = self._parse(self.text)
        return self.tiers

    def take(self, text: str) -> list[str]:
        """Takes another text of the file; returns the names of what differs. Raises ValueError,
        naming file and key, and then all is as before.
        """
        before, after = self.tiers, self._parse(text)
        self.text, self.tiers = text, after
        return tiers_file.changes(before, after)

    def _parse(self, text: str | None) -> Tiers:
        built_in = self._proposed or BUILT_IN
        if self.path is not None and text is not None:
            return tiers_file.parse(text, self.path, built_in)
        return Tiers({tier.name: tier for tier in built_in}, built_in[0].name)
