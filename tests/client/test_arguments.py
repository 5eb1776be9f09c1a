"""Any argument either makes a request or is refused at once, by the name of its field."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from niyama.client import AsyncClient, Client, InvalidRequest
from niyama.client.convert import to_estimate_request, to_explain_request, to_stream_request

LONE = "a\udcffb"  # what Python makes of a byte 0xff among the arguments
HUGE = pytest.param(10**5000, id="5000 digits")  # more than Python writes out
TEXTS = ("request_id", "tier", "application")
FLOATS = ("temperature", "top_p", "min_p", "presence_penalty")
WHOLES = ("top_k", "seed", "max_tokens", "min_tokens", "logprobs", "n")
QOS = {"tier": "qos.tier", "application": "qos.application"}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Nobody listens there: what makes a call is given up before anybody would."""
    with Client("127.0.0.1:1") as client:
        yield client


def refused(prompt: Any, options: dict[str, Any]) -> str:
    """The field."""
    with pytest.raises(InvalidRequest) as caught:
        to_stream_request(prompt, options)
    assert len(str(caught.value)) < 400
    return caught.value.field


def refusal(call: Callable[[], None]) -> InvalidRequest | None:
    """Anything else that is raised is not caught."""
    try:
        call()
    except InvalidRequest as error:
        return error
    return None


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [LONE, 1, b"acme", ["a"], "x" * 5_000_000 + LONE])
def test_text_is_unicode_text(name: str, value: object) -> None:
    assert refused("hi", {name: value}) == QOS.get(name, name)


@pytest.mark.parametrize("value", [5, [1], ["a", LONE], LONE, b"stop", {"a": 1}, iter("a")])
def test_stop_is_one_text_or_several(value: object) -> None:
    assert refused("hi", {"stop": value}) == "sampling.stop"


@pytest.mark.parametrize("value", [5, "12", ["a"], [1.0], [True], [-1], [2**32], [None], b"a"])
def test_stop_tokens_are_whole_numbers_of_the_fields_range(value: object) -> None:
    assert refused("hi", {"stop_token_ids": value}) == "sampling.stop_token_ids"


@pytest.mark.parametrize("name", WHOLES)
@pytest.mark.parametrize("value", [True, 1.0, "1", math.nan, 2**64, -1, HUGE, [1], object()])
def test_a_count_is_a_whole_number_of_the_fields_range(name: str, value: object) -> None:
    assert refused("hi", {name: value}) == f"sampling.{name}"


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [True, "1", b"1", 10**400, [1.0], "x" * 1_000_000])
def test_a_number_is_a_number(name: str, value: object) -> None:
    assert refused("hi", {name: value}) == f"sampling.{name}"


@pytest.mark.parametrize("name", ["ignore_eos", "best_effort"])
def test_a_switch_is_true_or_false(name: str) -> None:
    """The text "no" is true to Python."""
    assert refused("hi", {name: "no"}).endswith(name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e15, 1e300, 10**400, "3", True])
def test_a_target_is_a_duration(value: object) -> None:
    assert refused("hi", {"ttlt": value}) == "qos.deadline.ttlt"
    assert refused("hi", {"ttft": value, "tbt": 1}) == "qos.interactive.ttft"
    assert refused("hi", {"ttft": 1, "tbt": value}) == "qos.interactive.tbt"


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (None, "input"),
        (5, "input"),
        (b"bytes", "input"),
        (iter([1]), "input"),
        ({"role": "user", "content": "hi"}, "input"),
        ([], "input"),
        (LONE, "input.text"),
        ([1, "a"], "input.token_ids.ids"),
        ([1, {"role": "user", "content": "hi"}], "input.token_ids.ids"),
        (["hi"], "input.token_ids.ids"),
        ([2**32], "input.token_ids.ids"),
        ([{"role": "user", "content": "hi"}, 5], "input.chat.messages"),
        ([{"role": "user", 5: "hi"}], "input.chat.messages"),
        ([{"role": LONE, "content": "hi"}], "input.chat.messages.role"),
        ([{"role": 5, "content": "hi"}], "input.chat.messages.role"),
        ([{"role": "user", "content": None}], "input.chat.messages.content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "input.chat.messages.content"),
    ],
)
def test_a_prompt_is_text_token_ids_or_messages(prompt: object, field: str) -> None:
    assert refused(prompt, {}) == field


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    options = {"seed": numpy.int64(3), "temperature": numpy.float32(0.5), "ttlt": numpy.float64(2)}
    request = to_stream_request([numpy.int32(5)], options)
    assert request == to_stream_request([5], {"seed": 3, "temperature": 0.5, "ttlt": 2})


@pytest.mark.parametrize("value", [math.nan, -1, 0, -math.inf, "3", True, [1]])
def test_a_timeout_that_is_none_makes_no_call(client: Client, value: Any) -> None:
    for call in (client.generate, client.complete):
        with pytest.raises(InvalidRequest) as caught:
            call("hi", timeout=value)
        assert caught.value.field == "timeout"
    with pytest.raises(InvalidRequest):
        Client("127.0.0.1:1", timeout=value)


