"""A live fleet: the generator as a router before several servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from google.protobuf.duration_pb2 import Duration

from loadgen.cli import EXIT_USAGE, main
from loadgen.targets.live import LiveTarget
from loadgen.targets.record import Outcome
from loadgen.targets.spread import told
from loadgen.targets.target import End, Run
from loadgen.workload.plan import PlannedRequest
from niyama.client.load import from_load_response
from niyama.v1 import inference_pb2 as pb
from tests.client.little_server import LOAD
from tests.loadgen.conftest import LittleServer
from tests.loadgen.examples import planned
from tests.loadgen.targets.test_live import every, once, unwatched


@pytest.fixture
def pair(little: LittleServer) -> Iterator[list[LittleServer]]:
    other = LittleServer()
    other.start()
    yield [little, other]
    other.stop()


def target(pair: list[LittleServer], routing: str, **pinned: int) -> LiveTarget:
    servers = ",".join(server.address for server in pair)
    return LiveTarget(servers, 2, 10.0, routing=routing, pinned=pinned)


def by_server(run: Run) -> Counter[str]:
    return Counter(record.replica for record in run.records)


def busy() -> pb.GetLoadResponse:
    """Interactive requests would be late there: four seconds of work come before them."""
    load = pb.GetLoadResponse()
    load.CopyFrom(LOAD)
    load.tiers[1].outlook.headroom.CopyFrom(Duration())
    load.tiers[1].outlook.ahead.time.CopyFrom(Duration(seconds=4))
    return load


def test_what_a_server_tells_is_what_it_said() -> None:
    known = told(from_load_response(LOAD), 5.0)
    chat, bulk = known.tiers["interactive"], known.tiers["batch"]
    assert (chat.target_s, chat.headroom_s, chat.waiting_s, chat.typical_len) == (4.0, 2.0, 0.5, 20)
    assert (bulk.target_s, bulk.headroom_s) == (float("inf"), None)
    assert (known.at, known.backlog_s, known.slowdown, known.demand) == (5.0, 9.0, 1.5, 0.5)
    assert (known.prefill_s, known.decode_s) == (pytest.approx(1 / 900), 0.001)
    assert (known.kv_usage, known.kv_held) == (0.125, 0.4)


def test_each_server_has_its_turn_and_what_is_pinned_none(pair: list[LittleServer]) -> None:
    requests: list[PlannedRequest] = every(0.002, 40)
    requests += [planned(40 + i, at=0.08 + i / 500, tier="batch") for i in range(10)]
    fleet = target(pair, "round-robin", batch=1)
    assert fleet.info().name == f"{fleet.server}, round-robin"
    run = fleet.run(iter(requests), unwatched)
    assert by_server(run) == {pair[0].address: 20, pair[1].address: 30}
    assert {record.outcome for record in run.records} == {Outcome.FINISHED}
    assert [len(server.servicer.requests) for server in pair] == [20, 30]


def test_requests_go_where_they_are_on_time_by_what_servers_tell(pair: list[LittleServer]) -> None:
    pair[0].servicer.load = busy()
    run = target(pair, "qos").run(iter(every(0.002, 40)), unwatched)
    assert by_server(run) == {pair[1].address: 40}


def test_what_a_server_tells_later_counts_from_then_on(pair: list[LittleServer]) -> None:
    """Both are free at first; then one of them tells that requests would be late there."""

    def be_busy() -> None:
        pair[0].servicer.load = busy()

    watch = once(lambda progress: progress.num_finished >= 10, be_busy)
    run = target(pair, "qos").run(iter(every(0.01, 300)), watch)
    assert {record.replica for record in run.records[:50]} == {each.address for each in pair}
    assert {record.replica for record in run.records[-50:]} == {pair[1].address}


def test_a_server_that_is_lost_ends_no_run_while_another_answers(pair: list[LittleServer]) -> None:
    """Once it does not tell its load it gets no more; each request is recorded once."""
    watch = once(lambda progress: progress.num_finished >= 20, pair[0].stop)
    requests = every(0.01, 300)
    run = target(pair, "qos").run(iter(requests), watch)
    assert run.end is End.COMPLETE
    assert [record.request for record in run.records] == requests
    finished = [r for r in run.records if r.outcome is Outcome.FINISHED]
    failed = [r for r in run.records if r.outcome is Outcome.FAILED]
    assert len(finished) + len(failed) == 300
    assert {record.replica for record in failed} <= {pair[0].address}
    assert {record.replica for record in run.records[-50:]} == {pair[1].address}


def test_a_pin_to_a_server_that_there_is_not_is_told(
    pair: list[LittleServer], capsys: pytest.CaptureFixture[str]
) -> None:
    servers = ",".join(server.address for server in pair)
    assert main(["--target", servers, "--pin", "batch:2", "--rps", "5"]) == EXIT_USAGE
    assert "batch is pinned to server 2 of 2" in capsys.readouterr().err
