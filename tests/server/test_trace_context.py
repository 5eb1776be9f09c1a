"""The trace that a call is a part of: read as W3C has it, and told in log and decision log."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import past
from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from server.convert.trace_context import MOST_STATE_CHARS, TraceContext, read
from tests.server_process import ServerProcess

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("parent", "flags"),
    [(PARENT, 1), (f"00-{TRACE}-{SPAN}-00", 0), (f"cc-{TRACE}-{SPAN}-03-what-will-be", 3)],
)
def test_a_parent_names_a_trace_and_the_caller_s_span(parent: str, flags: int) -> None:
    metadata = [("user-agent", "x"), ("traceparent", parent), ("tracestate", "a=1")]
    assert read([*metadata, ("tracestate", "b=2")]) == TraceContext(TRACE, SPAN, flags, "a=1,b=2")


@pytest.mark.parametrize(
    "parent",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"{PARENT}-more",
        f"{PARENT}\n",
        f"cc-{TRACE}-{SPAN}-01.",
        PARENT[:-1],
    ],
)
def test_a_malformed_parent_is_none(parent: str) -> None:
    assert read([("traceparent", parent), ("tracestate", "a=1")]) is None
    assert read([]) is None


def test_of_two_parents_neither_counts_and_too_long_a_state_is_left_out() -> None:
    assert read([("traceparent", PARENT), ("traceparent", PARENT)]) is None
    long = read([("traceparent", PARENT), ("tracestate", "a" * (MOST_STATE_CHARS + 1))])
    assert long == TraceContext(TRACE, SPAN, 1)


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate", "x"]), st.text())))
def test_whatever_comes_is_a_trace_or_none(metadata: list[tuple[str, str]]) -> None:
    found = read(metadata)
    assert found is None or (len(found.trace_id), len(found.span_id)) == (32, 16)


def test_a_trace_is_told_in_the_log_the_decision_log_and_the_story(tmp_path: Path) -> None:
    decisions = tmp_path / "decisions.jsonl"
    with ServerProcess(
        tmp_path / "log", "--decision-log", str(decisions), module="tests.null_server"
    ) as server:
        server.wait_ready()
        with grpc.insecure_channel(server.address) as channel:
            stub: Any = inference_pb2_grpc.InferenceStub(channel)
            request = pb.GenerateRequest(input=pb.Input(text="Once"), request_id="traced")
            stub.Generate(request, metadata=(("traceparent", PARENT),), timeout=60)
            request.request_id = "untraced"
            stub.Generate(request, timeout=60)
            question = pb.ExplainRequest(request_id="traced")
            assert stub.Explain(question, timeout=60).trace_id == TRACE
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    calls = {line["request_id"]: line for line in lines if line.get("rpc") == "Generate"}
    assert (calls["traced"]["trace_id"], calls["traced"]["span_id"]) == (TRACE, SPAN)
    assert "trace_id" not in calls["untraced"]
    entries = [json.loads(line) for line in decisions.read_text().splitlines()]
    arrived = {each["request_id"]: each for each in entries if each["kind"] == "arrived"}
    assert arrived["traced"]["trace_id"] == TRACE
    assert "trace_id" not in arrived["untraced"]
    assert past.find(decisions, "traced", "").request.trace_id == TRACE
