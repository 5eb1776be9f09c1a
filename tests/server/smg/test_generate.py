"""What VllmEngine's Generate makes of a request: the tokens that our own service makes."""

from __future__ import annotations

import itertools

import pytest
from smg_grpc_proto import vllm_engine_pb2 as vllm

from niyama.v1 import inference_pb2 as pb
from server.smg import inbound
from server.violations import InvalidRequest
from tests.server.conftest import Running, within
from tests.server.smg.asking import BARE, TEXT, TOKENIZER, ask, request_of
from tests.server.test_service import failure

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def own(running: Running, prompt: pb.Input, **sampling: object) -> list[list[int]]:
    """The tokens that our own service makes."""
    sampling = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | sampling
    request = pb.GenerateRequest(input=prompt, sampling=pb.Sampling(**sampling))
    response = await within(running.stub.Generate(request))
    return [list(each.token_ids) for each in response.completions]


@pytest.mark.parametrize("stream", [True, False])
async def test_completions_are_told_in_chunks_and_at_their_end(
    running: Running, stream: bool
) -> None:
    sampling = {"temperature": 1.0, "seed": 3, "n": 2, "logprobs": 2}
    heard = await ask(running, request_of(stream=stream, **sampling))
    assert [each.ids for each in heard] == await own(running, pb.Input(text=TEXT), **sampling)
    for index, (ids, chunks, complete) in enumerate(heard):
        assert (complete.index, complete.finish_reason) == (index, "length")
        assert complete.prompt_tokens == len(BARE) + 1
        assert complete.completion_tokens == len(ids) == 8
        assert bool(chunks) is stream
        assert list(complete.output_ids) == ([] if stream else ids)
        told = [each.output_logprobs for each in chunks] or [complete.output_logprobs]
        assert [i for each in told for i in each.token_ids] == ids
        for each in told:
            assert len(each.token_logprobs) == len(each.top_logprobs) == len(each.token_ids)
            assert all(len(top.values) == len(top.token_ids) == 2 for top in each.top_logprobs)
        counts = [chunk.completion_tokens for chunk in chunks]
        assert counts == list(itertools.accumulate(len(each.token_ids) for each in chunks))


async def test_a_prompt_gets_the_token_that_begins_it_where_it_lacks_that(running: Running) -> None:
    """A gateway adds none; a chat template has written it already."""
    (expected,) = await own(running, pb.Input(text=TEXT))
    whole = TOKENIZER.encode(TEXT)
    for ids in (BARE, whole):
        (heard,) = await ask(running, request_of(ids=ids))
        assert (heard.ids, heard.complete.prompt_tokens) == (expected, len(whole))
    request = request_of()
    request.text = TEXT
    assert [each.ids for each in await ask(running, request)] == [expected]
    (empty,) = await ask(running, request_of(ids=[]))
    assert empty.complete.prompt_tokens == 1


async def test_a_long_prompt_is_read_by_another_process(running: Running) -> None:
    ids = [300 + i % 1000 for i in range(200)]
    request = request_of(ids=ids, max_tokens=4)
    request.tokenized.original_text = "a" * 40_000  # of no use, and long
    (heard,) = await ask(running, request)
    prompt = pb.TokenIds(ids=[1, *ids])
    assert [heard.ids] == await own(running, pb.Input(token_ids=prompt), max_tokens=4)
    request.sampling_params.stop.extend(["x"] * 40_000)
    error = await failure(ask(running, request))
    assert "sampling_params.stop: must be at most 16 texts" in str(error.details())


@pytest.mark.parametrize("stream", [True, False])
async def test_stop_strings_and_stop_tokens_end_the_output(running: Running, stream: bool) -> None:
    """The gateway cuts the text, and would not stop who makes tokens."""
    (whole,) = await ask(running, request_of(max_tokens=16))
    stop_id = whole.ids[3]
    (heard,) = await ask(running, request_of(stream=stream, stop_token_ids=[stop_id]))
    assert heard.ids == whole.ids[: whole.ids.index(stop_id) + 1]
    assert heard.complete.finish_reason == "stop"
    assert heard.complete.matched_token_id == stop_id
    text = TOKENIZER.decode(whole.ids)
    stop = text[4:9]
    (heard,) = await ask(running, request_of(stream=stream, max_tokens=16, stop=[stop]))
    assert heard.ids == whole.ids[: len(heard.ids)]
    assert len(heard.ids) < 16
    assert stop in TOKENIZER.decode(heard.ids)
    assert heard.complete.matched_stop_str == stop
    assert heard.complete.completion_tokens == len(heard.ids)


