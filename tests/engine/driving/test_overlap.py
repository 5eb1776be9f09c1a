"""The loop looking ahead with the embedded model: its clients see what they see without.

On a CPU an iteration is computed by its launch, so what is shown here is which iterations are
launched, with which tokens, and what becomes of them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence

import pytest
import torch

from engine.checkpoint.source import Folder
from engine.computing.loading import load
from engine.computing.runner import ModelExecutor
from engine.config import EngineConfig
from engine.deciding.latency import LatencyModel
from engine.deciding.plan import Finished, Token
from engine.deciding.request import BEST_EFFORT, Request, Sampling, Targets
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig
from engine.deciding.sequence import FinishReason
from engine.driving.assemble import assemble
from engine.driving.build import UNCALIBRATED
from engine.driving.loop import EngineLoop
from engine.driving.null import NullExecutor
from engine.embedded import FOLDER
from engine.messages import Cancel, Command, Report, Submit

PAGES, PAGE = 14, 8  # three of the requests fill it
STOPS = frozenset(range(0, 2048, 20))  # ends an output after 20 tokens or so
SAMPLINGS = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, logprobs=3),
    Sampling(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.2),
    Sampling(seed=1),
    Sampling(seed=2, top_p=0.9, stop_token_ids=STOPS),
    Sampling(seed=3, top_k=40, presence_penalty=0.5, logprobs=1),
    Sampling(seed=4, min_tokens=6, stop_token_ids=frozenset(range(2000))),
    Sampling(temperature=0.0, stop_token_ids=STOPS),
    Sampling(seed=5, temperature=0.7, frequency_penalty=0.3, stop_token_ids=STOPS),
    Sampling(seed=6, max_tokens=1),
]
TARGETS = [BEST_EFFORT, Targets(ttft_s=1.0, tbt_s=0.05), Targets(ttlt_s=2.0)]


@pytest.fixture(scope="module")
def executor() -> Iterator[ModelExecutor]:
    threads = torch.get_num_threads()
    yield load(FOLDER, dtype="float32", num_pages=PAGES, page_size=PAGE, threads=1)
    torch.set_num_threads(threads)


def requests() -> list[Request]:
    """Half of them begin with the same two pages."""
    rng = random.Random(3)
    shared = [rng.randrange(3, 2048) for _ in range(16)]
    made = []
    for i in range(2 * len(SAMPLINGS)):
        own = [rng.randrange(3, 2048) for _ in range(rng.randint(3, 20))]
        sampling = SAMPLINGS[i // 2]
        if sampling.max_tokens > 1:
            longest = {f: getattr(sampling, f) for f in sampling.__slots__}
            sampling = Sampling(**{**longest, "max_tokens": rng.randint(12, 40)})
        prompt = shared + own if i % 2 else own
        made.append(Request(f"r{i}", prompt, sampling, 0.0, TARGETS[i % 3]))
    return made


class Clients:
    """A pipe: submits a few requests a turn, cancels whom it is told to after so many tokens, and
    hangs up when all have ended. Notes what each was sent.
    """

    def __init__(self, asked: Sequence[Request], leaving: dict[str, int]) -> None:
        self._asked = deque(asked)
        self._leaving = leaving
        self.tokens: dict[str, list[Token]] = {r.id: [] for r in asked}
        self.ends: dict[str, Finished] = {}

    def receive(self, timeout_s: float | None) -> list[Command]:
        if len(self.ends) == len(self.tokens):
            raise EOFError
        new = [self._asked.popleft() for _ in range(min(2, len(self._asked)))]
        gone = [id for id, count in self._leaving.items() if len(self.tokens[id]) >= count]
        for id in gone:
            del self._leaving[id]
        return [*map(Submit, new), *(Cancel(id, FinishReason.CANCELLED) for id in gone)]

    def send(self, report: Report) -> None:
        for id, *token in report.sampled:
            assert id not in self.ends, "nothing follows the end"
            self.tokens[id].append(Token(*token))
        for finished in report.finished:
            assert finished.request_id not in self.ends, "each ends once"
            self.ends[finished.request_id] = finished
            assert finished.output_tokens == len(self.tokens[finished.request_id])


def serve(
    executor: ModelExecutor,
    looks_ahead: bool,
    policy: str = "niyama",
    leaving: dict[str, int] | None = None,
) -> tuple[Clients, Scheduler]:
    config = SchedulerConfig(
        num_pages=PAGES, context_len=512, page_size=PAGE, policy=policy, chunk_size=48
    )
    scheduler = Scheduler(config, LatencyModel(UNCALIBRATED))
    clients = Clients(requests(), dict(leaving or {}))
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.002
        return now

    loop = EngineLoop(scheduler, executor, clients, clock, looks_ahead=looks_ahead)
    while len(clients.ends) < len(clients.tokens):
        loop.step()
        scheduler.check()
    loop.run()
    stats = scheduler.stats()
    assert stats.pages_free == stats.pages_total
    return clients, scheduler


@pytest.mark.parametrize("policy", ["niyama", "fcfs"])
def test_every_client_gets_the_same_tokens_as_without_look_ahead(
    executor: ModelExecutor, policy: str
) -> None:
    """Greedy and seeded, with stop tokens, penalties and log probabilities, shared prefixes, and
    memory taken from streams whose token is in flight.
    """
    plain, _ = serve(executor, False, policy)
    ahead, scheduler = serve(executor, True, policy)
    stats = scheduler.stats()
    assert stats.totals.num_preemptions > 3
    assert stats.totals.cached_tokens > 100
    assert sum(f.reason is FinishReason.STOP for f in ahead.ends.values()) > 3
    for id, expected in plain.tokens.items():
        found = ahead.tokens[id]
        assert [t.id for t in found] == [t.id for t in expected], id
        assert ahead.ends[id].reason is plain.ends[id].reason
        for a, b in zip(found, expected, strict=True):
            assert (a.logprob is None) == (b.logprob is None)
            if a.logprob is not None:
                assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
                assert [i for i, _ in a.top] == [i for i, _ in b.top]


def test_who_leaves_while_a_token_is_in_flight_has_the_tokens_up_to_there(
    executor: ModelExecutor,
) -> None:
    """One leaves after its first token, others later; nobody else notices."""
    plain, _ = serve(executor, False)
    leaving = {"r0": 1, "r3": 4, "r6": 7, "r11": 2}
    ahead, _ = serve(executor, True, leaving=leaving)
    for id, expected in plain.tokens.items():
        found = ahead.tokens[id]
        count = leaving.get(id, len(expected))
        assert [t.id for t in found] == [t.id for t in expected[:count]], id
        left = FinishReason.CANCELLED if id in leaving else plain.ends[id].reason
        assert ahead.ends[id].reason is left


@pytest.mark.parametrize(
    ("overlap", "device", "expected"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda:0", True),
        ("on", "cpu", True),
        ("off", "cuda", False),
    ],
)
def test_it_looks_ahead_where_the_device_computes_by_itself_unless_told_otherwise(
    overlap: str, device: str, expected: bool
) -> None:
    model = Folder(FOLDER).model_config()
    executor = NullExecutor(model.vocab_size)
    config = EngineConfig(overlap=overlap)
    engine = assemble(config, model, executor, UNCALIBRATED, PAGES, dtype="none", device=device)
    assert engine.looks_ahead == expected
