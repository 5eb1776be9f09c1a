"""Where a server is: HOST:PORT, or a name in one of gRPC's own schemes.

gRPC takes any text. Where that is no address, it says so in the first call's error, or on stderr,
or it connects to port 443; so an address is checked here before.
"""

from __future__ import annotations

import ipaddress
import re

from niyama.client import arguments

# https://grpc.github.io/grpc/core/md_doc_naming.html
_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/\[\]]+):([0-9]+)")
_MOST_PORT = 65535


def is_local(server: str) -> bool:
    """Returns whether what is sent to a checked address does not leave this machine, as far as the
    address itself says so.
    """
    scheme, colon, rest = server.partition(":")
    if colon and scheme in _SCHEMES:
        if scheme in ("unix", "unix-abstract"):
            return True
        hosts = rest.removeprefix("///").split(",") if scheme in ("dns", "ipv4", "ipv6") else [""]
    else:
        hosts = [server]
    return all(_is_local_host(each.rpartition(":")[0].strip("[]")) for each in hosts)


def _is_local_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check(server: object) -> str:
    """Returns the address, if it is one. Raises InvalidRequest with the field "server" if it is
    not.
    """
    address = arguments.text(server, "server")
    scheme, colon, rest = address.partition(":")
    match = _HOST_PORT.fullmatch(address)
    if colon and scheme in _SCHEMES:
        is_good = bool(rest.strip("/")) and rest.isprintable()
    else:
        is_good = match is not None and 0 < int(match[1][:6]) <= _MOST_PORT
    if not is_good or not address.isprintable():
        arguments.refuse(
            f"a server is named HOST:PORT, port 1 to {_MOST_PORT}, an IPv6 address in brackets;"
            f" got {arguments.shown(address)}",
            "server",
        )
    return address
