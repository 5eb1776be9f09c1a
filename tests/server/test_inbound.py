"""Requests from the wire: defaults, limits, and every bad field by its path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from engine.deciding.request import BEST_EFFORT, Importance, Request, Sampling, Targets
from engine.tiers import TargetSource, Tiers
from niyama.v1 import inference_pb2 as pb
from server.convert.inbound import (
    Asked,
    Limits,
    engine_requests,
    read_estimate,
    read_generate,
    read_request_id,
    read_tenant,
    to_seconds,
)
from server.violations import InvalidRequest

VOCAB = 100
INF = float("inf")
LIMITS = Limits(context_len=64, kv_len=128, vocab_size=VOCAB, eos_token_ids=frozenset({2}))

Change = Callable[[pb.GenerateRequest], object]


def make_request(**fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(**({"input": pb.Input(text="hello")} | fields))


def read(request: pb.GenerateRequest, timeout_s: float | None = None) -> Asked:
    return read_generate(request, Tiers(), VOCAB, timeout_s)


def violations(call: Callable[[], object]) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        call()
    assert all(v.description for v in caught.value.violations)
    return [v.field for v in caught.value.violations]


def admitted(
    request: pb.GenerateRequest, prompt_len: int = 3, limits: Limits = LIMITS
) -> list[Request]:
    return engine_requests(read(request), "id", range(prompt_len), limits, 77, 1.5)


BAD: list[tuple[str, Change]] = [
    ("input", lambda r: r.ClearField("input")),
    ("input", lambda r: r.input.ClearField("text")),
    ("input.token_ids.ids", lambda r: r.input.token_ids.SetInParent()),
    ("input.token_ids.ids", lambda r: r.input.token_ids.ids.extend([1, VOCAB])),
    ("input.chat.messages", lambda r: r.input.chat.SetInParent()),
    ("input.chat.messages[0].role", lambda r: r.input.chat.messages.add(content="hi")),
    ("request_id", lambda r: setattr(r, "request_id", "x" * 129)),
    ("request_id", lambda r: setattr(r, "request_id", "tab\t")),
    ("request_id", lambda r: setattr(r, "request_id", "naïve")),
    ("sampling.temperature", lambda r: setattr(r.sampling, "temperature", -0.1)),
    ("sampling.temperature", lambda r: setattr(r.sampling, "temperature", 100.5)),
    ("sampling.temperature", lambda r: setattr(r.sampling, "temperature", float("nan"))),
    ("sampling.top_p", lambda r: setattr(r.sampling, "top_p", 0.0)),
    ("sampling.top_p", lambda r: setattr(r.sampling, "top_p", 1.01)),
    ("sampling.min_p", lambda r: setattr(r.sampling, "min_p", -0.01)),
    ("sampling.min_p", lambda r: setattr(r.sampling, "min_p", 1.5)),
    ("sampling.repetition_penalty", lambda r: setattr(r.sampling, "repetition_penalty", 0.0)),
    ("sampling.repetition_penalty", lambda r: setattr(r.sampling, "repetition_penalty", 101.0)),
    ("sampling.presence_penalty", lambda r: setattr(r.sampling, "presence_penalty", -200.0)),
    (
        "sampling.frequency_penalty",
        lambda r: setattr(r.sampling, "frequency_penalty", float("inf")),
    ),
    ("sampling.max_tokens", lambda r: setattr(r.sampling, "max_tokens", 0)),
    ("sampling.stop", lambda r: r.sampling.stop.extend(map(str, range(17)))),
    ("sampling.stop[1]", lambda r: r.sampling.stop.extend(["ok", ""])),
    ("sampling.stop[0]", lambda r: r.sampling.stop.append("é" * 129)),
    ("sampling.stop_token_ids[0]", lambda r: r.sampling.stop_token_ids.append(VOCAB)),
    ("sampling.stop_token_ids", lambda r: r.sampling.stop_token_ids.extend([VOCAB] * 257)),
    ("input.chat.messages", lambda r: r.input.chat.messages.extend([pb.ChatMessage()] * 4097)),
    ("input.chat.messages[0].role", lambda r: r.input.chat.messages.add(role="x" * 129)),
    ("sampling.logprobs", lambda r: setattr(r.sampling, "logprobs", 21)),
    ("sampling.n", lambda r: setattr(r.sampling, "n", 0)),
    ("sampling.n", lambda r: setattr(r.sampling, "n", 17)),
    ("qos.tier", lambda r: setattr(r.qos, "tier", "gold")),
    ("qos.importance", lambda r: setattr(r.qos, "importance", 9)),
    ("qos.application", lambda r: setattr(r.qos, "application", "a" * 129)),
    ("qos.interactive.ttft", lambda r: r.qos.interactive.tbt.FromMilliseconds(50)),
    ("qos.interactive.tbt", lambda r: r.qos.interactive.ttft.FromMilliseconds(50)),
    ("qos.deadline.ttlt", lambda r: r.qos.deadline.SetInParent()),
    ("qos.deadline.ttlt", lambda r: r.qos.deadline.ttlt.SetInParent()),
    ("qos.deadline.ttlt", lambda r: r.qos.deadline.ttlt.FromSeconds(-3)),
    (
        "qos.deadline.ttlt",
        lambda r: r.qos.deadline.ttlt.CopyFrom(Duration(seconds=10**12)),
    ),
    ("qos.deadline.ttlt", lambda r: r.qos.deadline.ttlt.CopyFrom(Duration(seconds=1, nanos=-5))),
]


@pytest.mark.parametrize(("field", "change"), BAD, ids=[f"{i}-{f}" for i, (f, _) in enumerate(BAD)])
def test_a_bad_field_is_named_by_its_path(field: str, change: Change) -> None:
    request = make_request()
    change(request)
    assert violations(lambda: read(request)) == [field]


def test_min_tokens_may_not_exceed_max_tokens() -> None:
    request = make_request(sampling=pb.Sampling(min_tokens=5, max_tokens=4))
    assert violations(lambda: read(request)) == ["sampling.min_tokens"]


def test_a_tier_and_explicit_targets_exclude_each_other() -> None:
    request = make_request(qos=pb.QualityOfService(tier="batch"))
    request.qos.best_effort.SetInParent()
    assert violations(lambda: read(request)) == ["qos.tier"]


def test_all_bad_fields_are_named_at_once() -> None:
    request = make_request(request_id="\n", sampling=pb.Sampling(top_p=2.0, n=99))
    request.qos.interactive.SetInParent()
    assert violations(lambda: read(request)) == [
        "request_id",
        "sampling.n",
        "sampling.top_p",
        "qos.interactive.ttft",
        "qos.interactive.tbt",
    ]


def test_an_empty_sampling_means_the_documented_defaults() -> None:
    (request,) = admitted(make_request())
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (1, 0, 1, 0)
    assert sampling.repetition_penalty == 1
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0, 0)
    assert (sampling.min_tokens, sampling.logprobs) == (0, None)
    assert sampling.stop_token_ids == {2}
    assert sampling.seed == 77  # drawn by the caller
    assert request.id == "id"
    assert request.arrived_at == 1.5


def test_min_tokens_is_refused_where_every_token_of_the_model_is_a_stop_token() -> None:
    """Nothing would be left to pick. Without it the first token ends the output."""
    limits = LIMITS._replace(vocab_size=4, eos_token_ids=frozenset({2, 9}))

    def asked(stops: list[int], **sampling: Any) -> pb.GenerateRequest:
        return make_request(sampling=pb.Sampling(stop_token_ids=stops, **sampling))

    for bad in (asked([0, 1, 3], min_tokens=1), asked([0, 1, 2, 3], min_tokens=9, ignore_eos=True)):
        assert violations(lambda bad=bad: admitted(bad, limits=limits)) == ["sampling.min_tokens"]
    for good in (
        asked([0, 1, 3]),
        asked([0, 1, 3], min_tokens=1, ignore_eos=True),
        asked([0, 1, 7, 8], min_tokens=1),
    ):
        assert admitted(good, limits=limits)


CHECKPOINTS_OWN = Sampling(
    temperature=0.5, top_k=3, top_p=0.75, min_p=0.25, repetition_penalty=1.5, max_tokens=9
)


def test_the_checkpoint_s_sampling_is_that_of_whatever_a_request_leaves_out() -> None:
    limits = LIMITS._replace(sampling=CHECKPOINTS_OWN)
    for form in (pb.Input(text="x"), pb.Input(token_ids=pb.TokenIds(ids=[1]))):
        (request,) = admitted(make_request(input=form), limits=limits)
        expected = replace(CHECKPOINTS_OWN, seed=77, stop_token_ids=frozenset({2}))
        assert request.sampling == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", 1.0),
        ("top_k", 0),
        ("top_p", 1.0),
        ("min_p", 0.0),
        ("repetition_penalty", 1.0),
        ("max_tokens", 128),
    ],
)
def test_what_a_request_states_wins_zero_and_the_engine_s_own_default_too(
    name: str, value: float
) -> None:
    limits = LIMITS._replace(sampling=CHECKPOINTS_OWN, context_len=999, kv_len=999)
    wire = pb.Sampling()
    setattr(wire, name, value)
    (request,) = admitted(make_request(sampling=wire), limits=limits)
    stated = replace(CHECKPOINTS_OWN, **{name: value})
    assert request.sampling == replace(stated, seed=77, stop_token_ids=frozenset({2}))


def test_an_estimate_supposes_the_checkpoint_s_length() -> None:
    limits = LIMITS._replace(sampling=CHECKPOINTS_OWN)
    asked = pb.EstimateRequest(prompt_tokens=3)
    assert read_estimate(asked, Tiers(), limits)[0].default_output_len == 9


@pytest.mark.parametrize(
    ("asked", "prompt_len", "max_tokens"),
    [(None, 3, 61), (5, 3, 5), (1000, 3, 61), (None, 63, 1), (None, 1, 63)],
)
def test_output_ends_at_the_context_whatever_was_asked(
    asked: int | None, prompt_len: int, max_tokens: int
) -> None:
    request = make_request(sampling=pb.Sampling(max_tokens=asked))
    assert admitted(request, prompt_len)[0].sampling.max_tokens == max_tokens


def test_the_default_length_is_128_or_what_memory_leaves() -> None:
    wide = LIMITS._replace(context_len=4096, kv_len=4096)
    narrow = wide._replace(kv_len=100)
    assert admitted(make_request(), limits=wide)[0].sampling.max_tokens == 128
    assert admitted(make_request(), limits=narrow)[0].sampling.max_tokens == 97


@pytest.mark.parametrize(
    ("limits", "prompt_len"), [(LIMITS, LIMITS.context_len), (LIMITS._replace(kv_len=16), 16)]
)
@pytest.mark.parametrize(
    "form", [pb.Input(text="x"), pb.Input(token_ids=pb.TokenIds(ids=[1]))], ids=["text", "ids"]
)
def test_a_prompt_that_leaves_no_room_for_output_is_refused(
    form: pb.Input, limits: Limits, prompt_len: int
) -> None:
    request = make_request(input=form)
    field = f"input.{form.WhichOneof('form')}"
    assert violations(lambda: admitted(request, prompt_len, limits)) == [field]
    assert admitted(request, prompt_len - 1, limits)


def test_an_empty_prompt_is_refused() -> None:
    assert violations(lambda: admitted(make_request(), 0)) == ["input.text"]


def test_more_output_than_memory_ever_holds_is_refused() -> None:
    request = make_request(sampling=pb.Sampling(max_tokens=40))
    small = LIMITS._replace(kv_len=32)
    assert violations(lambda: admitted(request, 3, small)) == ["sampling.max_tokens"]
    assert admitted(request, 3)[0].sampling.max_tokens == 40


def test_completions_become_requests_with_seeds_in_a_row() -> None:
    last = 2**64 - 1
    requests = admitted(make_request(sampling=pb.Sampling(n=3, seed=last)))
    assert [r.name for r in requests] == ["id/0", "id/1", "id/2"]
    assert [r.sampling.seed for r in requests] == [last, 0, 1]


def test_every_field_of_sampling_reaches_the_engine() -> None:
    stated = pb.Sampling(
        temperature=0.5,
        top_k=7,
        top_p=0.75,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=0.125,
        frequency_penalty=2.0,
        seed=3,
        max_tokens=9,
        min_tokens=4,
        stop=["a"],
        stop_token_ids=[5],
        ignore_eos=True,
        logprobs=6,
        n=2,
    )
    assert len(stated.ListFields()) == len(pb.Sampling.DESCRIPTOR.fields)
    request = make_request(sampling=stated)
    first, second = admitted(request)
    assert first.sampling == Sampling(
        temperature=0.5,
        top_k=7,
        top_p=0.75,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=0.125,
        frequency_penalty=2.0,
        seed=3,
        max_tokens=9,
        min_tokens=4,
        stop_token_ids=frozenset({5}),
        logprobs=6,
    )
    assert second.sampling == replace(first.sampling, seed=4)
    assert read(request).stop == ("a",)


def test_stop_tokens_are_the_request_s_and_the_model_s() -> None:
    sampling = pb.Sampling(stop_token_ids=[7])
    assert admitted(make_request(sampling=sampling))[0].sampling.stop_token_ids == {2, 7}
    sampling.ignore_eos = True
    assert admitted(make_request(sampling=sampling))[0].sampling.stop_token_ids == {7}


def test_who_would_rather_be_refused_than_late_has_all_completions_judged_at_the_first() -> None:
    request = make_request(sampling=pb.Sampling(n=3))
    assert [(r.refuse_if_late, r.num_after) for r in admitted(request)] == [
        *((False, 2), (False, 1), (False, 0))
    ]
    request.qos.refuse_if_late = True
    assert all(each.refuse_if_late for each in admitted(request))


def test_explicit_targets_are_read_in_seconds() -> None:
    request = make_request()
    request.qos.interactive.ttft.FromMilliseconds(250)
    request.qos.interactive.tbt.FromMicroseconds(1500)
    request.qos.importance = pb.IMPORTANCE_LOW
    quality = read(request).quality
    assert quality.targets == Targets(ttft_s=0.25, tbt_s=0.0015)
    assert (quality.importance, quality.source) == (Importance.LOW, TargetSource.REQUEST)
    request.qos.best_effort.SetInParent()
    assert read(request).quality.targets == BEST_EFFORT


def test_the_call_s_deadline_caps_the_targets_and_is_none_itself() -> None:
    quality = read(make_request(), timeout_s=120.0).quality
    assert (quality.tier, quality.source) == ("interactive", TargetSource.DEFAULT)
    assert quality.targets == read(make_request()).quality.targets
    named = make_request(qos=pb.QualityOfService(tier="batch"))
    assert read(named, timeout_s=2.0).quality.tier == "batch"
    assert read(named, timeout_s=2.0).quality.targets == Targets(ttlt_s=2.0)


def test_a_token_of_the_prompt_that_the_model_does_not_know_is_refused() -> None:
    limits = LIMITS._replace(vocab_size=9)  # the prompt holds 0 to its length - 1
    assert violations(lambda: admitted(make_request(), 10, limits)) == ["input.text"]
    assert admitted(make_request(), 9, limits)


def test_top_k_beyond_the_vocabulary_is_all_of_it() -> None:
    request = make_request(sampling=pb.Sampling(top_k=2**31))
    assert admitted(request)[0].sampling.top_k == VOCAB


def test_an_estimate_needs_a_prompt_length() -> None:
    tiers, limits = Tiers(), LIMITS._replace(context_len=100, kv_len=80)

    def fields(prompt_tokens: int, output_tokens: int = 0, tier: str = "") -> list[str]:
        qos = pb.QualityOfService(tier=tier)
        asked = pb.EstimateRequest(
            prompt_tokens=prompt_tokens, output_tokens=output_tokens, qos=qos
        )
        return violations(lambda: read_estimate(asked, tiers, limits))

    assert fields(0) == fields(80) == ["prompt_tokens"]
    assert fields(60, 21) == ["output_tokens"]
    assert fields(0, tier="none") == ["prompt_tokens", "qos.tier"]
    asked = pb.EstimateRequest(prompt_tokens=60, qos=pb.QualityOfService(tier="batch"))
    question, quality = read_estimate(asked, tiers, limits)
    assert (question.prompt_len, question.output_len) == (60, None)
    assert question.tier == quality.tier == "batch"
    assert question.default_output_len == 20
    asked.output_tokens = 20
    assert read_estimate(asked, tiers, limits)[0].output_len == 20


def test_explain_needs_an_id() -> None:
    assert violations(lambda: read_request_id(pb.ExplainRequest())) == ["request_id"]
    assert read_request_id(pb.ExplainRequest(request_id="a")) == "a"


def test_durations_are_seconds() -> None:
    assert to_seconds(Duration(seconds=1, nanos=500_000_000)) == 1.5
    assert to_seconds(Duration(seconds=-1, nanos=-500_000_000)) == -1.5


@pytest.mark.parametrize(
    "metadata",
    [
        [("niyama-tenant", "x" * 129)],
        [("niyama-tenant", "tab\t")],
        [("niyama-tenant", "naïve")],
        [("niyama-tenant", "a"), ("niyama-tenant", "a")],
    ],
)
def test_a_tenant_is_one_short_printable_name(metadata: list[tuple[str, str]]) -> None:
    assert violations(lambda: read_tenant(metadata)) == ["niyama-tenant"]
    assert violations(lambda: read_tenant(metadata, "acme")) == ["niyama-tenant"]


def test_a_tenant_is_the_one_that_the_call_names_or_else_the_gateway() -> None:
    assert read_tenant([("niyama-tenant", "a")], "acme") == "a"
    assert read_tenant([("niyama-tenant", "")], "acme") == ""
    assert read_tenant([("user-agent", "x")], "acme") == "acme"
    assert read_tenant([]) == ""


def test_every_engine_request_carries_the_tenant_of_its_call() -> None:
    request = make_request(sampling=pb.Sampling(n=2))
    asked = read_generate(request, Tiers(), VOCAB, None, "acme")
    made = engine_requests(asked, "id", range(3), LIMITS, 77, 1.5)
    assert [each.tenant for each in made] == ["acme", "acme"]
    assert {each.tenant for each in admitted(request)} == {""}
