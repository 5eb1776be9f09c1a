"""`--make-token TENANT`: a token, shown this once, and its line for the file of tokens."""

from __future__ import annotations

import json
import sys

from server.identity import tokens


def main(tenant: str, as_json: bool) -> int:
    """Prints both. Returns 0; 2 where nobody can be called so.

    The line goes to stdout and the token to stderr, so that what is appended to the file is never
    the token; with `as_json` both go to stdout, for programs that know where to put it.
    """
    try:
        token, line = tokens.make(tenant)
    except ValueError as error:
        print(f"niyama-server: error: --make-token: {error}", file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps({"token": token, "line": line}))
        return 0
    print(line, flush=True)
    print(token, file=sys.stderr)
    return 0