@pytest.mark.parametrize(
    ("field", "sampling"),
    [
        ("n", {"n": 17}),
        ("temperature", {"temperature": float("nan")}),
        ("top_p", {"top_p": float("nan")}),
        ("min_p", {"min_p": -0.5}),
        ("max_tokens", {"max_tokens": 0}),
        ("min_tokens", {"min_tokens": 9}),
        ("logprobs", {"logprobs": -1}),
        ("logprobs", {"logprobs": 21}),
        ("prompt_logprobs", {"prompt_logprobs": 0}),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": 5}),
        ("logit_bias", {"logit_bias": {3: 1.0}}),
        ("stop[0]", {"stop": [""]}),
        ("stop_token_ids[0]", {"stop_token_ids": [2048]}),
        ("json_schema", {"json_schema": "{}"}),
        ("regex", {"regex": ""}),
        ("grammar", {"grammar": "root"}),
        ("structural_tag", {"structural_tag": "{}"}),
        ("json_object", {"json_object": True}),
        ("choice", {"choice": vllm.ChoiceConstraint(choices=["a"])}),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    running: Running, field: str, sampling: dict[str, object]
) -> None:
    error = await failure(ask(running, request_of(**sampling)))
    assert error.code().name == "INVALID_ARGUMENT"
    assert str(error.details()).startswith(f"sampling_params.{field}: ")


@pytest.mark.parametrize(
    ("told", "fields"),
    [
        ("tokenized.input_ids: must be below 2048, got 4096", {"ids": [4096]}),
        ("tokenized.input_ids: holds 5000 tokens", {"ids": [5] * 5000}),
        ("request_id: must be printable ASCII", {"request_id": "\u00fc"}),
        ("input: is required", {"clear": "input"}),
        ("mm_inputs: is not supported", {"mm_inputs": vllm.MultimodalInputs()}),
        ("extra_mm_inputs: is not", {"extra_mm_inputs": [vllm.MultimodalInputs()]}),
        ("media_refs: is not supported", {"media_refs": vllm.MediaRefs()}),
        ("kv_transfer_params: is not", {"kv_transfer_params": vllm.KvTransferParams()}),
        ("kv_transfer_params_json: is not", {"kv_transfer_params_json": "{}"}),
        ("data_parallel_rank: is not supported", {"data_parallel_rank": 1}),
    ],
)
async def test_a_bad_request_is_told_by_its_field(
    running: Running, told: str, fields: dict[str, object]
) -> None:
    known = {name: fields.pop(name) for name in ("ids", "request_id") if name in fields}
    request = request_of(**known)  # type: ignore[arg-type]
    if name := fields.pop("clear", None):
        request.ClearField(request.WhichOneof(name))
    request.MergeFrom(vllm.GenerateRequest(**fields))
    error = await failure(ask(running, request))
    assert error.code().name == "INVALID_ARGUMENT"
    assert str(error.details()).startswith(told)


async def test_what_is_harmless_is_taken(running: Running) -> None:
    expected = await ask(running, request_of())
    request = request_of(
        json_object=False,
        seed=-1,
        skip_special_tokens=True,
        spaces_between_special_tokens=True,
        include_stop_str_in_output=True,
        grammar_from_first_token=True,
        top_p=1.0,
        repetition_penalty=1.0,
        n=1,
    )
    request.data_parallel_rank = 0
    assert [each.ids for each in await ask(running, request)] == [each.ids for each in expected]


async def test_what_is_left_out_is_the_checkpoint_s_and_what_is_0_is_meant() -> None:
    """A gateway fills in the defaults that it is told, so a client of its has asked for that 0."""
    for sampling in (vllm.SamplingParams(), vllm.SamplingParams(top_k=0, min_p=0.0)):
        request = vllm.GenerateRequest(text=TEXT, sampling_params=sampling)
        message = inbound.parse(request.SerializeToString())
        stated = [field.name for field, _ in message.sampling.ListFields()]
        assert stated == ["top_k", "min_p"]
        assert (message.sampling.top_k, message.sampling.min_p) == (0, 0.0)
    stated_all = vllm.SamplingParams(temperature=0.0, top_p=0.5, top_k=3, min_p=0.25, max_tokens=7)
    request = vllm.GenerateRequest(text=TEXT, sampling_params=stated_all)
    got = inbound.parse(request.SerializeToString()).sampling
    assert (got.temperature, got.top_p, got.top_k, got.min_p, got.max_tokens) == (
        0,
        0.5,
        3,
        0.25,
        7,
    )


async def test_no_field_of_the_protocol_is_left_out() -> None:
    """Each is taken, or is refused by its name."""
    for field in vllm.GenerateRequest.DESCRIPTOR.fields:
        if field.name not in inbound.REQUEST:
            assert field.name in refused_of(vllm.GenerateRequest(), field), field.name
    for field in vllm.SamplingParams.DESCRIPTOR.fields:
        if field.name not in inbound.SAMPLING:
            request = vllm.GenerateRequest()
            assert f"sampling_params.{field.name}" in refused_of(
                request, field, request.sampling_params
            )


def refused_of(request: object, field: object, message: object = None) -> list[str]:
    """The fields that are refused where this one has some value."""
    inner = request if message is None else message
    value = getattr(inner, field.name)  # type: ignore[attr-defined]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:  # type: ignore[attr-defined]
        value[1] = 1.0
    elif field.is_repeated:  # type: ignore[attr-defined]
        value.add()
    elif field.message_type is not None:  # type: ignore[attr-defined]
        value.SetInParent()
    else:
        setattr(inner, field.name, type(value)(1))  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequest) as caught:
        inbound.parse(request.SerializeToString())  # type: ignore[attr-defined]
    return [each.field for each in caught.value.violations]
