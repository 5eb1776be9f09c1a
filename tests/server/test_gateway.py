"""What gateways say in metadata: one word for each key, and nothing that they say ends a call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.request import Importance, Targets
from engine.tiers import Tiers
from engine.tiers_file import parse
from niyama.v1 import inference_pb2 as pb
from server.convert.gateway import (
    KEYS,
    MOST_CHARS,
    NOTHING,
    REQUEST_ID,
    TIER_PORT,
    Gateway,
    Ignored,
    Why,
    read,
    words_of,
)
from tests.server.conftest import Running, within
from tests.server.test_service import asked
from tests.server.test_service import read as read_stream

TIERS = parse(
    """
default_tier = "chat"

[tiers.chat]
ttft_s = 1
tbt_s = 0.05
max_gap = 2

[tiers.gold]
ttft_s = 0.2
tbt_s = 0.02
max_gap = 1
importance = "high"

[tiers.report]
ttlt_s = 30
importance = "low"

[applications.search]
ttlt_s = 2

[tenants.acme]
""",
    Path("niyama.toml"),
)
REPORTS = replace(TIERS, default="report")  # no interactive default
OBJECTIVE, TTFT, TPOT = (
    *("x-llm-d-inference-objective", "x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms"),
)
FAIRNESS, PRIORITY = "x-llm-d-inference-fairness-id", "x-smg-priority"


def said(*metadata: tuple[str, str], tiers: Tiers = TIERS) -> Gateway:
    return read([("user-agent", "x"), *metadata], tiers)


def whys(gateway: Gateway) -> dict[str, Why]:
    return dict(gateway.ignored)


def test_a_call_that_no_gateway_speaks_of_costs_one_look_at_its_keys() -> None:
    assert said() is NOTHING
    assert said(("x-prediction-based-scheduling", "true"), (TTFT, "")) is NOTHING


@pytest.mark.parametrize("key", [OBJECTIVE, "x-gateway-inference-objective"])
def test_an_objective_names_a_tier_or_else_an_application(key: str) -> None:
    assert said((key, "gold")).said.objective == TIERS.objective("gold")
    found = said((key, "search"))
    assert found.said.objective == TIERS.applications["search"]
    assert (found.said.reason, found.keys, found.ignored) == (key, (key,), ())
    unknown = said((key, "platinum"))
    assert unknown == Gateway(ignored=(Ignored(key, Why.UNKNOWN),))


@pytest.mark.parametrize(
    ("ttft", "tpot"), [(TTFT, TPOT), ("x-slo-ttft-ms", "x-slo-tpot-ms"), (TTFT, "x-slo-tpot-ms")]
)
def test_latencies_are_milliseconds(ttft: str, tpot: str) -> None:
    found = said((ttft, "250"), (tpot, "12.5"))
    assert found.said.targets == Targets(ttft_s=0.25, tbt_s=0.0125)
    assert found.said.reason == f"{ttft}, {tpot}"


def test_the_current_spelling_counts_before_the_old_one() -> None:
    found = said(("x-slo-ttft-ms", "900"), ("x-slo-tpot-ms", "90"), (TTFT, "300"))
    assert found.said.targets == Targets(ttft_s=0.3, tbt_s=0.09)
    assert found.said.reason == f"{TTFT}, x-slo-tpot-ms"


def test_half_of_two_targets_is_made_whole_by_the_objective_or_else_the_default_tier() -> None:
    assert said((TTFT, "300")).said.targets == Targets(ttft_s=0.3, tbt_s=0.05)
    assert said((TPOT, "30")).said.targets == Targets(ttft_s=1.0, tbt_s=0.03)
    gold = said((TPOT, "30"), (OBJECTIVE, "gold"))
    assert gold.said.targets == Targets(ttft_s=0.2, tbt_s=0.03, max_gap=1.0)
    nothing = said((TTFT, "300"), (OBJECTIVE, "report"))
    assert nothing.said.targets is None
    assert nothing.said.objective == TIERS.objective("report")
    assert whys(nothing) == {TTFT: Why.INCOMPLETE}
    assert whys(said((TPOT, "30"), tiers=REPORTS)) == {TPOT: Why.INCOMPLETE}


def test_the_objective_s_importance_holds_beside_targets_in_numbers() -> None:
    gateway = said((TTFT, "300"), (TPOT, "30"), (OBJECTIVE, "gold")).said
    resolved = TIERS.resolve(gateway=gateway)
    assert (resolved.tier, resolved.importance) == ("", Importance.HIGH)


@pytest.mark.parametrize(
    ("text", "importance"),
    [
        ("bulk", Importance.LOW),
        (" Interactive ", Importance.HIGH),
        ("SYSTEM", Importance.HIGH),
        ("default", None),
    ],
)
def test_a_priority_of_smg_is_an_importance(text: str, importance: Importance | None) -> None:
    found = said((PRIORITY, text))
    assert (found.said.importance, found.ignored) == (importance, ())
    assert TIERS.resolve(gateway=found.said).tier == "chat"


def test_a_fairness_id_is_a_tenant_only_where_the_operator_has_named_it() -> None:
    """A router may make one for every session, and each tenant has a prefix cache of its own."""
    assert said((FAIRNESS, "acme")).tenant == "acme"
    session = said((FAIRNESS, "session-7f"))
    assert (session.tenant, whys(session)) == ("", {FAIRNESS: Why.UNKNOWN})


def test_tracestate_states_everything_and_counts_first() -> None:
    text = "vendor=1, niyama=tier:gold;ttft:200;tbt=20;importance:low;tenant:acme ,other=2"
    found = said(("tracestate", text), (OBJECTIVE, "report"), (TTFT, "900"), (FAIRNESS, "x"))
    assert found.said.targets == Targets(ttft_s=0.2, tbt_s=0.02, max_gap=1.0)
    assert found.said.objective == TIERS.objective("gold")
    assert (found.said.importance, found.tenant) == (Importance.LOW, "acme")
    assert (found.said.reason, found.keys, found.ignored) == ("tracestate", ("tracestate",), ())
    assert said(("tracestate", "niyama=ttlt:4000")).said.targets == Targets(ttlt_s=4.0)
    assert said(("tracestate", "other=niyama,congo=t61rcWkgMzE")) == Gateway()


def test_a_tier_may_stand_alone_where_it_is_first() -> None:
    assert list(words_of("gold;ttft=200")) == [("tier", "gold"), ("ttft", "200")]
    assert list(words_of("tier:a:b")) == [("tier", "a:b")]
    assert list(words_of("ttft:1;gold")) == [("ttft", "1"), ("gold", "")]


UUID = "01a22bac-b256-71c2-a047-91c5c6cd7140"


def by_id(request_id: str, *metadata: tuple[str, str], port_tier: str = "") -> Gateway:
    return read(metadata, TIERS, request_id=request_id, port_tier=port_tier)


@pytest.mark.parametrize("unique", ["", f"-{UUID}", f"-p0-{UUID}", f"-p12-{UUID}"])
def test_the_beginning_of_an_id_states_everything(unique: str) -> None:
    found = by_id(f"gold;ttft=200;importance=low;tenant=acme{unique}")
    assert found.said.targets == Targets(ttft_s=0.2, tbt_s=0.02, max_gap=1.0)
    assert found.said.objective == TIERS.objective("gold")
    assert (found.said.importance, found.tenant) == (Importance.LOW, "acme")
    assert (found.said.reason, found.keys, found.ignored) == ("request id", ("request id",), ())
    assert by_id(f"report{unique}").said.objective == TIERS.objective("report")
    assert by_id(f"ttlt:4000{unique}").said.targets == Targets(ttlt_s=4.0)


@pytest.mark.parametrize(
    "request_id",
    ["", f"cmpl-oGXJ3NY60SSXyG6kpOFfp0rQ-{UUID}", UUID, "report-of-today", "user:42", "a;b=c", "é"],
)
def test_an_id_that_states_no_word_is_just_an_id(request_id: str) -> None:
    assert by_id(request_id) == Gateway()


def test_what_of_a_speaking_id_is_of_no_use_is_told() -> None:
    found = by_id(f"platinum;ttft=soon;colour=red;tbt=;importance=low-{UUID}")
    assert found.said.importance is Importance.LOW
    assert sorted(why.value for _, why in found.ignored) == ["malformed", "unknown"]


def test_tracestate_counts_before_the_id_and_the_id_before_the_port() -> None:
    trace = ("tracestate", "niyama=tier:gold")
    assert by_id("report", trace, port_tier="chat").said.objective == TIERS.objective("gold")
    assert by_id("report", port_tier="chat").said.objective == TIERS.objective("report")
    assert by_id("x", port_tier="chat").said.objective == TIERS.objective("chat")
    both = by_id("report;importance=high", trace)
    assert both.said.importance is Importance.HIGH
    assert both.keys == ("request id", "tracestate")
    header = read([(OBJECTIVE, "gold")], TIERS, request_id="report", port_tier="chat")
    assert header.said.objective == TIERS.objective("report")


def test_a_word_of_the_port_makes_half_of_two_targets_whole() -> None:
    found = by_id("ttft=300", port_tier="gold").said
    assert found.targets == Targets(ttft_s=0.3, tbt_s=0.02, max_gap=1.0)
    assert found.reason == "tier port, request id"
    assert by_id("", port_tier="gone").said.objective is None


def test_only_the_keys_that_are_asked_for_are_read() -> None:
    metadata = ((OBJECTIVE, "gold"), ("tracestate", "niyama=report"))
    assert read(metadata, TIERS, keys={"tracestate"}).keys == ("tracestate",)


@pytest.mark.parametrize(
    ("key", "text", "why"),
    [
        *((TTFT, text, Why.MALFORMED) for text in ("soon", "-1", "0", "1e3", "nan", "9" * 13, "٣")),
        (TTFT, "1" * (MOST_CHARS + 1), Why.MALFORMED),
        (PRIORITY, "urgent", Why.UNKNOWN),
        ("tracestate", "niyama=colour:red", Why.UNKNOWN),
        ("tracestate", "niyama=tier:", Why.MALFORMED),
        ("tracestate", "niyama=ttft:0;tbt:5", Why.MALFORMED),
        ("tracestate", "niyama=ttft:1;tbt:1;ttlt:1", Why.SUPERFLUOUS),
    ],
)
def test_what_is_of_no_use_is_told_by_its_key(key: str, text: str, why: Why) -> None:
    assert whys(said((key, text))) == {key: why}


def test_a_key_that_is_stated_twice_states_nothing() -> None:
    found = said((TTFT, "100"), (TTFT, "200"), (TPOT, "20"))
    assert found.said.targets == Targets(ttft_s=1.0, tbt_s=0.02)
    assert whys(found) == {TTFT: Why.REPEATED}


WORDS = st.sampled_from(["gold", "acme", "report", "200", "low", "bulk", "ttft", "niyama", "", "x"])
SIGNS = st.sampled_from([":", "=", ";", ",", " ", "-"])
TEXTS = st.one_of(st.text(max_size=80), st.lists(st.one_of(WORDS, SIGNS)).map("".join))


@given(
    st.lists(st.tuples(st.sampled_from(sorted(KEYS)), TEXTS), max_size=12),
    TEXTS,
    st.sampled_from(["", "gold", "report", "gone"]),
    st.sampled_from([TIERS, REPORTS]),
)
def test_whatever_they_say_a_call_is_served_and_its_log_line_is_short(
    metadata: list[tuple[str, str]], request_id: str, port_tier: str, tiers: Tiers
) -> None:
    metadata = [(key, f"niyama={text}" if key == "tracestate" else text) for key, text in metadata]
    found = read(metadata, tiers, request_id=request_id, port_tier=port_tier)
    resolved = tiers.resolve(gateway=found.said)
    assert tiers.resolve(tier="report", gateway=found.said).tier == "report"
    assert (resolved.reason != "") == (resolved.source.value == "gateway")
    assert found.tenant in ("", "acme")
    assert set(found.keys) <= KEYS | {REQUEST_ID, TIER_PORT}
    assert len(found.ignored) <= (len(KEYS) + 1) * len(Why)
    assert len(set(found.ignored)) == len(found.ignored)


# On a real server


@pytest_asyncio.fixture(loop_scope="session")
async def believing(running: Running) -> AsyncIterator[Running]:
    """The session's server, as long as it takes what gateways say."""
    service = running.service
    before, tiers = service.config, service.tiers  # of a server that others use too
    service.reconfigure(replace(before, gateway_metadata=True), TIERS)
    yield running
    service.reconfigure(before, tiers)


