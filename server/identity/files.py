"""What the files of the section `[identity]` say, as they were last found good.

Who serves reads them; front ends in processes of their own are told.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from engine import toml_file
from server.config import ServerConfig
from server.identity import certificates, private_file, tokens
from server.identity.certificates import CERTIFICATE, CLIENT_CA, KEY, Tls
from server.identity.tokens import MOST_TOKEN_BYTES, Digest, Token, digest_of

ADMIN = "--admin-token-file"


class Files(NamedTuple):
    """The digest of the operator's token, callers' tokens, and what TLS is made with; each None
    where no file is named.
    """

    admin: Digest | None = None
    tokens: tuple[Token, ...] | None = None
    tls: Tls | None = None


NONE = Files()


def paths_of(config: ServerConfig) -> list[Path]:
    """Returns the files of the section."""
    named = (
        config.admin_token_file,
        config.tokens_file,
        config.tls_certificate,
        config.tls_key,
        config.tls_client_ca,
    )
    return [path for path in named if path is not None]


def read(config: ServerConfig) -> Files:
    """Returns what the files say now. Raises ValueError, with one line that begins with the flag
    that names the file, for one that is no good.
    """
    admin = None if config.admin_token_file is None else _admin(config.admin_token_file)
    own = None if config.tokens_file is None else tokens.read(config.tokens_file)
    return Files(admin, own, _tls(config))


def differing(before: Files, after: Files) -> list[str]:
    """Returns what differs, by the names that the operator's file has for it."""
    names = {"admin": "admin_token_file", "tokens": "tokens_file"}
    found = [key for name, key in names.items() if getattr(before, name) != getattr(after, name)]
    old, new = before.tls, after.tls
    if old is not None and new is not None:
        if (old.certificate, old.key) != (new.certificate, new.key):
            found.append("tls_certificate")
        if old.client_ca != new.client_ca:
            found.append("tls_client_ca")
    return [f"identity.{name}" for name in found]


def _admin(path: Path) -> Digest:
    token = private_file.read(path, ADMIN, toml_file.MOST_BYTES).strip()
    if not 0 < len(token) <= MOST_TOKEN_BYTES or not all(0x20 < byte < 0x7F for byte in token):
        raise ValueError(
            f"{ADMIN} {path}: a token is one word of printable ASCII, of at most"
            f" {MOST_TOKEN_BYTES} bytes"
        )
    return digest_of(token)


def _tls(config: ServerConfig) -> Tls | None:
    certificate, key, client_ca = config.tls_certificate, config.tls_key, config.tls_client_ca
    if certificate is None and key is None:
        if client_ca is not None:
            raise ValueError(f"{CLIENT_CA} {client_ca}: wants {CERTIFICATE} and {KEY} beside it")
        return None
    if certificate is None:
        raise ValueError(f"{KEY} {key}: wants {CERTIFICATE} beside it")
    if key is None:
        raise ValueError(f"{CERTIFICATE} {certificate}: wants {KEY} beside it")
    return certificates.read(certificate, key, client_ca)
