"""Bearer tokens: which tenant's each is, by its digest alone.

The file that `--tokens-file` names is TOML, a line for each token, which `--make-token TENANT`
prints:

    8d5e...20c1 = { tenant = "acme" }
    77ab...09fe = { tenant = "acme", expires = 2027-06-30 }   # a tenant may have several

A token has 32 random bytes, so its SHA-256 cannot be turned back by guessing, and needs neither
salt nor a slow hash. What is short or repeats itself may be guessed, and is nobody's, whatever the
file says. A token that is shown is looked up by a digest with a key that each process draws anew,
so that the time which this takes tells nothing of the digests in the file.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from engine import toml_file
from engine.tiers_file import MOST_NAME_BYTES
from engine.toml_file import Keys, Misstated
from server.identity import private_file

PREFIX = "niyama_"  # by which scanners for leaked secrets find ours
TOKEN_BYTES = 32
LEAST_CHARS, LEAST_DISTINCT = 32, 10
MOST_TOKEN_BYTES = 4096
KEY = "authorization"
SCHEME = "bearer"
OPTION = "--tokens-file"
_FORM = 'a line is as in DIGEST = { tenant = "NAME" }'
_DIGEST = re.compile(r"[0-9a-f]{64}")

Digest = bytes


class Token(NamedTuple):
    """Whose a token is, by its digest; from `expires_at` (Unix time) on it is nobody's."""

    digest: Digest
    tenant: str
    expires_at: float | None = None


class Tokens:
    """Finds whose a token is."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._key = secrets.token_bytes(TOKEN_BYTES)
        self._known: Mapping[bytes, Token] = {self._blinded(each.digest): each for each in tokens}

    def __len__(self) -> int:
        return len(self._known)

    def tenant_of(self, token: str, now: float) -> str | None:
        """Returns whose tenant's the token is at `now`, in Unix time; None: nobody's."""
        digest = digest_of(token.encode())
        found = self._known.get(self._blinded(digest))
        if found is None or not hmac.compare_digest(found.digest, digest) or not is_strong(token):
            return None
        is_over = found.expires_at is not None and now >= found.expires_at
        return None if is_over else found.tenant

    def _blinded(self, digest: Digest) -> bytes:
        return hmac.digest(self._key, digest, "sha256")


def digest_of(token: bytes) -> Digest:
    """Returns a digest of the token. All are of the same length, so comparing them tells no
    length.
    """
    return hashlib.sha256(token).digest()


def is_strong(token: str) -> bool:
    """Returns whether a token is long and varied enough not to be guessed from its digest."""
    return len(token) >= LEAST_CHARS and len(set(token)) >= LEAST_DISTINCT


def shown(values: Iterable[str]) -> str | None:
    """Returns the token that a call's `authorization` shows, "" for one that is no good; None where
    it shows none.
    """
    found = list(values)
    if not found:
        return None
    scheme, _, token = found[0].partition(" ")
    is_token = len(found) == 1 and scheme.lower() == SCHEME
    return token.strip()[: MOST_TOKEN_BYTES + 1] if is_token else ""


def make(tenant: str) -> tuple[str, str]:
    """Returns a new token of the tenant, and its line for the file. Raises ValueError for a name
    that no call could state.
    """
    if not (0 < len(tenant) <= MOST_NAME_BYTES and tenant.isascii() and tenant.isprintable()):
        raise ValueError(
            f"a tenant's name is printable ASCII, not empty, of at most {MOST_NAME_BYTES} bytes"
        )
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    digest = digest_of(token.encode()).hex()
    return token, f"{digest} = {{ tenant = {json.dumps(tenant)} }}"


def read(path: Path) -> tuple[Token, ...]:
    """Returns the tokens of a file. Raises ValueError, with one line that names file and line, and
    nothing that stands there: it may be a token that somebody has put in the place of its digest.
    """
    found = private_file.read(path, OPTION, toml_file.MOST_BYTES)
    try:
        text = found.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{OPTION} {path}: is not UTF-8: {error.reason}") from error
    try:
        document = toml_file.parse(text, path)
    except toml_file.BadFile as error:
        place = f"{path}:{error.line}" if error.line else path
        raise ValueError(f"{OPTION} {place}: is no TOML; {_FORM}") from None
    try:
        return tuple(_token(digest, value) for digest, value in document.tables.items())
    except Misstated as error:
        raise ValueError(f"{OPTION} {document.blame(error)}") from None


def _token(digest: str, value: object) -> Token:
    """Returns what a line says. Raises Misstated, which repeats nothing of it."""
    keys: Keys = (digest,)
    if not _DIGEST.fullmatch(digest):
        raise _Unnamed(keys, "a line begins with a token's SHA-256, 64 hexadecimal digits")
    if not isinstance(value, dict):
        raise _Unnamed(keys, _FORM)
    if value.keys() - {"tenant", "expires"}:
        raise _Unnamed(keys, "a line says tenant and expires, and nothing else")
    tenant, expires = value.get("tenant"), value.get("expires")
    if not isinstance(tenant, str) or not 0 < len(tenant) <= MOST_NAME_BYTES:
        raise _Unnamed(keys, "tenant must be a name")
    if not (tenant.isascii() and tenant.isprintable()):
        raise _Unnamed(keys, "tenant must be printable ASCII")
    return Token(bytes.fromhex(digest), tenant, _instant(keys, expires))


def _instant(keys: Keys, value: object) -> float | None:
    """Returns a date's beginning or an instant as Unix time, in UTC where it names no zone."""
    if value is None:
        return None
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    if not isinstance(value, datetime.datetime):
        raise _Unnamed(keys, "expires must be a date, as 2027-06-30")
    return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()


class _Unnamed(Misstated):
    """What a file says under a key is no good, and the key is not told."""

    def __init__(self, keys: Keys, what: str) -> None:
        ValueError.__init__(self, what)
        self.keys = keys
