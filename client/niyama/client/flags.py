"""The flags of a command that calls a server: how it is reached, and who calls.

The environment may say the same, which is kept out of `ps` and of every line typed:
NIYAMA_TLS=true, NIYAMA_CA, NIYAMA_CERT, NIYAMA_KEY, NIYAMA_SERVER_NAME and NIYAMA_TOKEN_FILE.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from niyama.client.options import ConnectionOptions

TRUE, FALSE = ("true", "yes", "on", "1"), ("", "false", "no", "off", "0")
_TLS = "NIYAMA_TLS"
# A variable is a flag's name in capitals.
_TEXTS = {
    "NIYAMA_CA": ("FILE", "PEM file of the authorities to trust (default: those of this machine)"),
    "NIYAMA_CERT": ("FILE", "PEM file of a certificate to show, with --key"),
    "NIYAMA_KEY": ("FILE", "PEM file of its private key"),
    "NIYAMA_SERVER_NAME": ("NAME", "whom the server's certificate names, if not the host"),
    "NIYAMA_TOKEN_FILE": ("FILE", "file of the token that says who calls, sent with every call"),
}


def add_connection(
    parser: argparse._ActionsContainer, environment: Mapping[str, str] = os.environ
) -> None:
    """Adds the flags to a parser or to one of its groups. Raises ArgumentError for a variable that
    is no good.
    """
    tls = environment.get(_TLS, "").lower()
    if tls not in (*TRUE, *FALSE):
        raise argparse.ArgumentError(None, f"{_TLS} is true or false, not {tls!r}")
    parser.add_argument(
        "--tls",
        action=argparse.BooleanOptionalAction,
        default=True if tls in TRUE else None,
        help="encrypt, as --ca and --cert say by themselves (default: $NIYAMA_TLS)",
    )
    for variable, (metavar, text) in _TEXTS.items():
        name = variable.removeprefix("NIYAMA_").lower().replace("_", "-")
        default = environment.get(variable) or None
        parser.add_argument(
            f"--{name}", metavar=metavar, default=default, help=f"{text}; or ${variable}"
        )
    parser.add_argument(
        "--allow-plaintext",
        action="store_true",
        help="send the token unencrypted to another machine, too",
    )


def connection(typed: argparse.Namespace) -> ConnectionOptions:
    """Returns the options of the clients of a command with these flags."""
    options = ConnectionOptions(
        allow_plaintext=typed.allow_plaintext,
        ca=typed.ca,
        cert=typed.cert,
        key=typed.key,
        server_name=typed.server_name,
        token=Path(typed.token_file) if typed.token_file else None,
    )
    if typed.tls is not None:
        options["tls"] = typed.tls
    return options
