"""Where calls come from, and how each of them ended, as far as a server can tell. Seconds.

Most callers name no application. Their calls are told apart by what the code that sends them has as
constants: the program's own name in the user agent, whether it streams, the deadline that it sets
and the most tokens that it wants, the last two roughly. Calls that name an application are that
application's.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

LONGEST_S = 1e5  # of a deadline, a day and some hours: a longer one is none


class CallSite(NamedTuple):
    """A place in somebody's code that sends calls. `share` is the name of the part of the engine
    that its tenant takes. `program` and `shape` are empty where an application is named.
    """

    share: str
    tenant: str
    application: str
    is_stream: bool
    program: str = ""
    shape: str = ""

    @property
    def told(self) -> str:
        """Returns its name for people, in one line of printable characters."""
        kind = "streams" if self.is_stream else "unary calls"
        of = f" of tenant {self.tenant}" if self.tenant else ""
        if self.application:
            return f"{kind} of application {self.application}{of}"
        by = f" by {self.program}" if self.program else ""
        return f"{kind} without an application{by}{of}, {self.shape}"


def site_of(
    share: str,
    tenant: str,
    application: str,
    is_stream: bool,
    user_agent: str = "",
    timeout_s: float | None = None,
    max_tokens: int | None = None,
) -> CallSite:
    """Returns where a call comes from. Names are to be checked before; of the user agent no more is
    kept than the first word, which a program may have put there.
    """
    if application:
        return CallSite(share, tenant, application, is_stream)
    shape = f"{_rough_deadline(timeout_s)}, {_rough_length(max_tokens)}"
    return CallSite(share, tenant, "", is_stream, _program(user_agent), shape)


def _program(user_agent: str) -> str:
    """Returns the name of the program, without its version: a release is no new program."""
    first = user_agent[:64].partition(" ")[0].partition("/")[0]
    is_told = first.isascii() and first.isprintable() and not first.startswith("grpc-")
    return first if is_told else ""


def _rough_deadline(timeout_s: float | None) -> str:
    """Returns about how long a call may take, in half octaves, so that what it lost on its way
    changes nothing for the usual round numbers.
    """
    if timeout_s is None or not 0 < timeout_s <= LONGEST_S:
        return "no deadline"
    return f"deadline about {2 ** (round(2 * math.log2(timeout_s)) / 2):.2g} s"


def _rough_length(max_tokens: int | None) -> str:
    """Returns about how many tokens a call wants, in octaves."""
    if max_tokens is None:
        return "no max_tokens"
    return f"max_tokens below {1 << min(32, max_tokens.bit_length())}"


class End(Enum):
    """How a call ended, as far as its caller chose it."""

    SERVED = "served"
    LEFT = "left"  # before the end, of the caller's own accord
    EXPIRED = "expired"


class Coming(NamedTuple):
    """How a call came, beside the others of its site: whether at once with the one before it, and
    whether as soon as another had been served; `rate` is how many come per second of late.
    """

    is_together: bool = False
    is_prompted: bool = False
    rate: float = 0.0


class Ended(NamedTuple):
    """A call that stated nothing, and is over."""

    end: End
    timeout_s: float  # from its arrival to its deadline; inf without
    silence_s: float  # the longest time for which its caller was seen to wait for anything to come
    output_len: int  # tokens that had come
    coming: Coming = Coming()
