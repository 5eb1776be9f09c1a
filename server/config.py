"""What the server is told: the only place where its flags have defaults.

Every field made with `option` is a flag (`max_requests` is `--max-requests`); the engine's own
options are flags too. Durations in seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from engine.driving.config import EngineConfig, option

LOG_FORMATS = ("auto", "console", "json")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Raises ValueError, naming the field first, for a value out of range."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(50051, "port to listen on (0: any free one; the ready line names it)")
    config: Path | None = option(None, "TOML file with tiers and application presets")
    max_requests: int = option(1024, "most requests waiting or running; beyond it, try later")
    max_message_bytes: int = option(4 << 20, "most bytes in one incoming message")
    drain_s: float = option(30.0, "seconds that running requests get to finish after SIGTERM")
    metrics_port: int = option(0, "port of the Prometheus metrics (0: none)")
    log_format: str = option("auto", "auto is json unless a terminal reads", choices=LOG_FORMATS)
    log_level: str = option("info", "least level logged", choices=("debug", "info", "warning"))
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name} must be between 0 and 65535, got {getattr(self, name)}")
        for name in ("max_requests", "max_message_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.drain_s >= 0:
            raise ValueError(f"drain_s must not be negative, got {self.drain_s}")


def parse(argv: Sequence[str]) -> ServerConfig:
    """The configuration that the command line asks for. Exits with a usage line where it is bad."""
    parser = argparse.ArgumentParser(
        prog="niyama-server", description="Serves one model, many latency targets, one queue."
    )
    _add_flags(parser, ServerConfig)
    _add_flags(parser, EngineConfig)
    arguments = vars(parser.parse_args(argv))
    try:
        engine = EngineConfig(**_chosen(arguments, EngineConfig))
        return ServerConfig(**_chosen(arguments, ServerConfig), engine=engine)
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        parser.error(f"--{name.replace('_', '-')} {rest}")


def _options(config: type) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(config) if "help" in f.metadata]


def _add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    hints = get_type_hints(config)
    for f in _options(config):
        kind = Path if hints[f.name] in (Path, Path | None) else hints[f.name]
        note = "" if f.default in (None, "", 0) or f.name == "model" else " (default: %(default)s)"
        parser.add_argument(
            f"--{f.name.replace('_', '-')}",
            type=kind,
            default=f.default,
            choices=f.metadata.get("choices"),
            help=f.metadata["help"] + note,
        )


def _chosen(arguments: dict[str, Any], config: type) -> dict[str, Any]:
    return {f.name: arguments[f.name] for f in _options(config)}
