"""Every RPC against a real server and the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from engine.checkpoint.tokenizer import Tokenizer
from engine.embedded import FOLDER
from niyama.v1 import inference_pb2 as pb
from server.errors import MOST_RETRY_AFTER_S
from server.frontend import SERVICE
from tests.server.conftest import MAX_REQUESTS, Ended, Running, within

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = pb.Input(text="In the beginning")
TOKENIZER = Tokenizer.load(FOLDER)


def asked(kind: type[Any] = pb.GenerateStreamRequest, **sampling: object) -> Any:
    sampling = {"seed": 1, "max_tokens": 12, "ignore_eos": True} | sampling
    return kind(input=PROMPT, sampling=pb.Sampling(**sampling))


async def read(call: grpc.aio.UnaryStreamCall) -> list[pb.GenerateStreamResponse]:
    async def collect() -> list[pb.GenerateStreamResponse]:
        return [response async for response in call]

    return await within(collect())


async def stream(running: Running, **sampling: object) -> list[pb.GenerateStreamResponse]:
    return await read(running.stub.GenerateStream(asked(**sampling)))


async def complete(running: Running, **sampling: object) -> Sequence[pb.Completion]:
    response = await within(running.stub.Generate(asked(pb.GenerateRequest, **sampling)))
    return response.completions


async def failure(call: Any, detail: Message | None = None) -> grpc.aio.AioRpcError:
    """The error that the call ends with; unpacks its one detail into `detail`."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await within(call)
    status = rpc_status.from_call(Ended(caught.value))
    assert status is not None
    if detail is not None:
        assert status.details[0].Unpack(detail)
    return caught.value


def details(error: grpc.aio.AioRpcError) -> list[Any]:
    """The details of a status, unpacked."""
    status = rpc_status.from_call(Ended(error))
    assert status is not None
    found = []
    for packed in status.details:
        found.append(getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])())
        assert packed.Unpack(found[-1])
    return found


async def test_a_stream_is_accepted_then_tokens_then_finished(running: Running) -> None:
    events = await stream(running)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["accepted", *["tokens"] * (len(kinds) - 2), "finished"]
    accepted, finished = events[0].accepted, events[-1].finished
    ids = [i for event in events for i in event.tokens.token_ids]
    text = "".join(event.tokens.text for event in events)
    prompt = TOKENIZER.encode(PROMPT.text)
    assert TOKENIZER.decode([*prompt, *ids]) == PROMPT.text + text
    assert accepted.prompt_tokens == finished.usage.prompt_tokens == len(prompt)
    assert finished.usage.output_tokens == len(ids) == 12
    assert finished.reason == pb.FINISH_REASON_LENGTH
    assert accepted.request_id
    assert accepted.targets.tier == "interactive"
    assert accepted.targets.source == pb.TARGET_SOURCE_DEFAULT


async def test_timings_are_told_with_each_target(running: Running) -> None:
    finished = (await stream(running))[-1].finished
    timings, targets = finished.timings, {t.name: t for t in finished.targets}
    assert 0 < timings.ttft.ToNanoseconds() <= timings.ttlt.ToNanoseconds()
    assert 0 < timings.mean_tbt.ToNanoseconds() <= timings.worst_tbt.ToNanoseconds()
    assert set(targets) == {pb.TARGET_NAME_TTFT, pb.TARGET_NAME_TBT}
    due_s = running.service.tiers.tiers["interactive"].targets.ttft_s
    assert targets[pb.TARGET_NAME_TTFT].target.ToTimedelta().total_seconds() == due_s
    assert targets[pb.TARGET_NAME_TTFT].actual == timings.ttft


async def test_unary_and_stream_give_the_same_for_the_same_seed(running: Running) -> None:
    events = await stream(running)
    (completion,) = await complete(running)
    assert completion.text == "".join(event.tokens.text for event in events)
    assert completion.token_ids == [i for event in events for i in event.tokens.token_ids]
    assert completion.finished.usage == events[-1].finished.usage


async def test_a_seed_decides_the_output_and_its_absence_does_not(running: Running) -> None:
    (one,), (same,), (other,) = [await complete(running, seed=seed) for seed in (7, 7, 8)]
    assert one.text == same.text != other.text
    request = asked(pb.GenerateRequest)
    request.sampling.ClearField("seed")
    drawn = {(await within(running.stub.Generate(request))).completions[0].text for _ in range(3)}
    assert len(drawn) > 1


