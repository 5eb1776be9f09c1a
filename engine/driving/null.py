"""An engine without a model, for measuring what stands in front of it.

The scheduler is real, an iteration costs nothing, and a token depends on its request's seed and its
position alone.
"""

from __future__ import annotations

from engine.checkpoint.opening import open_source
from engine.checkpoint.options import Choices
from engine.config import EngineConfig
from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from engine.deciding.plan import Done, Plan, Token
from engine.driving.assemble import assemble
from engine.driving.loop import Engine

_BYTES_PER_TOKEN = 2048  # of the KV memory that it pretends to have
_DEFAULT_KV_MIB = 256
_PROFILE = LatencyProfile("null", (Segment(UNBOUNDED, 1e-4, 1e-7),))
_CHOICES = Choices("none", "none", False, "", "none", (0, 0), 0, 0, 0)  # there is nothing to choose


class NullExecutor:
    """Samples without computing. Tokens are drawn from the upper half of the vocabulary, where
    no special ones are.
    """

    compilations = 0

    def __init__(self, vocab_size: int) -> None:
        self._first = vocab_size // 2
        self._count = vocab_size - self._first

    def launch(self, plan: Plan) -> Done:
        """Returns an iteration that is over at once."""
        return Done(
            [
                Token(
                    self._first + ((s.request.sampling.seed or 0) + 7 * s.num_known) % self._count
                )
                for s in plan.sampling
            ]
        )


def build(config: EngineConfig, profile: LatencyProfile = _PROFILE) -> Engine:
    """Builds the engine without loading torch. A config names it "engine.driving.null:build".
    `profile` is what its scheduler believes until iterations tell.
    """
    model = open_source(config.model).model_config()
    kv_bytes = (config.kv_memory_mib or _DEFAULT_KV_MIB) << 20
    num_pages = kv_bytes // (_BYTES_PER_TOKEN * config.page_size)
    executor = NullExecutor(model.vocab_size)
    return assemble(
        config, model, executor, profile, num_pages, dtype="none", device="none", choices=_CHOICES
    )
