"""How many replicas there are to be, and with what: the flags beside those of the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from engine.flags import Flag, from_text, marked
from engine.routing.router import ROUTINGS


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a fleet is told. Raises ValueError, naming the field first, for a value out of range."""

    replicas: Annotated[int, Flag("replicas, or with --most-replicas the fewest of them")] = 1
    most_replicas: Annotated[
        int, Flag("most replicas: as many run as the queued work needs (0: always --replicas)")
    ] = 0
    up_s: Annotated[
        float, Flag("for how long the work needs more replicas before one is started, in seconds")
    ] = 5.0
    down_s: Annotated[
        float, Flag("for how long it needs fewer before one is ended, in seconds")
    ] = 120.0
    routing: Annotated[str, Flag("which replica gets a call", tuple(sorted(ROUTINGS)))] = "qos"
    cpus: Annotated[float, Flag("CPUs of each replica, which are its engine's threads")] = 1.0
    gpus: Annotated[float, Flag("GPUs of each replica")] = 0.0

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {self.replicas}")
        if self.most_replicas and self.most_replicas < self.replicas:
            raise ValueError(
                f"most_replicas must be 0 or at least replicas, {self.replicas},"
                f" got {self.most_replicas}"
            )
        if self.routing not in ROUTINGS:
            raise ValueError(f"routing must be one of {', '.join(sorted(ROUTINGS))}")
        for name in ("cpus", "gpus", "up_s", "down_s"):
            if not 0 <= getattr(self, name) < 1e6:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def most(self) -> int:
        """Returns the most replicas that may run."""
        return max(self.replicas, self.most_replicas)


def of_arguments(arguments: Mapping[str, Any]) -> Fleet:
    """Returns the fleet that an application's arguments ask for, by the names of its fields; their
    values may be texts. Raises ValueError.
    """
    flags = {name: (kind, flag) for name, kind, flag in marked(Fleet)}
    if unknown := arguments.keys() - flags.keys():
        raise ValueError(f"{min(unknown)} is unknown; there are flags, {', '.join(flags)}")
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        try:
            values[name] = from_text(*flags[name], str(value))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
    return Fleet(**values)
