"""The status page as one document that needs nothing else: its style and its script are in it.

It is the same for everybody, whatever the server does: what it shows it reads from `/status.json`,
every other second, and writes as text, so that nothing of it is ever taken for markup. The policy
lets it run its own script and style alone, and talk to nobody but the server it came from.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, StrictUndefined


def _part(name: str) -> str:
    return files("server.status").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Returns a source of a Content-Security-Policy: what has this digest."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


_STYLE = _part("page.css")
_SCRIPT = "\n".join(("'use strict';", *map(_part, ("charts.js", "page.js"))))
PAGE = (
    Environment(autoescape=True, undefined=StrictUndefined)
    .from_string(_part("page.html"))
    .render(style=_STYLE, script=_SCRIPT)
    .encode()
)
POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_digest(_SCRIPT)}",
        f"style-src {_digest(_STYLE)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
