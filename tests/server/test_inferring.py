"""Calls that state no targets, on real servers: seen, told, and served as their like need it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tomllib
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import grpc
import pytest

from engine.inferring.calls import CallSite, Coming, End, Ended, site_of
from engine.inferring.choice import choose
from engine.inferring.habit import Need, Shown
from engine.inferring.habits import Habits, Observed
from engine.inferring.proposal import Known, proposal
from engine.tiers import TargetSource, Tiers
from engine.tiers_file import parse
from niyama.v1 import inference_pb2 as pb
from server import check
from server.app import Server
from server.settings import ask as asked_by
from tests.server.conftest import Running, Stubs, until, within
from tests.server.status.test_site import TOKEN, ask, served

KNOWN = 16  # calls after which something is known
WAITED = Ended(End.SERVED, math.inf, 9000.0, 8, Coming())  # longer than any tier
STOLEN = '"] [tiers.stolen] ttlt_s = 1 #'  # what a name would like to be


def request(application: str = "", **qos: object) -> pb.GenerateStreamRequest:
    return pb.GenerateStreamRequest(
        input=pb.Input(text="Once"),
        sampling=pb.Sampling(max_tokens=2, ignore_eos=True),
        qos=pb.QualityOfService(application=application, **qos),  # type: ignore[arg-type]
    )


async def accepted(
    stubs: Stubs, message: pb.GenerateStreamRequest, timeout_s: float = 60.0
) -> pb.Accepted:
    """What a call is told first, once it is over."""
    stream = stubs.inference.GenerateStream(message, timeout=timeout_s)
    events = [event async for event in stream]
    return events[0].accepted


@contextlib.contextmanager
def inferring(running: Running, mode: str) -> Iterator[None]:
    inferring = running.service.inferring
    before, inferring.mode = inferring.mode, mode
    try:
        yield
    finally:
        inferring.mode = before


def teach(running: Running, site: CallSite, ended: Ended = WAITED) -> None:
    """Has a site known by as many calls as it takes."""
    for _ in range(64):
        for learnt in running.server.habits.observe(Observed(site, ended)):
            running.server.front_ends.learn(learnt)  # type: ignore[attr-defined]  # one front end


@pytest.mark.asyncio(loop_scope="session")
class TestOneFrontEnd:
    async def test_calls_that_state_nothing_are_seen_as_they_end(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Observed] = []
        monkeypatch.setattr(running.server.habits, "observe", lambda each: seen.append(each) or [])
        stubs = Stubs(running.channel)
        await within(accepted(stubs, request("seen")))
        await within(accepted(stubs, request("seen", tier="batch")))
        explicit = pb.DeadlineTargets()
        explicit.ttlt.seconds = 9
        await within(accepted(stubs, request("seen", deadline=explicit)))
        call = stubs.inference.GenerateStream(_long("left"))
        while not (await within(call.read())).HasField("tokens"):
            pass
        call.cancel()
        await until(lambda: len(seen) == 2)
        served_call, left = seen
        assert served_call.site == site_of("", "", "seen", is_stream=True)
        assert served_call.ended.end is End.SERVED
        assert served_call.ended.output_len == 2
        assert served_call.ended.timeout_s == pytest.approx(60.0, abs=10.0)
        assert left.site.application == "left"
        assert left.ended.end is End.LEFT
        assert 0 < left.ended.output_len < 4000

    async def test_in_shadow_it_is_told_and_not_used(self, running: Running) -> None:
        teach(running, site_of("", "", "shadowed", is_stream=True))
        with inferring(running, "shadow"):
            told = await within(accepted(Stubs(running.channel), request("shadowed")))
        assert told.targets.source == pb.TARGET_SOURCE_DEFAULT
        assert told.targets.reason == ""
        assert told.inferred.source == pb.TARGET_SOURCE_INFERRED
        assert (told.inferred.tier, told.inferred.HasField("ttlt")) == ("batch", True)
        assert told.inferred.reason == "streams; callers have waited for 9000 s"

    async def test_when_on_it_is_used_and_told_by_explain(self, running: Running) -> None:
        teach(running, site_of("", "", "patient", is_stream=True))
        teach(running, site_of("", "", "patient", is_stream=False))
        stubs = Stubs(running.channel)
        counter = running.metrics.inferences.labels("batch", "yes")
        before = counter._value.get()
        with inferring(running, "on"):
            message = request("patient")
            message.request_id = "why-batch"
            told = await within(accepted(stubs, message))
            unary = pb.GenerateRequest.FromString(request("patient").SerializeToString())
            answer = await within(stubs.inference.Generate(unary, timeout=60))
            unknown = await within(accepted(stubs, request("somebody")))
            stated = await within(accepted(stubs, request("patient", tier="standard")))
        for targets in (told.targets, answer.targets):
            assert targets.source == pb.TARGET_SOURCE_INFERRED
            assert targets.tier == "batch"
            assert targets.importance == pb.IMPORTANCE_NORMAL
            assert "callers have waited for 9000 s" in targets.reason
        assert not told.HasField("inferred")
        assert unknown.targets.source == pb.TARGET_SOURCE_DEFAULT
        assert stated.targets.source == pb.TARGET_SOURCE_TIER
        assert counter._value.get() == before + 2
        story = await within(
            stubs.inference.Explain(pb.ExplainRequest(request_id="why-batch"), timeout=60)
        )
        assert story.targets == told.targets

    async def test_a_deadline_still_caps_what_is_inferred(self, running: Running) -> None:
        teach(running, site_of("", "", "hurried", is_stream=True))
        with inferring(running, "on"):
            told = await within(accepted(Stubs(running.channel), request("hurried"), 30.0))
        assert told.targets.source == pb.TARGET_SOURCE_INFERRED
        assert 20 < told.targets.ttlt.seconds <= 31  # gRPC rounds up

    async def test_what_is_off_sees_nothing(self, running: Running) -> None:
        teach(running, site_of("", "", "ignored", is_stream=True))
        num_sites = len(running.server.habits)
        stubs = Stubs(running.channel)
        with inferring(running, "off"):
            known = await within(accepted(stubs, request("ignored")))
            await within(accepted(stubs, request("never-seen")))
        assert known.targets.source == pb.TARGET_SOURCE_DEFAULT
        assert not known.HasField("inferred")
        assert len(running.server.habits) == num_sites


def _long(application: str) -> pb.GenerateStreamRequest:
    message = request(application)
    message.sampling.max_tokens = 4000
    return message


@contextlib.asynccontextmanager
async def channels(server: Server, num: int) -> AsyncIterator[list[Stubs]]:
    """Connections of their own, which the kernel deals out to front ends."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for _ in range(num):
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options)
            found.append(Stubs(await stack.enter_async_context(channel)))
        yield found


