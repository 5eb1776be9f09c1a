"""What crosses the socket between the supervisor and a front end that it started.

The supervisor's first message is a `Start`, alone; everything after it travels in lists. Frames are
those of `engine.processes.frames`.
"""

from __future__ import annotations

from typing import NamedTuple

from server.admission.places import CallKey, Entry
from server.config import ServerConfig
from server.errors import Refused

# prometheus_client's name for where the processes of a service keep their metrics.
COUNTERS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class Start(NamedTuple):
    """`port` is held by the supervisor; `number` tells front ends apart in the log; `configuration`
    is the text of the configuration file, None where there is none, and `admin` the digest of the
    operator's token.
    """

    config: ServerConfig
    port: int
    number: int
    configuration: str | None = None
    admin: bytes | None = None


class Enter(NamedTuple):
    """A call asks to be entered in the ledger: `Verdict` answers by `number`. With `only_asks`,
    whether it would be.
    """

    number: int
    entry: Entry
    only_asks: bool = False


class Resize(NamedTuple):
    """The tokens of work of a call are known exactly."""

    key: CallKey
    tokens: int


class Started(NamedTuple):
    """Something of a call is about to be streamed."""

    key: CallKey


class Leave(NamedTuple):
    """A call is over."""

    key: CallKey


class Listening(NamedTuple):
    """The front end takes connections, though it may have no engine yet."""


class Attached(NamedTuple):
    """The engine serves through this front end."""


class Detached(NamedTuple):
    """The connection to the engine has ended; another is wanted."""


class LinesDropped(NamedTuple):
    """So many lines of the front end's log were not taken by the supervisor's pipe."""

    n: int


class CannotStart(NamedTuple):
    """The front end is about to exit."""

    line: str


FromLedger = Enter | Resize | Started | Leave
FromFrontEnd = FromLedger | Listening | Attached | Detached | CannotStart | LinesDropped


class Verdict(NamedTuple):
    """None, or why the call was not entered: Refused or a DuplicateRequest."""

    number: int
    error: Exception | None


class EngineSilent(NamedTuple):
    """The engine shows no sign of life, and may have stopped; or does again."""

    is_silent: bool


class Displaced(NamedTuple):
    """A call gave its place to another's and is to end so, unless it has started."""

    key: CallKey
    error: Refused


class Drain(NamedTuple):
    """Refuse new calls, let the running ones finish, exit."""


class Reconfigure(NamedTuple):
    """Another text of the configuration file, which has been found good."""

    text: str


FromSupervisor = Verdict | Displaced | Drain | Reconfigure | EngineSilent
