"""The server's certificate and key, and whose clients' certificates it believes: read and checked.

They are checked as they will be used: that the key is the certificate's, that the time is right,
that the authority's file holds one. gRPC itself would take them without a word and fail each
handshake. Instants are Unix time in seconds.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from server.identity import private_file

MOST_BYTES = 1 << 20
CERTIFICATE, KEY, CLIENT_CA = "--tls-certificate", "--tls-key", "--tls-client-ca"
_SEQUENCE, _UTC_TIME, _EXPLICIT_0 = 0x30, 0x17, 0xA0  # tags of DER
_PEM_BEGIN, _PEM_END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Tls:
    """What handshakes are made with, as PEM: the chain, its key, and the authorities of clients'
    certificates, None where clients show none. The first certificate holds until `expires_at`.
    """

    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    client_ca: bytes | None = field(repr=False)
    expires_at: float


def read(certificate: Path, key: Path, client_ca: Path | None) -> Tls:
    """Returns what the files hold. Raises ValueError, with one line that names the flag and the
    file, where that is no good now.
    """
    chain = private_file.read(certificate, CERTIFICATE, MOST_BYTES, is_secret=False)
    begins_at, expires_at = _validity(chain, f"{CERTIFICATE} {certificate}")
    secret = private_file.read(key, KEY, MOST_BYTES)
    _check_pair(chain, secret, f"{KEY} {key}", certificate)
    now = time.time()
    if now >= expires_at:
        raise ValueError(f"{CERTIFICATE} {certificate}: has expired, on {day(expires_at)}")
    if now < begins_at:
        raise ValueError(f"{CERTIFICATE} {certificate}: does not hold before {day(begins_at)}")
    authorities = None
    if client_ca is not None:
        authorities = private_file.read(client_ca, CLIENT_CA, MOST_BYTES, is_secret=False)
        _check_authorities(authorities, f"{CLIENT_CA} {client_ca}", now)
    return Tls(chain, secret, authorities, expires_at)


def day(instant: float) -> str:
    """Returns an instant to the minute, for a person."""
    return f"{datetime.datetime.fromtimestamp(instant, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _check_pair(chain: bytes, key: bytes, what: str, certificate: Path) -> None:
    """Raises ValueError where the key is none, is locked, or is not that of the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        with _in_memory(chain) as chain_file, _in_memory(key) as key_file:
            context.load_cert_chain(chain_file, key_file, password=_ask_nobody)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{what}: is not the key of {certificate}") from None
        reason = (error.reason or "no PEM").replace("_", " ").lower()
        raise ValueError(f"{what}: cannot be used with {certificate}: {reason}") from None
    except _IsLocked:
        raise ValueError(f"{what}: is locked by a passphrase, and nobody could give it") from None
    except OSError as error:  # as where the process has no descriptor left
        raise ValueError(f"{what}: cannot be checked: {error.strerror}") from error


class _IsLocked(Exception):
    """A key wants a passphrase."""


def _ask_nobody() -> str:
    raise _IsLocked


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """Yields the path of a file that exists in memory alone: Python's ssl reads files."""
    with os.fdopen(os.memfd_create("niyama"), "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _check_authorities(found: bytes, what: str, now: float) -> None:
    """Raises ValueError where there is no authority that still holds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cadata=found.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        raise ValueError(f"{what}: holds no certificates in PEM") from None
    ends = [str(each["notAfter"]) for each in context.get_ca_certs()]
    if not ends:
        raise ValueError(f"{what}: holds no certificate of an authority")
    if all(ssl.cert_time_to_seconds(end) <= now for end in ends):
        raise ValueError(f"{what}: has expired")


# The time in which a certificate holds: Python's ssl tells it of certificates that it has verified,
# and of a server's own it verifies none.


def _validity(chain: bytes, what: str) -> tuple[float, float]:
    """Returns the instants from and until which the first certificate of a chain holds. Raises
    ValueError where there is none.
    """
    try:
        text = chain.decode("ascii", "ignore")
        begin = text.index(_PEM_BEGIN)
        end = text.index(_PEM_END, begin) + len(_PEM_END)
        (_, certificate), *_ = _values(ssl.PEM_cert_to_DER_cert(text[begin:end]))
        (_, signed), *_ = _values(certificate)
        parts = [each for each in _values(signed) if each[0] != _EXPLICIT_0]
        _, _, _, (tag, validity), *_ = parts  # serial number, algorithm, issuer, validity
        if tag != _SEQUENCE:
            raise ValueError("no validity")
        begins, ends = (_instant(*each) for each in _values(validity))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{what}: holds no certificate in PEM") from error
    return begins, ends


def _values(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields tag and content of each value of a sequence's content (X.690, 8.1). Raises ValueError
    and IndexError.
    """
    while der:
        tag, length, head = der[0], der[1], 2
        if length & 0x80:
            head += length & 0x7F
            length = int.from_bytes(der[2:head], "big")
        if len(der) < head + length:
            raise ValueError("cut short")
        yield tag, der[head : head + length]
        der = der[head + length :]


def _instant(tag: int, content: bytes) -> float:
    """Returns a time of a certificate (RFC 5280, 4.1.2.5) as Unix time."""
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: from 1950 to 2049
        text = ("19" if text >= "50" else "20") + text
    found = datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ")
    return found.replace(tzinfo=datetime.UTC).timestamp()
