"""Arguments become the request that they say, and nothing that was left out is sent."""

import pytest
from google.protobuf.duration_pb2 import Duration

from niyama.client import Importance, InvalidRequest, Targets
from niyama.client.convert import from_stream_response, to_estimate_request, to_stream_request
from niyama.client.options import SamplingOptions
from niyama.client.values import Accepted, Finished
from niyama.v1 import inference_pb2 as pb


def test_a_bare_prompt_sends_nothing_else() -> None:
    assert to_stream_request("hi", {}) == pb.GenerateStreamRequest(input=pb.Input(text="hi"))


def test_none_is_the_same_as_leaving_out() -> None:
    assert to_stream_request("hi", {"tier": None, "seed": None}) == to_stream_request("hi", {})


def test_prompts_of_three_forms() -> None:
    assert to_stream_request([5, 6], {}).input.token_ids.ids == [5, 6]
    assert to_stream_request("", {}).input.WhichOneof("form") == "text"
    chat = to_stream_request([{"role": "user", "content": "hi"}], {}).input.chat
    assert [(message.role, message.content) for message in chat.messages] == [("user", "hi")]


def test_zero_is_sent_where_it_differs_from_the_default() -> None:
    sampling = to_stream_request("hi", {"temperature": 0.0, "logprobs": 0}).sampling
    assert sampling.HasField("temperature")
    assert sampling.HasField("logprobs")
    assert not sampling.HasField("top_k")


def test_sampling_arguments_arrive() -> None:
    sampling = to_stream_request(
        "hi", {"stop": "\n", "stop_token_ids": [7], "seed": 2**64 - 1, "ignore_eos": True, "n": 3}
    ).sampling
    assert (list(sampling.stop), list(sampling.stop_token_ids)) == (["\n"], [7])
    assert (sampling.seed, sampling.ignore_eos, sampling.n) == (2**64 - 1, True, 3)
    assert list(to_stream_request("hi", {"stop": ["a", "b"]}).sampling.stop) == ["a", "b"]


def test_every_field_of_sampling_is_an_argument_and_arrives() -> None:
    stated = {
        **{"temperature": 0.5, "top_k": 7, "top_p": 0.75, "min_p": 0.25, "seed": 3, "n": 2},
        **{"repetition_penalty": 1.5, "presence_penalty": 0.125, "frequency_penalty": 2.0},
        **{"max_tokens": 9, "min_tokens": 4, "stop": ["a"], "stop_token_ids": [5]},
        **{"ignore_eos": True, "logprobs": 6},
    }
    assert stated.keys() == {field.name for field in pb.Sampling.DESCRIPTOR.fields}
    assert stated.keys() == SamplingOptions.__annotations__.keys()
    sent = to_stream_request("hi", stated).sampling.ListFields()
    assert {field.name: value for field, value in sent} == stated


def test_explicit_targets_are_durations() -> None:
    qos = to_stream_request("hi", {"ttft": 0.5, "tbt": 0.05}).qos
    assert qos.WhichOneof("targets") == "interactive"
    assert qos.interactive.ttft.ToNanoseconds() == 500_000_000
    assert qos.interactive.tbt.ToNanoseconds() == 50_000_000
    assert to_stream_request("hi", {"ttlt": 30}).qos.deadline.ttlt.seconds == 30
    assert to_stream_request("hi", {"best_effort": True}).qos.WhichOneof("targets") == "best_effort"


@pytest.mark.parametrize("importance", ["high", Importance.HIGH])
def test_importance_is_a_word_or_a_member(importance: Importance | str) -> None:
    assert to_stream_request("hi", {"importance": importance}).qos.importance == pb.IMPORTANCE_HIGH


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"ttft": 0.5}, "qos.interactive.tbt"),
        ({"tbt": 0.5}, "qos.interactive.ttft"),
        ({"ttft": 0.5, "tbt": 0.05, "ttlt": 3.0}, "qos"),
        ({"ttlt": 3.0, "best_effort": True}, "qos"),
        ({"ttlt": float("nan")}, "qos.deadline.ttlt"),
        ({"ttlt": float("inf")}, "qos.deadline.ttlt"),
        ({"importance": "huge"}, "qos.importance"),
        ({"refuse_if_late": "yes"}, "qos.refuse_if_late"),
        ({"max_tokens": -1}, "sampling.max_tokens"),
        ({"top_k": -1}, "sampling.top_k"),
        ({"seed": 2**64}, "sampling.seed"),
        ({"temperature": "hot"}, "sampling.temperature"),
    ],
)
def test_arguments_that_make_no_request_name_their_field(
    options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_stream_request("hi", options)
    assert caught.value.field == field


def test_prompts_that_make_no_request() -> None:
    with pytest.raises(InvalidRequest, match="token_ids"):
        to_stream_request([-1], {})
    with pytest.raises(InvalidRequest, match="role and content"):
        to_stream_request([{"role": "user"}], {})
    with pytest.raises(InvalidRequest, match="text, token ids or chat"):
        to_stream_request(5, {})  # type: ignore[arg-type]  # what is tested


def test_a_misspelt_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="max_token"):
        to_stream_request("hi", {"max_token": 3})
    with pytest.raises(TypeError, match="seed"):
        to_estimate_request(1, 1, {"seed": 1})  # type: ignore[typeddict-unknown-key]  # what is tested


def test_a_request_may_ask_to_be_refused_rather_than_be_late() -> None:
    for asked in (True, False):
        assert to_stream_request("hi", {"refuse_if_late": asked}).qos.refuse_if_late is asked
    assert to_estimate_request(1, 1, {"refuse_if_late": True}).qos.refuse_if_late
    assert not to_stream_request("hi", {"refuse_if_late": None}).HasField("qos")


def test_it_is_told_where_targets_come_from_and_what_would_have_been_inferred() -> None:
    inferred = pb.ResolvedTargets(
        ttlt=Duration(seconds=9), source=pb.TARGET_SOURCE_INFERRED, reason="its deadlines"
    )
    targets = pb.ResolvedTargets(source=pb.TARGET_SOURCE_GATEWAY, reason="x-slo-ttft-ms")
    accepted = from_stream_response(
        pb.GenerateStreamResponse(accepted=pb.Accepted(targets=targets, inferred=inferred))
    )
    assert isinstance(accepted, Accepted)
    assert (accepted.targets.source, accepted.targets.reason) == ("gateway", "x-slo-ttft-ms")
    assert accepted.inferred is not None
    assert accepted.inferred.targets == Targets(ttlt=9.0)
    assert (accepted.inferred.source, accepted.inferred.reason) == ("inferred", "its deadlines")
    plain = from_stream_response(pb.GenerateStreamResponse(accepted=pb.Accepted(targets=targets)))
    assert isinstance(plain, Accepted)
    assert plain.inferred is None


def test_what_only_a_newer_server_knows_breaks_nothing() -> None:
    targets = pb.ResolvedTargets(tier="batch")
    targets.source = 99  # type: ignore[assignment]  # what is tested
    result = pb.TargetResult()
    result.name = 98  # type: ignore[assignment]
    finished = from_stream_response(
        pb.GenerateStreamResponse(finished=pb.Finished(targets=[result]))
    )
    assert isinstance(finished, Finished)
    assert finished.targets[0].name == "98"
    accepted = from_stream_response(
        pb.GenerateStreamResponse(accepted=pb.Accepted(targets=targets))
    )
    assert isinstance(accepted, Accepted)
    assert accepted.targets.source == "99"
