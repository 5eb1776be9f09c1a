"""What crosses the socket between the supervisor and a front end that it started.

The supervisor's first message is a `Start`, alone. Everything after it travels in lists, together
with what a front end and the ledger say to each other (`server.admission.ledger`).
"""

from __future__ import annotations

from typing import NamedTuple

from engine.inferring.habits import Learnt, Observed
from server.admission.ledger import FromLedger, ToLedger
from server.admission.places import Entry
from server.config import ServerConfig
from server.configuration import Reconfigure
from server.identity.files import NONE, Files

# prometheus_client's name for where the processes of a service keep their metrics.
COUNTERS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class Start(NamedTuple):
    """`config` names the port that the supervisor holds; `number` tells front ends apart in the
    log; `configuration` is the text of the configuration file, None where there is none, and
    `identity` what the files of identities say. `lost` are the calls that ended with the front end
    whose place it takes, for it to count.
    """

    config: ServerConfig
    number: int
    configuration: str | None = None
    identity: Files = NONE
    lost: tuple[Entry, ...] = ()


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
    """The front end is about to exit; the line says why."""

    line: str


FromFrontEnd = ToLedger | Listening | Attached | Detached | CannotStart | LinesDropped | Observed


class EngineSilent(NamedTuple):
    """The engine shows no sign of life, and may have stopped; or does again."""

    is_silent: bool


class Drain(NamedTuple):
    """The front end is to refuse new calls, let the running ones finish, and exit."""


FromSupervisor = FromLedger | Drain | Reconfigure | EngineSilent | Learnt
