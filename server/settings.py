"""Where the value of each of the server's flags comes from. The first that states it wins: the
command line, the environment (`NIYAMA_MAX_REQUESTS`), the operator's file, the flag's default.

What the first two say holds for the life of the process; the file may be read again.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from engine import tiers_file, toml_file
from engine.config import SECTIONS, EngineConfig
from engine.flags import Flag, add_flags, flags_of, from_text, from_toml, given, marked, option_of
from engine.tiers import Tiers
from engine.tiers_file import KEYS, MOST_NAME_BYTES
from engine.toml_file import BadFile, Document, Misstated, refuse_unknown, suggestion
from server import tier_port
from server.config import MONITORING, ServerConfig

PREFIX = "NIYAMA_"
OTHERS = frozenset(  # the client's names
    f"NIYAMA_{name}" for name in ("SERVER", "TOKEN_FILE", "TLS", "CA", "CERT", "KEY", "SERVER_NAME")
)
# What Kubernetes sets in a pod for a Service that is named niyama, NIYAMA_PORT among them.
_LINKS, _LINKED = ("NIYAMA_SERVICE_", "NIYAMA_PORT_"), ("tcp://", "udp://", "sctp://")
CONFIGURATION = "configuration"  # the section of flags that cannot stand in a file


class BadSetting(ValueError):
    """A value is no good. `source` states it, under `name`; `file` and `line` say where, if that is
    a file.
    """

    def __init__(self, name: str, what: str, source: Source) -> None:
        super().__init__(f"{source.subject(name)} {what}")
        self.name = name
        self.what = what
        self.source = source


class Source(NamedTuple):
    """Who states a value: `kind` is flag, environment, file or default, and `name` what they call
    it (`--max-requests`, `NIYAMA_MAX_REQUESTS`, `limits.max_requests`); of a file, where.
    """

    kind: str
    name: str = ""
    path: Path | None = None
    line: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"{self.path}:{self.line}"
        return f"{self.kind} {self.name}".strip()

    def subject(self, name: str) -> str:
        """Returns the beginning of a sentence on the value of the flag of that name."""
        if self.path is not None:
            return f"{self}: {self.name}"
        return self.name or option_of(name)


class Setting(NamedTuple):
    """The value of a flag, and who states it."""

    value: object
    source: Source


class Known(NamedTuple):
    """A flag of the server, with the type of its value; `default` is what holds where nobody states
    one.
    """

    kind: type[Any]
    flag: Flag
    default: object

    @property
    def section(self) -> str:
        """Returns the table of the file that it stands in."""
        return self.flag.section


def _known() -> Iterator[tuple[str, Known]]:
    server, engine = ServerConfig(), EngineConfig()
    for config in (server, engine):
        for name, kind, flag in marked(type(config)):
            yield name, Known(kind, flag, getattr(config, name))


_ORDER = [CONFIGURATION, *SECTIONS]
FLAGS: Mapping[str, Known] = dict(sorted(_known(), key=lambda each: _ORDER.index(each[1].section)))


@dataclass(frozen=True, slots=True)
class Resolved:
    """The configuration that comes of all sources together, and where each of its values comes
    from, in the order of `--help`.
    """

    config: ServerConfig
    settings: Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line (`flags`, by name) and the environment (`variables`, texts by the
    flag's name) say.
    """

    flags: Mapping[str, object]
    variables: Mapping[str, str]

    @property
    def path(self) -> Path | None:
        """Returns the operator's file, if there is one."""
        found = self.flags.get("config") or self.variables.get("config")
        return None if found is None else Path(str(found))

    def resolve(self, document: Document | None = None) -> Resolved:
        """Returns what holds with that file. Raises BadFile and BadSetting."""
        stated = {} if document is None else _stated(document)
        settings = {name: self._setting(name, known, stated) for name, known in FLAGS.items()}
        config = _made(settings)
        tiers = Tiers() if document is None else tiers_file.of(document)
        if what := tier_port.unknown(config.tier_port, tiers):
            raise BadSetting("tier_port", what, settings["tier_port"].source)
        return Resolved(config, settings)

    def _setting(self, name: str, known: Known, stated: Mapping[str, Setting]) -> Setting:
        if name in self.flags:
            return Setting(self.flags[name], Source("flag", option_of(name)))
        if name in self.variables:
            source = Source("environment", variable_of(name))
            try:
                value = from_text(known.kind, known.flag, self.variables[name])
            except ValueError as error:
                raise BadSetting(name, str(error), source) from None
            return Setting(value, source)
        return stated.get(name) or Setting(known.default, Source("default"))


def variable_of(name: str) -> str:
    """Returns the environment variable of a flag."""
    return PREFIX + name.upper()


def from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the texts of flags that the environment states, by the flag's name. An empty one is
    as if it were not set.
    """
    texts = {name: environment.get(variable_of(name), "") for name in FLAGS}
    if texts["port"].startswith(_LINKED):
        texts["port"] = ""
    return {name: text for name, text in texts.items() if text}


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Returns a note on each variable that looks like one of ours and is none."""
    known = {*map(variable_of, FLAGS), *OTHERS}
    return [
        f"{toml_file.named(name)} is unknown{suggestion(name, known, PREFIX)}"
        for name in sorted(environment)
        if name.startswith(PREFIX) and name not in known and not name.startswith(_LINKS)
    ]


def _stated(document: Document) -> dict[str, Setting]:
    """Returns what a file says of flags. Raises BadFile."""
    lines = toml_file.lines_of(document.text)
    try:
        found = {}
        for name, section, value in _entries(document.tables):
            known, keys = FLAGS[name], (section, name)
            try:
                value = from_toml(known.kind, known.flag, value, document.path.parent)
            except ValueError as error:
                raise Misstated(keys, str(error)) from None
            source = Source("file", f"{section}.{name}", document.path, lines.get(keys, 0))
            found[name] = Setting(value, source)
    except Misstated as error:
        raise document.blame(error) from None
    return found


