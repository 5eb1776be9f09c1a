"""Where calls come from, and how each of them ended, as far as a server can tell. Seconds.

Most callers name no application. Their calls are told apart by what the code that sends them has as
constants: the program's own name in the user agent, whether it streams, the deadline that it sets
and the most tokens that it wants, the last two roughly. Calls that name an application are that
application's.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from enum import Enum
from typing import NamedTuple

LONGEST_S = 1e5  # of a deadline, a day and some hours: a longer one is none
MOST_SITES = 4096  # of which one front end remembers when a call came last
RATE_CALLS = 256  # of late, by which their rate is known
IDLE_S = 10.0  # of a pause, as far as it counts in that
AT_ONCE_S = 0.02  # between two arrivals that one program sent at the same time
# From the end of one call to the arrival of the next, where a program waited for it: people need
# 0.2 s and more to react to anything.
REACTION_S = 0.05


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


class Rhythm:
    """Sees how calls come, beside the others of their site, at one front end. A connection stays
    with its front end, and so mostly does a program that sends one call after the other.
    """

    def __init__(self, most_sites: int = MOST_SITES) -> None:
        self._most = most_sites
        self._last: OrderedDict[CallSite, _Last] = OrderedDict()

    def arrive(self, site: CallSite, now: float) -> Coming:
        """Notes an arrival; returns how it came."""
        last = self._last.pop(site, None)
        if last is None:
            self._last[site] = _Last(now)
            if len(self._last) > self._most:
                self._last.popitem(last=False)
            return Coming()
        self._last[site] = last
        return last.arrive(now)

    def served(self, site: CallSite, now: float) -> None:
        """Notes that a call has been served. Who leaves and comes again at once has not waited for
        an end, as whoever types on does.
        """
        last = self._last.get(site)
        if last is not None:
            last.served_at = now


class _Last:
    """When a call of a site last came and was last served, and how often they come."""

    __slots__ = ("_arrived_at", "_num", "_span_s", "served_at")

    def __init__(self, now: float) -> None:
        self._arrived_at = now
        self.served_at = -math.inf
        self._num, self._span_s = 0.0, 0.0

    def arrive(self, now: float) -> Coming:
        gap_s, self._arrived_at = max(0.0, now - self._arrived_at), now
        self._num += 1
        self._span_s += min(gap_s, IDLE_S)
        rate = self._num / self._span_s if self._span_s else math.inf
        if self._num >= RATE_CALLS:
            self._num, self._span_s = self._num / 2, self._span_s / 2
        return Coming(gap_s <= AT_ONCE_S, 0 <= now - self.served_at <= REACTION_S, rate)
