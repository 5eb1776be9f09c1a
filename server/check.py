"""`--check-config`: what would hold, and who states it, without starting anything.

Printed is a file that can be saved and used: every flag in the table of its section, then tiers,
applications and tenants, each value with its source as a comment. Where something is no good the
line that says so goes to stderr, with the file's line where a file states it. With `--json` both
are JSON on stdout, in one line.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine import tiers_file
from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.opening import open_source
from engine.tiers import Tiers
from engine.toml_file import BadFile, Document
from server.identity import certificates, files
from server.identity.files import Files
from server.identity.identities import unlimited
from server.identity.watching import NEAR_S
from server.listening import exposure
from server.settings import (
    CONFIGURATION,
    FLAGS,
    Asked,
    BadSetting,
    Resolved,
    load,
)

_TABLES = ("tiers", "applications", "tenants")


def main(asked: Asked) -> int:
    """Prints what would hold. Returns 0; 1 where something is no good."""
    try:
        document = load(asked.given.path)
        resolved = asked.given.resolve(document)
        tiers = Tiers() if document is None else tiers_file.of(document)
        for name, what in _missing(resolved):
            raise BadSetting(name, what, resolved.settings[name].source)
    except (BadFile, BadSetting) as error:
        if asked.as_json:
            print(json.dumps({"error": _error(error)}))
        else:
            print(f"niyama-server: error: {error}", file=sys.stderr)
        return 1
    identity = files.read(resolved.config)
    notes = (*asked.notes, *exposure.notes(resolved.config), unlimited(identity, tiers))
    warnings = [f"warning: {note}" for note in notes if note]
    for line in (*warnings, *_expiry(identity)):
        print(f"niyama-server: {line}", file=sys.stderr)
    if asked.as_json:
        said = [json.dumps(to_dict(resolved, document))]
    else:
        said = list(lines(resolved, document))
    return _print(said)


def _print(said: list[str]) -> int:
    """Prints lines. Returns 0; 1 where they are not taken, as by `head`, or cannot be written."""
    try:
        sys.stdout.buffer.write("".join(f"{line}\n" for line in said).encode())
        sys.stdout.buffer.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        if not isinstance(error, BrokenPipeError):
            print(f"niyama-server: error: cannot print: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def lines(resolved: Resolved, document: Document | None) -> Iterator[str]:
    """Yields what holds, as the lines of a file."""
    section = ""
    own = {} if document is None else document.tables
    for key in ("default_tier", "deadline_is_target"):
        if key in own and document is not None:
            yield _line(key, own[key], _place(document, (key,)))
    for name, setting in resolved.settings.items():
        known = FLAGS[name]
        if known.section == CONFIGURATION:
            continue
        if known.section != section:
            section = known.section
            yield f"\n[{section}]"
        yield _line(name, setting.value, str(setting.source))
    if document is None or not own.get("tiers"):
        yield "\n# No tiers are stated: interactive, standard and batch hold, no tighter than what"
        yield "# the machine can keep, once it has been measured."
    for table in _TABLES:
        for name, values in own.get(table, {}).items():
            assert document is not None
            yield f"\n[{table}.{_key(name)}]"
            for key, value in values.items():
                yield _line(key, value, _place(document, (table, name, key)))


def to_dict(resolved: Resolved, document: Document | None) -> dict[str, Any]:
    """Returns what holds as JSON has it; infinity is a text."""
    found: dict[str, Any] = {}
    for name, setting in resolved.settings.items():
        of_section = found.setdefault(FLAGS[name].section, {})
        of_section[name] = {"value": _plain(setting.value), "source": str(setting.source)}
    own = {} if document is None else document.tables
    rest = {key: own[key] for key in sorted(tiers_file.KEYS & own.keys())}
    return {"settings": found, **_plain(rest)}


def _missing(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Yields name of a flag and what is wrong with what its value names: folders and files that are
    needed at start.
    """
    config = resolved.config
    try:
        open_source(config.engine.model).model_config()
    except CheckpointError as error:
        yield "model", f"cannot be served: {error}"
    try:
        files.read(config)
    except ValueError as error:
        option, _, what = str(error).partition(" ")
        yield option.removeprefix("--").replace("-", "_"), what
    if why := exposure.exposed(config):
        yield "host", why
    written = {
        "decision_log": config.engine.decision_log,
        "save_profile": config.engine.save_profile,
    }
    for name, path in written.items():
        if path is not None and (what := _cannot_be_written(path)):
            yield name, what


def _expiry(identity: Files) -> Iterator[str]:
    """Yields until when the certificate holds, where there is one."""
    tls = identity.tls
    if tls is not None:
        ends = f"the certificate holds until {certificates.day(tls.expires_at)}"
        is_soon = time.time() >= tls.expires_at - NEAR_S
        yield f"warning: {ends}, which is soon" if is_soon else f"note: {ends}"


def _cannot_be_written(path: Path) -> str:
    if path.is_dir():
        return f"names a folder: {path}"
    if not path.parent.is_dir():
        return f"names a file in no folder: there is no {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"cannot be written: {path}"
    return ""


def _error(error: BadFile | BadSetting) -> dict[str, object]:
    if isinstance(error, BadSetting):
        source = error.source
        path, line = source.path, source.line
        stated = {"setting": f"{FLAGS[error.name].section}.{error.name}", "source": source.kind}
    else:
        path, line, stated = error.path, error.line, {"source": "file"}
    return {
        "message": str(error),
        "what": error.what,
        **stated,
        "file": None if path is None else str(path),
        "line": line or None,
    }


def _place(document: Document, keys: tuple[str, ...]) -> str:
    return f"{document.path}:{document.line_of(keys)}"


def _line(key: str, value: object, source: str) -> str:
    """Returns a value's line; one of a value that TOML has none for is a comment."""
    comment = "".join(each if each.isprintable() else "?" for each in source)
    written = _written(value)
    if written is None:
        return f"# {_key(key)} is not set  # {comment}"
    return f"{_key(key)} = {written}  # {comment}"


def _written(value: object) -> str | None:
    """Returns a value as TOML; None for what TOML has no value for."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Path):
        return _text(str(value.absolute()))
    if isinstance(value, list):
        return f"[{', '.join(str(_written(each)) for each in value)}]"
    if isinstance(value, tuple):  # of a flag that may be given several times
        return _written([str(each) for each in value])
    return _text(value) if isinstance(value, str) else None


def _text(text: str) -> str | None:
    """Returns a text as TOML; None where it is none, as a name of a file that is no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    is_bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if is_bare else str(_text(name))


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, tuple):
        return [str(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value.absolute()) if isinstance(value, Path) else value