def _entries(tables: dict[str, Any]) -> Iterator[tuple[str, str, object]]:
    """Yields name, section and value of what a file says of flags. Raises Misstated."""
    for key, table in tables.items():
        if key in KEYS:
            continue  # engine/tiers_file.py reads it
        if key in FLAGS and key not in SECTIONS:
            raise Misstated((key,), _belongs(key))
        refuse_unknown({key: table}, KEYS | SECTIONS.keys())
        if not isinstance(table, dict):
            raise Misstated((key,), f"must be a table: [{key}]")
        of_section = [name for name, known in FLAGS.items() if known.section == key]
        for name, value in table.items():
            if name in FLAGS and name not in of_section:
                raise Misstated((key, name), _belongs(name))
            refuse_unknown({name: value}, of_section, (key,))
            yield name, key, value


def _belongs(name: str) -> str:
    section = FLAGS[name].section
    if section == CONFIGURATION:
        return "cannot stand in a file"
    return f"belongs into [{section}]"


def _made(settings: Mapping[str, Setting]) -> ServerConfig:
    """Returns the configuration. Raises BadSetting for a value out of range."""

    def values(config: type[Any]) -> dict[str, Any]:
        return {name: settings[name].value for name in flags_of(config)}

    try:
        return ServerConfig(**values(ServerConfig), engine=EngineConfig(**values(EngineConfig)))
    except ValueError as error:
        name, _, what = str(error).partition(" ")
        source = settings[name].source if name in settings else Source("default")
        raise BadSetting(name, what, source) from error


# The command line


class Asked(NamedTuple):
    """What the server was started with. `checks` says that it is to say what would hold, and no
    more, and `token_of` that it is to make a token of that tenant; `as_json`, in which form it is
    to say so. `notes` are for the log.
    """

    given: Given
    checks: bool = False
    as_json: bool = False
    notes: Sequence[str] = ()
    token_of: str | None = None


class Started(NamedTuple):
    """The configuration to start with, and what it comes of."""

    config: ServerConfig
    given: Given
    document: Document | None


def ask(argv: Sequence[str], environment: Mapping[str, str]) -> Asked:
    """Reads command line and environment. Exits with a usage line for a flag that is no good."""
    parser = _parser()
    typed = parser.parse_args(argv)
    makes_token = typed.make_token is not None
    if typed.json and not (typed.check_config or makes_token):
        parser.error("--json is of --check-config and --make-token")
    if typed.check_config and makes_token:
        parser.error("--check-config and --make-token are two things")
    flags = {**given(ServerConfig, typed), **given(EngineConfig, typed)}
    asked = Given(flags, from_environment(environment))
    notes = unknown_variables(environment)
    return Asked(asked, typed.check_config, typed.json, notes, typed.make_token)


def load(path: Path | None) -> Document | None:
    """Returns what the operator's file says, if there is one. Raises BadFile."""
    return None if path is None else toml_file.parse(toml_file.read(path), path)


def started(asked: Given) -> Started:
    """Reads the operator's file, and returns what holds. Exits with one line where something is no
    good.
    """
    try:
        document = load(asked.path)
        return Started(asked.resolve(document).config, asked, document)
    except BadSetting as error:
        is_usage = error.source.kind in ("flag", "default")
        end(str(error), 2 if is_usage else 1)
    except BadFile as error:
        end(str(error), 1)


def parse(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> ServerConfig:
    """Returns the configuration that a command line asks for. Exits with a line for a bad one."""
    return started(ask(argv, environment).given).config


def end(line: str, code: int) -> NoReturn:
    """Ends the process with a line that says why."""
    print(f"niyama-server: error: {line}", file=sys.stderr)
    sys.exit(code)


class _WholePaths(argparse.HelpFormatter):
    """Breaks no path at its hyphens, so that it can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        whole = partial(textwrap.fill, break_on_hyphens=False, break_long_words=False)
        return whole(text, width, initial_indent=indent, subsequent_indent=indent)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="niyama-server",
        usage="niyama-server [FLAGS]  (--help lists them)",
        description="Serves one model, many latency targets, one queue.",
        formatter_class=_WholePaths,
        epilog="Every flag may be stated by an environment variable too, NIYAMA_MAX_REQUESTS for"
        " --max-requests, and by the file; a flag wins over a variable, and a variable over the"
        " file. A call names its tenant in the metadata key niyama-tenant (printable ASCII, at most"
        f" {MOST_NAME_BYTES} bytes). It is believed, unless --tokens-file or --tls-client-ca says"
        " who calls. Alerts for Prometheus and a dashboard for Grafana are in"
        f" {MONITORING}.".replace("%", "%%"),
    )
    parser.add_argument("--version", action="version", version=f"niyama-server {version('niyama')}")
    for section, about in {CONFIGURATION: None, **SECTIONS}.items():
        group = parser.add_argument_group(section, about)
        for config in (ServerConfig, EngineConfig):
            add_flags(group, config, shows_defaults=True, section=section, is_negatable=True)
        if section == CONFIGURATION:
            group.add_argument(
                "--check-config",
                action="store_true",
                help="print what would hold, as such a file, with who states each value, and start"
                " nothing; status 1 and the offending line where something is no good",
            )
            group.add_argument(
                "--make-token",
                metavar="TENANT",
                help="make a token of that tenant, and start nothing: the token goes to stderr,"
                " this once, and its line for --tokens-file to stdout, to be appended to that file",
            )
            group.add_argument(
                "--json",
                action="store_true",
                help="with --check-config or --make-token: print it as JSON, on stdout",
            )
    return parser
