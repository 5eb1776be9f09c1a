"""Greedy output is the same alone and in any company: the real scheduler on a real, tiny model.

Random weights in float64, so that no two tokens are ever near a tie and any difference is a fault
of scheduling, paging or prefix sharing: a page granted twice, a position computed against the
wrong context, a token lost in a preemption.
"""

from __future__ import annotations

import random

import pytest
import torch

from engine.checkpoint.model_config import ModelConfig
from engine.computing.attention.gathered import GatheredKv
from engine.computing.model import Decoder
from engine.computing.runner import ModelExecutor
from engine.deciding.plan import Finished, Sampled
from engine.deciding.policies import POLICIES
from engine.deciding.request import Importance
from engine.deciding.scheduler import Scheduler
from engine.deciding.sequence import FinishReason
from tests.engine.deciding.parts import TARGETS, make_request, make_scheduler

PAGE_SIZE, CONTEXT, NUM_PAGES = 2, 40, 21  # 20 pages hold the longest sequence
OUTPUT = 20
CONFIG = ModelConfig(
    vocab_size=29,
    hidden_size=12,
    intermediate_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=6,
    max_positions=CONTEXT,
)


@pytest.fixture(scope="module")
def executor() -> ModelExecutor:
    torch.set_num_threads(1)
    model = Decoder(CONFIG, torch.float64)
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        parameter.data.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.5, generator=generator)
    return ModelExecutor(model, GatheredKv(CONFIG, NUM_PAGES, PAGE_SIZE, torch.float64))


def make_prompts() -> list[list[int]]:
    """Some share their first pages, some are as long as the context allows."""
    rng = random.Random(5)
    common = [rng.randrange(29) for _ in range(12)]
    own = [[rng.randrange(29) for _ in range(n)] for n in (1, 3, 4, 7, 9, 14, 20)]
    return [*own, [*common, 7], [*common, 8, 9], common[:8] + own[3]]


class Company:
    """Requests that share an engine; their ids tell the prompt."""

    def __init__(self, scheduler: Scheduler, executor: ModelExecutor) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.outputs: dict[str, list[int]] = {}
        self.finished: list[Finished] = []
        self.now = 0.0

    def step(self, slowdown: float = 1.0) -> None:
        plan = self.scheduler.plan(self.now)
        if plan is None:
            return
        tokens = self.executor.run(plan)
        self.now += slowdown * plan.predicted_s
        for event in self.scheduler.commit(plan, tokens, self.now):
            if isinstance(event, Sampled):
                self.outputs.setdefault(event.request_id, []).append(event.token.id)
            elif isinstance(event, Finished):
                self.finished.append(event)

    def drain(self) -> None:
        while self.scheduler.totals.num_finished < self.scheduler.totals.num_submitted:
            self.step()


@pytest.fixture(scope="module")
def alone(executor: ModelExecutor) -> list[list[int]]:
    """Each prompt's output with nobody else there, its prompt in one chunk, nothing shared."""
    outputs = []
    for prompt in make_prompts():
        scheduler = make_scheduler(
            "fcfs",
            NUM_PAGES,
            page_size=PAGE_SIZE,
            context_len=CONTEXT,
            chunk_size=CONTEXT,
            prefix_caching=False,
        )
        company = Company(scheduler, executor)
        scheduler.submit(make_request("0", prompt, OUTPUT), 0.0)
        company.drain()
        outputs.append(company.outputs["0"])
    assert len({tuple(o) for o in outputs}) == len(outputs), "outputs that tell nothing apart"
    return outputs


def random_company(policy: str, seed: int, executor: ModelExecutor) -> Company:
    """Decodes and prefills lose their pages: there is room for one of the longest sequences."""
    rng = random.Random(seed)
    scheduler = make_scheduler(
        policy,
        NUM_PAGES,
        page_size=PAGE_SIZE,
        context_len=CONTEXT,
        chunk_size=rng.choice((3, 8, 20)),
        max_batch_size=rng.choice((3, 5, 8)),
        prefix_caching=rng.random() < 0.7,
    )
    company = Company(scheduler, executor)
    prompts = make_prompts()
    for number in range(7):
        which = rng.randrange(len(prompts))
        request = make_request(
            f"{number}:{which}",
            prompts[which],
            rng.randint(5, OUTPUT),
            company.now,
            rng.choice(TARGETS),
            rng.choice(list(Importance)),
            tenant=rng.choice("ab"),
        )
        scheduler.submit(request, company.now)
        for _ in range(rng.choice((0, 1, 2, 6))):
            company.step(rng.choice((0.5, 1.0, 4.0)))
        if rng.random() < 0.1:
            scheduler.cancel(request.id, FinishReason.CANCELLED, company.now)
    company.drain()
    return company


@pytest.mark.parametrize("policy", POLICIES)
def test_greedy_output_is_the_same_alone_and_in_any_company(
    policy: str, executor: ModelExecutor, alone: list[list[int]]
) -> None:
    companies = [random_company(policy, seed, executor) for seed in range(50)]
    for company in companies:
        for name, output in company.outputs.items():
            expected = alone[int(name.partition(":")[2])]
            assert output == expected[: len(output)], name
    finished = [f for company in companies for f in company.finished]
    assert sum(f.num_preemptions > 0 for f in finished) > 20, "preemption was not put to the test"
    assert sum(f.cached_tokens > 0 for f in finished) > 20, "nor prefix sharing"
