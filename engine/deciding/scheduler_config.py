"""What an operator sets of a scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.deciding.niyama import NiyamaConfig
from engine.deciding.policies import POLICIES


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Sizes in tokens unless said otherwise. Raises ValueError, naming the field."""

    num_pages: int
    context_len: int
    page_size: int = 16
    policy: str = "niyama"
    chunk_size: int = 256  # of the fixed-chunk policies: all tokens of an iteration
    max_batch_size: int = 256  # sequences that have started and not finished
    prefix_caching: bool = True
    record_capacity: int = 10_000  # requests whose story is remembered; 0 for none
    token_events: bool = True  # a Sampled for every token; a simulation has no streams to feed
    output_deviations: float = 0.0  # added to the mean output, for the guess of a request's own
    niyama: NiyamaConfig = field(default_factory=NiyamaConfig)

    def __post_init__(self) -> None:
        for name in ("num_pages", "context_len", "page_size", "chunk_size", "max_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.record_capacity < 0:
            raise ValueError(f"record_capacity must be 0 or more, got {self.record_capacity}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
