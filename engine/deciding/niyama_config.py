"""The settings of the Niyama policy, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.deciding.pace import PaceConfig


@dataclass(frozen=True, slots=True)
class NiyamaConfig:
    """What an operator may set. The switches exist to measure what each part is worth.

    Raises ValueError, naming the field, for a share that is not in [0, 1) and a wait that is not
    positive.
    """

    pace: PaceConfig = field(default_factory=PaceConfig)
    allowance: float = 0.0  # share of requests that may be relegated early, costliest first
    background_share: float = 0.02  # of prefill tokens, for best effort and relegated requests
    longest_wait_s: float = 600.0  # in the background, see background.py; inf: without end
    max_held_share: float = 0.25  # of the memory, for decodes that sit out
    dynamic_chunks: bool = True
    hybrid: bool = True
    relegation: bool = True

    def __post_init__(self) -> None:
        for name in ("allowance", "background_share", "max_held_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.longest_wait_s > 0:
            raise ValueError(f"longest_wait_s must be positive, got {self.longest_wait_s}")
