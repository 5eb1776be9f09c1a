"""Who serves: a policy, its parts and its replicas."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.pace import PaceConfig
from engine.deciding.policies import ORDERS
from loadgen.paper.load import CONTEXT_LEN
from loadgen.silos import CHUNKS
from loadgen.targets.profiles import A100
from loadgen.targets.simulated import Setup

# As published; only long requests are not cut.
PROFILE = replace(A100, context_len=CONTEXT_LEN)


@dataclass(frozen=True, slots=True)
class Contender:
    """Who serves in an experiment. `max_gap` is in TBT targets: without a bound the deadline
    envelope alone counts, as in the papers; 1 keeps the raw token pace.
    """

    policy: str = "niyama"
    chunk: int = CHUNKS[0]  # of the fixed-chunk policies; the papers'
    replicas: int = 1
    dynamic_chunks: bool = True
    relegation: bool = True
    hybrid: bool = True
    max_gap: float = math.inf
    predictor_error: float = 0.0

    def setup(self) -> Setup:
        """Returns the simulated replicas that this contender is."""
        niyama = NiyamaConfig(
            pace=PaceConfig(max_gap=self.max_gap),
            dynamic_chunks=self.dynamic_chunks,
            relegation=self.relegation,
            hybrid=self.hybrid,
            longest_wait_s=math.inf,  # as in the papers nobody is turned away
        )
        return Setup(
            PROFILE,
            policy=self.policy,
            chunk_size=self.chunk,
            replicas=self.replicas,
            predictor_error=self.predictor_error,
            niyama=niyama,
        )

    @property
    def name(self) -> str:
        """Returns what the tables call it: a policy, and its chunk where that is fixed."""
        return f"{self.policy}/{self.chunk}" if self.policy in ORDERS else self.policy