async def accepted(
    running: Running, *metadata: tuple[str, str], qos: pb.QualityOfService | None = None
) -> pb.ResolvedTargets:
    request = asked(max_tokens=1)
    if qos is not None:
        request.qos.CopyFrom(qos)
    events = await read_stream(running.stub.GenerateStream(request, metadata=metadata))
    return events[0].accepted.targets


@pytest.mark.asyncio(loop_scope="session")
async def test_a_stream_is_served_by_what_its_gateway_says(believing: Running) -> None:
    targets = await accepted(believing, (OBJECTIVE, "gold"), (PRIORITY, "bulk"))
    assert (targets.tier, targets.source) == ("gold", pb.TARGET_SOURCE_GATEWAY)
    assert (targets.reason, targets.importance) == (OBJECTIVE, pb.IMPORTANCE_LOW)
    numbers = await accepted(believing, ("tracestate", "niyama=ttft:200;tbt:20"))
    assert numbers.ttft.ToMilliseconds() == 200
    assert numbers.reason == "tracestate"


@pytest.mark.asyncio(loop_scope="session")
async def test_what_the_message_states_counts_before_the_gateway(believing: Running) -> None:
    gateway = ((OBJECTIVE, "gold"), (PRIORITY, "system"))
    own = await accepted(believing, *gateway, qos=pb.QualityOfService(tier="report"))
    assert (own.tier, own.source) == ("report", pb.TARGET_SOURCE_TIER)
    assert (own.importance, own.reason) == (pb.IMPORTANCE_LOW, "")
    preset = pb.QualityOfService(application="search")
    assert (await accepted(believing, *gateway, qos=preset)).tier == "gold"
    assert (await accepted(believing, qos=preset)).source == pb.TARGET_SOURCE_APPLICATION


