"""Which guess of the output length keeps most deadlines: mean, mean plus deviations, or the truth.

    python -m tests.bench outputs [--seconds 1200] [--rates 3.5,4.5]

Simulated on the published A100 profile: prompts and outputs as in the Azure conversation trace
(lognormal by the published quantiles), a third interactive (TTFT 6 s, TBT 50 ms), a third due in
20 s, a third in 60 s: close enough for the guess to matter. Requests may ask for 2,048 tokens and
end with a stop token, so that only history tells how long they are; `oracle` is told. Prints the
share of late requests, and a JSON line last.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence

from engine.deciding.latency import A100_LLAMA3_8B, LatencyModel
from engine.deciding.plan import Finished, Token
from engine.deciding.request import Request, Sampling, Targets
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig
from loadgen.workload.lengths import Lognormal

STOP, GO_ON = Token(1), Token(0)
TIERS = (Targets(ttft_s=6.0, tbt_s=0.05), Targets(ttlt_s=20.0), Targets(ttlt_s=60.0))
GUESSES = {"mean": 0.0, "mean + 1 dev": 1.0, "mean + 2 dev": 2.0, "mean + 3 dev": 3.0}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench outputs", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--rates", default="3.5,4.5", help="requests per second")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    rows = []
    for rate in map(float, arguments.rates.split(",")):
        for name, deviations in (GUESSES | {"oracle": 0.0}).items():
            load = list(_load(rate, arguments.seconds, arguments.seed, name == "oracle"))
            late = _late_share(load, deviations)
            rows.append({"rps": rate, "guess": name, "late": late})
            print(f"{rate:5.2f}/s  {name:13s} {late:7.2%} late", flush=True)
    print(json.dumps({"benchmark": "outputs", "profile": A100_LLAMA3_8B.name, "rows": rows}))
    return 0


def _load(rate: float, seconds: float, seed: int, oracle: bool) -> Iterable[tuple[Request, int]]:
    """Requests with the lengths of their outputs."""
    rng, prompts, outputs = random.Random(seed), Lognormal(928, 3830), Lognormal(41, 342)
    at, number = rng.expovariate(rate), 0
    while at < seconds:
        output = min(outputs.draw(rng), 2048)
        tier = number % len(TIERS)
        sampling = Sampling(
            max_tokens=output if oracle else 2048, stop_token_ids=frozenset([STOP.id])
        )
        name = f"{number}" if oracle else f"tier{tier}"  # an oracle has no history
        prompt = range(min(prompts.draw(rng), 8192))
        yield Request(str(number), prompt, sampling, at, TIERS[tier], application=name), output
        at, number = at + rng.expovariate(rate), number + 1


def _late_share(load: list[tuple[Request, int]], deviations: float) -> float:
    """Returns the share of all requests that miss a target, served by niyama in virtual time."""
    config = SchedulerConfig(
        num_pages=6750,
        context_len=16384,
        page_size=64,
        prefix_caching=False,
        record_capacity=0,
        output_deviations=deviations,
    )
    scheduler = Scheduler(config, LatencyModel(A100_LLAMA3_8B, learns=False))
    lengths = {request.id: output for request, output in load}
    waiting, now, late = load[::-1], 0.0, 0
    num_ended = 0
    while num_ended < len(load):
        while waiting and waiting[-1][0].arrived_at <= now:
            scheduler.submit(waiting.pop()[0], now)
        plan = scheduler.plan(now)
        if plan is None:  # nobody is there: on to the next arrival
            now = waiting[-1][0].arrived_at
            continue
        now += plan.predicted_s
        tokens = [STOP if len(s.output) + 1 == lengths[s.id] else GO_ON for s in plan.sampling]
        for event in scheduler.commit(plan, tokens, now):
            if isinstance(event, Finished):
                num_ended += 1
                met = event.timings
                late += False in (met.ttft_met, met.tbt_met, met.ttlt_met)
    return late / len(load)