async def test_completion_i_of_a_seeded_request_is_that_of_seed_plus_i(running: Running) -> None:
    three = await complete(running, seed=5, n=3)
    assert [completion.index for completion in three] == [0, 1, 2]
    (alone,) = await complete(running, seed=7)
    assert three[2].text == alone.text


async def test_a_stream_of_several_completions_ends_each_of_them(running: Running) -> None:
    events = await stream(running, n=2)
    assert [e.WhichOneof("event") for e in events].count("accepted") == 1
    assert sorted(e.finished.index for e in events if e.HasField("finished")) == [0, 1]
    unary = await complete(running, n=2)
    for index in range(2):
        text = "".join(e.tokens.text for e in events if e.tokens.index == index)
        assert text == unary[index].text


async def test_log_probabilities_come_with_every_token(running: Running) -> None:
    (completion,) = await complete(running, logprobs=3, temperature=0.0)
    assert len(completion.logprobs) == len(completion.token_ids)
    for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert [top.logprob for top in entry.top] == sorted(
            (top.logprob for top in entry.top), reverse=True
        )
        assert len(entry.top) == 3
        assert entry.top[0].token_id == token_id  # greedy
        assert entry.logprob == pytest.approx(entry.top[0].logprob)
    (plain,) = await complete(running)
    assert not plain.logprobs


async def test_a_stop_string_ends_the_text_before_it(running: Running) -> None:
    (whole,) = await complete(running, max_tokens=40)
    stop = whole.text[10:14]
    cut = whole.text.index(stop)
    (stopped,) = await complete(running, max_tokens=4000, stop=[stop])
    assert stopped.text == whole.text[:cut]
    assert stopped.finished.reason == pb.FINISH_REASON_STOP
    assert stopped.finished.matched_stop == stop
    assert stopped.finished.usage.output_tokens == len(stopped.token_ids) < 40
    stats = await running.stats()
    assert stats.pages_free == stats.pages_total


async def test_a_stop_string_counts_that_begins_within_min_tokens_and_ends_later(
    running: Running,
) -> None:
    (whole,) = await complete(running, max_tokens=40)
    feed = TOKENIZER.detokenizer(TOKENIZER.encode(PROMPT.text)).feed
    least = len("".join(map(feed, whole.token_ids[:20])))
    stop = whole.text[least - 3 : least + 3]
    assert whole.text.index(stop) == least - 3
    events = await stream(running, max_tokens=4000, min_tokens=20, stop=[stop])
    finished = events[-1].finished
    assert (finished.reason, finished.matched_stop) == (pb.FINISH_REASON_STOP, stop)
    assert "".join(event.tokens.text for event in events) == whole.text[: least - 3]
    assert 20 < finished.usage.output_tokens < 40


async def test_a_stop_token_ends_the_output(running: Running) -> None:
    (whole,) = await complete(running)
    token = whole.token_ids[5]
    at = list(whole.token_ids).index(token)
    (stopped,) = await complete(running, stop_token_ids=[token])
    assert stopped.token_ids == whole.token_ids[: at + 1]
    assert stopped.finished.reason == pb.FINISH_REASON_STOP
    assert stopped.finished.matched_stop == ""


async def test_all_forms_of_the_prompt_are_counted_as_they_are_served(running: Running) -> None:
    ids = TOKENIZER.encode(PROMPT.text)
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello!")])
    forms = [PROMPT, pb.Input(token_ids=pb.TokenIds(ids=ids)), pb.Input(chat=chat)]
    for form in forms:
        counted = await within(running.stub.CountTokens(pb.CountTokensRequest(input=form)))
        sampling = pb.Sampling(max_tokens=1)
        served = await within(
            running.stub.Generate(pb.GenerateRequest(input=form, sampling=sampling))
        )
        usage = served.completions[0].finished.usage
        assert counted.count == len(counted.token_ids) == usage.prompt_tokens
    first, second, rendered = [
        (await within(running.stub.CountTokens(pb.CountTokensRequest(input=f)))).token_ids
        for f in forms
    ]
    assert first == second == ids
    assert "Hello!" in TOKENIZER.decode(rendered)


async def test_a_long_prompt_is_encoded_off_the_event_loop_and_alike(running: Running) -> None:
    text = "And God said, Let there be light. " * 200
    request = pb.CountTokensRequest(input=pb.Input(text=text))
    counted = await within(running.stub.CountTokens(request))
    assert counted.token_ids == TOKENIZER.encode(text)