@pytest.mark.parametrize("seconds", [math.inf, 1e10, 1e300])
async def test_a_timeout_without_end_is_no_limit(address: str, seconds: float) -> None:
    """gRPC takes a deadline beyond the year 2262 for one that has passed."""
    async with AsyncClient(address, timeout=seconds) as client:
        assert await client.generate("one two", timeout=seconds).read() == "one two "
        assert (await client.complete("one", timeout=seconds)).text == "one "
        assert (await client.server_info()).policy == "fcfs"


@pytest.mark.parametrize("tenant", [LONE, "ä", "a\nb", 5, 0, b"", b"acme", "x" * 129])
def test_a_tenant_is_a_name_that_can_be_sent(client: Client, tenant: Any) -> None:
    """A long one would not be refused but RESOURCE_EXHAUSTED, and tried again."""
    with pytest.raises(InvalidRequest) as caught:
        client.generate("hi", tenant=tenant)
    assert caught.value.field == "niyama-tenant"
    with pytest.raises(InvalidRequest):
        Client("127.0.0.1:1", tenant=tenant)
    with pytest.raises(InvalidRequest):
        client.explain("an id", tenant=tenant)


@pytest.mark.parametrize("token", ["", " ", "two words", LONE, 5, b"secret", "a\nb"])
def test_a_token_is_one_word_and_never_shown(token: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^a token is one word of printable ASCII$") as caught:
        Client("127.0.0.1:1", token=token)
    assert caught.value.field == "token"


BAD_ADDRESSES = [
    *("", " ", "host", "host:", ":50051", "host:0", "host:99999", "host:port", "host:50051/path"),
    *("http://host:50051", "https://host", "::1:50051", "[::1]", "a b:1", "h\0:1", "h\n:1"),
    *(LONE + ":1", "unix:", "dns:///", "host:50051,other:50051"),
]


@pytest.mark.parametrize("server", [*BAD_ADDRESSES, None, 50051, b"host:1"])
async def test_what_is_no_address_makes_no_client(server: Any) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequest) as caught:
            kind(server)
        assert caught.value.field == "server"


@pytest.mark.parametrize(
    "server",
    ["host:1", "[::1]:50051", "[fe80::1%eth0]:1", "127.0.0.1:65535", "dns:///h:1", "unix:/a b"],
)
def test_what_grpc_takes_for_an_address_does(server: str) -> None:
    Client(server).close()


@pytest.mark.parametrize("value", [None, "1", 1.0, True, -1, 2**32])
def test_an_estimate_is_of_whole_numbers(value: Any) -> None:
    for given_, field in (((value, 1), "prompt_tokens"), ((1, value), "output_tokens")):
        with pytest.raises(InvalidRequest) as caught:
            to_estimate_request(*given_, {})
        assert caught.value.field == field


@pytest.mark.parametrize("value", [None, 5, LONE, b"id"])
def test_an_explanation_is_of_a_text(value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_explain_request(value)
    assert caught.value.field == "request_id"


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=5),
    st.sampled_from([LONE, "high", "interactive", 2**32, 2**64, 10**400, 1e300, math.inf]),
    st.binary(max_size=3),
)
MESSAGES = st.fixed_dictionaries({"role": SCALARS, "content": SCALARS})
ANYTHING = st.one_of(
    SCALARS,
    st.lists(st.one_of(SCALARS, MESSAGES), max_size=3),
    st.tuples(SCALARS),
    st.dictionaries(SCALARS, SCALARS, max_size=2),
    st.sets(st.integers(), max_size=2),
    st.builds(object),
)
NAMES = [
    *(*TEXTS, *FLOATS, *WHOLES, "repetition_penalty", "frequency_penalty", "stop"),
    *("stop_token_ids", "ignore_eos", "ttft", "tbt", "ttlt", "best_effort", "importance"),
    *("timeout", "tenant", "refuse_if_late"),
]


@given(ANYTHING | st.just("hi"), st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=3))
@example("hi", {"tier": "\ud800"})
@example("hi", {"timeout": math.inf})
@example([0], {"temperature": 10**400})
def test_any_arguments_make_a_call_or_are_refused(
    client: Client, prompt: Any, options: dict[str, Any]
) -> None:
    """Nothing else is raised, and what is sent can be: a call is made of it."""
    error = refusal(lambda: client.generate(prompt, **options).cancel())
    if error is not None:
        assert error.field
        assert len(str(error)) < 1000


@given(st.one_of(st.text(), ANYTHING))
def test_any_address_makes_a_client_or_is_refused(server: Any) -> None:
    error = refusal(lambda: Client(server).close())
    assert error is None or error.field == "server"