@pytest.mark.asyncio(loop_scope="session")
async def test_a_gateway_s_unknown_tier_ends_no_call_and_is_counted(believing: Running) -> None:
    sample = believing.metrics.registry.get_sample_value
    labels = {"key": OBJECTIVE, "reason": "unknown"}
    before = sample("niyama_gateway_metadata_ignored_total", labels) or 0
    targets = await accepted(believing, (OBJECTIVE, "platinum"))
    assert (targets.tier, targets.source) == ("chat", pb.TARGET_SOURCE_DEFAULT)
    assert sample("niyama_gateway_metadata_ignored_total", labels) == before + 1


@pytest.mark.asyncio(loop_scope="session")
async def test_estimates_explanations_and_unary_calls_hear_the_gateway_too(
    believing: Running,
) -> None:
    metadata = ((OBJECTIVE, "report"), (FAIRNESS, "acme"))
    question = pb.EstimateRequest(prompt_tokens=3, output_tokens=2)
    estimate = await within(believing.stub.Estimate(question, metadata=metadata))
    assert estimate.targets.source == pb.TARGET_SOURCE_GATEWAY
    request = asked(pb.GenerateRequest, max_tokens=1)
    request.request_id = "by-a-gateway"
    response = await within(believing.stub.Generate(request, metadata=metadata))
    assert response.targets.tier == "report"
    story = pb.ExplainRequest(request_id="by-a-gateway")
    told = await within(believing.stub.Explain(story, metadata=metadata))
    assert (told.tenant, told.targets.source) == ("acme", pb.TARGET_SOURCE_GATEWAY)
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await within(believing.stub.Explain(story))  # of the nameless tenant


@pytest.mark.asyncio(loop_scope="session")
async def test_nobody_is_believed_unless_the_operator_says_so(running: Running) -> None:
    """Whoever calls a gateway may have set what it passes on."""
    targets = await accepted(running, (OBJECTIVE, "batch"), (PRIORITY, "bulk"))
    assert (targets.tier, targets.source) == ("interactive", pb.TARGET_SOURCE_DEFAULT)
    assert targets.importance == pb.IMPORTANCE_NORMAL