async def test_all_front_ends_know_what_one_has_seen_and_tell_the_operator(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    message = request(STOLEN)
    async with (
        served(frontends=2, infer="on", admin_token_file=token) as (server, port),
        channels(server, 6) as stubs,
    ):
        for _ in range(KNOWN):
            await within(accepted(stubs[0], message))
        for each in stubs:
            await within(_until_inferred(each, message))
        for shown in ({}, {"Authorization": "Bearer wrong"}):
            told = await asyncio.to_thread(ask, port, "/inferred.toml", **shown)
            assert told.status == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        told = await asyncio.to_thread(ask, port, "/inferred.toml", **headers)
    assert (told.status, told.headers["Content-Type"]) == (200, "application/toml")
    lines = told.body.decode().splitlines()
    assert any("perhaps watched" in line for line in lines)
    assert tomllib.loads(told.body.decode()) == {}  # the default tier needs no line


def _until_inferred(stubs: Stubs, message: pb.GenerateStreamRequest) -> Awaitable[None]:
    async def look() -> None:
        told = await accepted(stubs, message)
        while told.targets.source != pb.TARGET_SOURCE_INFERRED:
            told = await accepted(stubs, message)
        assert told.targets.reason.startswith("streams; perhaps watched")

    return look()


def test_what_was_inferred_can_be_pasted_into_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the names: callers choose them."""
    habits = Habits()
    for application in ("nightly", "mixed", STOLEN, "", 'it\'s \\ "quoted"'):
        for is_stream in (False, True):
            site = site_of("", 'tenant"]#', application, is_stream, "indexer/2", 600.0)
            is_watched = is_stream and application == "mixed"
            for _ in range(64):
                ended = WAITED._replace(silence_s=0.1) if is_watched else WAITED
                habits.observe(Observed(site, ended))
    text = proposal(Known(list(habits.known()), Tiers()))
    said = tomllib.loads(text)
    assert said == {
        "applications": {
            name: {"tier": "batch"} for name in ("nightly", STOLEN, 'it\'s \\ "quoted"')
        }
    }
    assert "These need different tiers" in text
    assert "indexer" in text
    path = tmp_path / "pasted.toml"
    path.write_text(f"[limits]\nmax_requests = 9\n\n{text}")
    assert check.main(asked_by(["--config", str(path), "--check-config"], {})) == 0
    assert "[applications.nightly]" in capsys.readouterr().out


def test_tenants_whose_calls_need_their_own_default_tiers_need_no_different_ones() -> None:
    tiers = parse("[tenants.free]\ntiers = ['standard', 'batch']\n", Path("f.toml"))
    habits = Habits()
    for _ in range(64):
        for tenant in ("", "free"):
            site = site_of(tenant, tenant, "desk", True)
            habits.observe(Observed(site, WAITED._replace(silence_s=0.1)))
    text = proposal(Known(list(habits.known()), tiers))
    assert text.count("the default tier; streams") == 2
    assert "different" not in text
    assert tomllib.loads(text) == {}


def test_what_a_tenant_may_not_have_is_not_inferred_for_it() -> None:
    """Its own default tier is what counts, and its own tiers are what is chosen from."""
    text = "[tenants.free]\ntiers = ['standard', 'batch']\n"
    tiers = parse(text, Path("f.toml"))
    patient = Need(Shown.PATIENT, 30.0, 20, "why")
    assert choose(patient, tiers.seen_by("free")).tier.name == "standard"
    watched = Need(Shown.WATCHED, math.inf, 20, "why")
    choice = choose(watched, tiers.seen_by("free"))
    assert choice.inferred is not None
    assert choice.inferred.tier.name == "standard"
    resolved = tiers.resolve(
        rights=tiers.rights_of("free"), inferred=choose(watched, tiers).inferred
    )
    assert (resolved.tier, resolved.source) == ("standard", TargetSource.DEFAULT)
