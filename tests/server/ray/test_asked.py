"""What a router knows of a call."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.request import Importance, Targets
from engine.routing.prefixes import PREFIX_LEN
from niyama.v1 import inference_pb2 as pb
from server.convert.work import BYTES_PER_TOKEN
from server.ray.asked import MOST_BYTES, QUESTION, Reader
from server.ray.messages import Call

GENERATE = "/niyama.v1.Inference/GenerateStream"
FILE = """
default_tier = "slow"
[tiers.quick]
ttft_s = 0.5
tbt_s = 0.05
importance = "high"
[tiers.slow]
ttlt_s = 30
[applications.desk]
tier = "quick"
[tenants.acme]
tiers = ["slow"]
"""


def call(message: pb.GenerateStreamRequest, *metadata: tuple[str, str]) -> Call:
    return Call(GENERATE, message.SerializeToString(), metadata, None)


def text(length: int, **fields: object) -> pb.GenerateStreamRequest:
    return pb.GenerateStreamRequest(input=pb.Input(text="a" * length), **fields)


@pytest.fixture
def reader() -> Reader:
    return Reader("niyama.toml", FILE, has_gateway=True)


def test_targets_are_those_that_a_replica_would_resolve(reader: Reader) -> None:
    quick, slow = Targets(0.5, 0.05), Targets(ttlt_s=30)
    found = reader.read(call(text(400, qos=pb.QualityOfService(tier="quick"))))
    assert (found.tier, found.targets, found.importance) == ("quick", quick, Importance.HIGH)
    assert reader.read(call(text(4))).targets == slow  # the default tier's
    assert reader.read(call(text(4, qos=pb.QualityOfService(application="desk")))).targets == quick
    own = pb.QualityOfService(deadline={"ttlt": Duration(seconds=3)})
    assert reader.read(call(text(4, qos=own))).targets == Targets(ttlt_s=3)
    of_gateway = call(text(4), ("tracestate", "niyama=tier:quick"))
    assert reader.read(of_gateway).targets == quick
    refused = call(text(4, qos=pb.QualityOfService(tier="quick")), ("niyama-tenant", "acme"))
    assert reader.read(refused) == QUESTION  # wherever it goes


def test_without_a_file_tiers_are_those_that_a_replica_tells() -> None:
    reader = Reader(None, None, has_gateway=False)
    told = pb.Tier(name="interactive", ttft=Duration(seconds=20), tbt=Duration(seconds=1))
    reader.learn(pb.GetServerInfoResponse(tiers=[told]))
    assert reader.read(call(text(4))).targets == Targets(20, 1)


def test_lengths_are_in_tokens(reader: Reader) -> None:
    found = reader.read(call(text(400, sampling=pb.Sampling(max_tokens=9))))
    assert (found.prompt_len, found.output_len) == (400 // BYTES_PER_TOKEN, 9)
    ids = pb.Input(token_ids=pb.TokenIds(ids=range(100)))
    assert reader.read(call(pb.GenerateStreamRequest(input=ids))).prompt_len == 100


def test_prefixes_are_shared_by_prompts_that_begin_alike_of_one_tenant(reader: Reader) -> None:
    one, other = text(3 * PREFIX_LEN * BYTES_PER_TOKEN), text(2 * PREFIX_LEN * BYTES_PER_TOKEN)
    other.input.text += "another end"
    keys = reader.read(call(one)).prefixes
    assert len(keys) == 3
    assert reader.read(call(other)).prefixes == keys[:2]
    of_acme = reader.read(call(one, ("niyama-tenant", "acme"))).prefixes
    assert not set(of_acme) & set(keys)


def test_what_is_too_long_to_look_into_counts_by_its_length(reader: Reader) -> None:
    found = reader.read(call(text(MOST_BYTES + 1, qos=pb.QualityOfService(tier="quick"))))
    assert found.prompt_len == pytest.approx(MOST_BYTES / BYTES_PER_TOKEN, rel=0.01)
    assert (found.tier, found.prefixes) == ("slow", ())


@given(st.binary(max_size=200), st.sampled_from([GENERATE, "/niyama.v1.Inference/Explain"]))
def test_nothing_that_a_caller_sends_is_too_bad(raw: bytes, method: str) -> None:
    found = Reader("niyama.toml", FILE, has_gateway=True).read(Call(method, raw, (), 1.0))
    assert found.prompt_len >= 0
