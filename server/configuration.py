"""The operator's file (`--config`) as it was last found good, and what holds by it.

The file is read at start and when the operator says so (SIGHUP, or --follow-config once it has
changed), and at no other time: an engine or a front end that is started again must not stumble over
a file that is just being written. Of what is read again, tiers, applications, tenants and the flags
marked `is_reloaded` hold from then on; the others need a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from engine import tiers_file, toml_file
from engine.flags import flags_of
from engine.tiers import BUILT_IN, Tier, Tiers
from engine.toml_file import Document
from server.config import ServerConfig
from server.identity.files import Files
from server.settings import FLAGS, Given
from server.tier_port import unknown


class Reconfigure(NamedTuple):
    """What holds from now on, for every front end: the text of the file, where there is one, the
    flags (those marked `is_reloaded` count), and what the files of identities say.
    """

    text: str | None
    config: ServerConfig
    identity: Files


class Changes(NamedTuple):
    """What another text of the file changes, by the names that the file has for it."""

    made: list[str]
    need_restart: list[str]  # of what runs: they are not made


@dataclass(frozen=True, slots=True)
class Reading:
    """A text of the file that has been found good, and what it says. `proposed` are the tiers by
    which it was read; `config` is None where nobody knows what flags were given.
    """

    text: str
    proposed: Sequence[Tier]
    tiers: Tiers
    config: ServerConfig | None


class Configuration:
    """What one process knows of the file.

    `text` is the file's, None where there is no file. `tiers` are those that hold now: the file's,
    else those that the engine proposes, else the built-in ones. `config` is what the server was
    started with and what has been reloaded since; None where only tiers matter.
    """

    def __init__(
        self,
        path: Path | None,
        text: str | None = None,
        *,
        config: ServerConfig | None = None,
        given: Given | None = None,
    ) -> None:
        """Reads the file, unless another has and gives its text. Flags that are stated in it are
        reloaded where `given` says who else has stated any. Raises BadFile.
        """
        self.path = path
        self.config = config
        self._given = given
        self._proposed: Sequence[Tier] = ()  # by the engine, for the model on this machine
        self.text = toml_file.read(path) if path is not None and text is None else text
        self.tiers = self._parse(self.text)

    def propose(self, proposed: Sequence[Tier]) -> Tiers:
        """Takes the tiers that an engine proposes; returns those that hold from now on."""
        self._proposed = proposed
        self.tiers = self._parse(self.text)
        return self.tiers

    def read(self, text: str) -> Reading:
        """Returns what another text of the file says, and changes nothing: for any thread. Raises
        BadFile, BadSetting, and ValueError where a port's tier is gone.
        """
        assert self.path is not None
        proposed, document = self._proposed, toml_file.parse(text, self.path)
        config = None if self._given is None else self._given.resolve(document).config
        tiers = self._of(document, proposed)
        if self.config is not None and (what := unknown(self.config.tier_port, tiers)):
            raise ValueError(f"{self.path}: the tier_port that is served {what}")
        return Reading(text, proposed, tiers, config)

    def take(self, reading: Reading) -> Changes:
        """Has what was read hold from now on; returns what differs."""
        before, self.text, self.tiers = self.tiers, reading.text, reading.tiers
        if reading.proposed is not self._proposed:  # an engine has become ready in the meantime
            self.tiers = self._parse(self.text)
        made = tiers_file.changes(before, self.tiers)
        if self.config is None or reading.config is None:
            return Changes(made, [])
        differing = [
            name for name in FLAGS if value_of(self.config, name) != value_of(reading.config, name)
        ]
        reloaded = [name for name in differing if FLAGS[name].flag.is_reloaded]
        self.config = reloaded_from(self.config, reading.config)
        rest = [name for name in differing if name not in reloaded]
        return Changes(made + [_in_file(name) for name in reloaded], [_in_file(n) for n in rest])

    def _parse(self, text: str | None) -> Tiers:
        if self.path is not None and text is not None:
            return self._of(toml_file.parse(text, self.path), self._proposed)
        built_in = self._proposed or BUILT_IN
        return Tiers({tier.name: tier for tier in built_in}, built_in[0].name)

    def _of(self, document: Document, proposed: Sequence[Tier]) -> Tiers:
        return tiers_file.of(document, proposed or BUILT_IN)


def reloaded_from(config: ServerConfig, after: ServerConfig) -> ServerConfig:
    """Returns the configuration with what is reloaded taken from another."""
    flags = flags_of(ServerConfig).items()
    values: dict[str, Any] = {
        name: getattr(after, name) for name, flag in flags if flag.is_reloaded
    }
    return replace(config, **values)


def value_of(config: ServerConfig, name: str) -> object:
    """Returns the value of a flag, be it the server's or the engine's."""
    return getattr(config if hasattr(config, name) else config.engine, name)


def _in_file(name: str) -> str:
    return f"{FLAGS[name].section}.{name}"
