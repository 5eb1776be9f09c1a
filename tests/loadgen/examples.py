"""Values that several tests start from."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from loadgen.scoring.summary import WHOLE, Measuring, Summary, summarise
from loadgen.targets.record import Outcome, Record
from loadgen.targets.target import Run
from loadgen.workload.arrivals import Process, Rate
from loadgen.workload.lengths import Fixed, Independent
from loadgen.workload.plan import Arrivals, PlannedRequest, TierLoad, Workload
from loadgen.workload.served import TargetInfo
from niyama.client.values import Importance, Targets, Tier

CHAT = Targets(ttft=1.0, tbt=0.125)  # eighths are exact in binary
REPORT = Targets(ttlt=10.0)
INFO = TargetInfo(
    "somewhere:1",
    "fcfs",
    "little",
    (
        Tier("interactive", CHAT, Importance.HIGH),
        Tier("standard", REPORT, Importance.NORMAL),
        Tier("batch", Targets(ttlt=60.0), Importance.LOW),
    ),
    vocabulary_size=1000,
    context_length=512,
)


def planned(
    index: int = 0, at: float = 0.0, targets: Targets = CHAT, **rest: object
) -> PlannedRequest:
    fields = {"tier": "interactive", "prompt_len": 10, "output_len": 3} | rest
    return PlannedRequest(index, at, targets=targets, **fields)  # type: ignore[arg-type]  # test values


def record(
    request: PlannedRequest,
    token_at: Iterable[float] = (),
    outcome: Outcome = Outcome.FINISHED,
    lag_s: float = 0.0,
) -> Record:
    """Ends with its last token, or with its sending."""
    instants = array("d", token_at)
    sent_at = request.at + lag_s
    return Record(request, sent_at, outcome, instants, instants[-1] if instants else sent_at)


def summarised(load: Workload, info: TargetInfo, run: Run, measuring: Measuring = WHOLE) -> Summary:
    """The figures of a run of that load."""
    tiers = [tier.tier for tier in load.tiers]
    return summarise(tiers, load.duration_s, info, run, measuring)


def workload(
    shares: Sequence[tuple[str, float, Targets]] = (("interactive", 1.0, CHAT),),
    rate: float = 10.0,
    duration_s: float = 10.0,
    seed: int = 0,
    process: Process = Process.POISSON,
) -> Workload:
    lengths = Independent(Fixed(10), Fixed(3))
    return Workload(
        Arrivals(Rate(rate, rate), process),
        tuple(TierLoad(name, share, targets, lengths) for name, share, targets in shares),
        duration_s,
        seed,
    )
