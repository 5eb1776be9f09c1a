"""TLS: whom a client trusts, and how it shows who it is.

Certificates and keys are PEM, in a file or as bytes, and are read when the client is made.
"""

from __future__ import annotations

import os
import ssl

import grpc

from niyama.client import arguments

Pem = str | os.PathLike[str] | bytes  # the path of a file, or what would stand in one

_ROOTS_OF_GRPC = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"  # names a file that gRPC trusts instead
_KEY = b"PRIVATE KEY-----"


def credentials(
    tls: bool | None, ca: Pem | None, cert: Pem | None, key: Pem | None
) -> grpc.ChannelCredentials | None:
    """Returns what a connection is made with; None for one that is not encrypted.

    `tls` None stands for whether any of the others is given. Without `ca`, whom the machine trusts
    is trusted. Raises InvalidRequest for files that cannot be read or hold something else.
    """
    given = [name for name, pem in (("ca", ca), ("cert", cert), ("key", key)) if pem is not None]
    is_encrypted = bool(given) if tls is None else arguments.truth(tls, "tls")
    if not is_encrypted:
        if given:
            arguments.refuse(f"{given[0]} is for TLS, which is turned off", given[0])
        return None
    if (cert is None) != (key is None):
        missing = "cert" if cert is None else "key"
        arguments.refuse(f"{missing} is required: cert and key go together", missing)
    trusted = _machine_roots() if ca is None else _certificates(ca, "ca")
    own = None if cert is None else _certificates(cert, "cert")
    return grpc.ssl_channel_credentials(trusted, None if key is None else _key(key), own)


def _machine_roots() -> bytes | None:
    """Returns the certificates that this machine trusts; None: those that gRPC brings along or is
    told of, as where the machine has none.

    gRPC for Python looks at its own alone, and so would not know an authority of one's company.
    """
    path = ssl.get_default_verify_paths().cafile
    if path is None or os.environ.get(_ROOTS_OF_GRPC):
        return None
    return _read(path, "ca")


def _certificates(pem: Pem, field: str) -> bytes:
    data = _read(pem, field)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        arguments.refuse(f"{field} holds no certificates in PEM{_where(pem)}", field)
    return data


def _key(pem: Pem) -> bytes:
    data = _read(pem, "key")
    if _KEY not in data:
        arguments.refuse(f"key holds no private key in PEM{_where(pem)}", "key")
    return data


def _read(pem: Pem, field: str) -> bytes:
    if isinstance(pem, bytes):
        return pem
    if not isinstance(pem, str | os.PathLike):
        arguments.refuse(f"{field} is a file's path, or PEM as bytes", field)
    try:
        with open(pem, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        arguments.refuse(f"{field} {os.fspath(pem)}: {reason}", field)


def _where(pem: Pem) -> str:
    return "" if isinstance(pem, bytes) else f": {os.fspath(pem)}"