async def test_server_info_describes_the_model_the_tiers_and_the_limits(running: Running) -> None:
    info = await within(running.stub.GetServerInfo(pb.GetServerInfoRequest()))
    assert info.model.architecture == "LlamaForCausalLM"
    assert info.model.context_length > 100
    assert info.model.vocabulary_size == TOKENIZER.vocab_size
    assert info.model.has_chat_template
    assert [tier.name for tier in info.tiers] == ["interactive", "standard", "batch"]
    assert info.default_tier == "interactive"
    tiers = running.service.tiers.tiers  # no tighter than this machine can keep
    assert info.tiers[0].ttft.ToTimedelta().total_seconds() == tiers["interactive"].targets.ttft_s
    assert info.tiers[2].ttlt.ToTimedelta().total_seconds() == tiers["batch"].targets.ttlt_s
    assert info.limits.max_requests == MAX_REQUESTS
    stats = await running.stats()
    assert info.limits.kv_tokens == stats.pages_total * 16


@pytest.mark.parametrize("unary", [True, False], ids=["unary", "stream"])
async def test_a_bad_request_names_its_fields_on_the_wire(running: Running, unary: bool) -> None:
    bad = {"top_p": 1.5, "n": 99}
    call = complete(running, **bad) if unary else stream(running, **bad)
    detail = error_details_pb2.BadRequest()
    error = await failure(call, detail)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert {v.field for v in detail.field_violations} == {"sampling.top_p", "sampling.n"}


async def test_a_prompt_beyond_the_context_is_refused(running: Running) -> None:
    info = running.server.engine.link.info
    assert info is not None
    prompt = pb.Input(token_ids=pb.TokenIds(ids=[5] * info.context_len))
    detail = error_details_pb2.BadRequest()
    error = await failure(running.stub.Generate(pb.GenerateRequest(input=prompt)), detail)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert detail.field_violations[0].field == "input.token_ids"
    assert str(info.context_len) in detail.field_violations[0].description


async def test_a_full_queue_says_when_to_try_again(running: Running) -> None:
    detail = error_details_pb2.RetryInfo()
    occupant = running.stub.GenerateStream(asked(max_tokens=3000))
    await within(occupant.read())
    error = await failure(complete(running, n=MAX_REQUESTS), detail)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 1 <= detail.retry_delay.ToSeconds() <= MOST_RETRY_AFTER_S
    occupant.cancel()
    await within(running.service.calls.idle.wait())
    assert len(await complete(running, n=MAX_REQUESTS)) == MAX_REQUESTS


async def test_more_completions_than_the_queue_can_ever_hold_are_no_full_queue(
    running: Running,
) -> None:
    """Told to try again, a client does, for ever."""
    detail = error_details_pb2.BadRequest()
    error = await failure(complete(running, n=MAX_REQUESTS + 1), detail)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = detail.field_violations
    assert violation.field == "sampling.n"
    assert f"at most {MAX_REQUESTS}" in violation.description


async def test_an_id_in_flight_is_refused_and_free_afterwards(running: Running) -> None:
    request = asked(max_tokens=3000)
    request.request_id = "mine"
    first = running.stub.GenerateStream(request)
    accepted = await within(first.read())
    assert accepted.accepted.request_id == "mine"
    detail = error_details_pb2.ErrorInfo()
    error = await failure(read(running.stub.GenerateStream(request)), detail)
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert detail.reason == "REQUEST_ID_IN_FLIGHT"
    first.cancel()
    await within(running.service.calls.idle.wait())
    await running.stats()
    request.sampling.max_tokens = 1
    assert (await read(running.stub.GenerateStream(request)))[-1].HasField("finished")


async def test_a_call_with_a_deadline_and_nothing_else_is_served_as_the_default_tier(
    running: Running,
) -> None:
    """Every backend sets deadlines: as targets they made TTLT 120 s of an interactive chat."""
    targets = (await read(running.stub.GenerateStream(asked(), timeout=120)))[0].accepted.targets
    assert targets.source == pb.TARGET_SOURCE_DEFAULT
    assert targets.tier == "interactive"
    assert targets.HasField("ttft")
    assert not targets.HasField("ttlt")


async def test_health_knows_the_server_and_its_service(running: Running) -> None:
    assert await running.status("") == await running.status(SERVICE) == "SERVING"
    error = None
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        error = await running.status("no.such.Service")
    assert error is None
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
