"""The settings of a scheduler, and their defaults, which `EngineConfig` takes from here."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.pages import PAGE_SIZE
from engine.deciding.policies import POLICIES


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """How large its memory and its iterations are, and by which policy it decides. Sizes are in
    tokens unless said otherwise.

    Raises ValueError, naming the field first, for a value out of range.
    """

    num_pages: int
    context_len: int
    page_size: int = PAGE_SIZE
    policy: str = "niyama"
    chunk_size: int = 256  # of the fixed-chunk policies: all tokens of an iteration
    max_batch_size: int = 64  # sequences that have started and not finished
    prefix_caching: bool = True
    record_capacity: int = 10_000  # requests whose story is remembered; 0 for none
    token_events: bool = True  # a Sampled for every token; a simulation has no streams to feed
    # A request's output is guessed as the mean of its application's and so many deviations more.
    output_deviations: float = 0.0
    niyama: NiyamaConfig = field(default_factory=NiyamaConfig)

    def __post_init__(self) -> None:
        for name in ("num_pages", "context_len", "page_size", "chunk_size", "max_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.record_capacity < 0:
            raise ValueError(f"record_capacity must be 0 or more, got {self.record_capacity}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
