"""Turns requests of VllmEngine into those of `niyama.v1` that ask for the same.

A field is taken, or of no use to who makes tokens and no text, or else refused by its name: also
one that a later version of the protocol brings along. What a value may be is checked where those of
our own service are (`server.convert.inbound`), and its errors are told by the names here.

A gateway fills in the checkpoint's defaults itself, as GetModelInfo tells them: so what is 0 is
meant. Only where 0 is no value of a field (top_p, repetition_penalty, n), or the field is known to
be absent (temperature, max_tokens), does the default hold.
"""

from __future__ import annotations

from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as vllm

from niyama.v1 import inference_pb2 as pb
from server.reading import messages
from server.violations import InvalidRequest, Violation, Violations

DATA_PARALLEL_RANK = "data_parallel_rank"  # the only one is 0
NOT_DONE = "is not supported by this server"
# Of SamplingParams: taken where they are stated or not 0, and even where they are 0.
_STATED = (
    *("temperature", "max_tokens", "top_p", "repetition_penalty", "n", "seed", "logprobs"),
    *("frequency_penalty", "presence_penalty", "min_tokens", "ignore_eos"),
)
_AS_IS = ("top_k", "min_p")
_LISTS = ("stop", "stop_token_ids")
# What becomes of the tokens as text is the gateway's to see to, and there is no grammar to begin.
_OF_TEXT = (
    *("skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"),
    "grammar_from_first_token",
)
SAMPLING = frozenset({*_STATED, *_AS_IS, *_LISTS, *_OF_TEXT})
REQUEST = frozenset({"request_id", "tokenized", "text", "sampling_params", "stream"})
# Where our own messages have what the fields of VllmEngine's say: the longest beginning counts.
_NAMES = {
    "input.token_ids.ids": "tokenized.input_ids",
    "input.token_ids": "tokenized.input_ids",
    "input.text": "input",  # perhaps of no token ids at all
    "sampling": "sampling_params",
}


def parse(raw: bytes) -> pb.GenerateRequest | pb.GenerateStreamRequest:
    """Returns the message that asks for the same as a GenerateRequest of VllmEngine: as one that is
    streamed where that is. Raises InvalidRequest, with fields as VllmEngine names them.
    """
    request = messages.parse(vllm.GenerateRequest, raw)
    reader = Violations()
    kind = pb.GenerateStreamRequest if request.stream else pb.GenerateRequest
    message = kind(request_id=request.request_id)
    _read_input(reader, request, message)
    _read_sampling(reader, request.sampling_params, message.sampling)
    reader.finish()
    return message


def renamed(error: InvalidRequest) -> InvalidRequest:
    """Returns the error with the fields of our own messages under VllmEngine's names."""
    found = [Violation(_renamed(each.field), each.description) for each in error.violations]
    return InvalidRequest(found, error.num_more)


def _renamed(field: str) -> str:
    for ours, theirs in _NAMES.items():
        if field == ours or field.startswith(f"{ours}."):
            return theirs + field.removeprefix(ours)
    return field


def _read_input(reader: Violations, request: Any, message: Any) -> None:
    for name, value in _stated(request):
        is_harmless = name == DATA_PARALLEL_RANK and value == 0
        if name not in REQUEST and not is_harmless:
            reader.refuse(name, NOT_DONE)
    form = request.WhichOneof("input")
    if form is None:
        reader.refuse("input", "is required: one of tokenized, text")
    elif form == "text":
        message.input.text = request.text
    elif request.tokenized.input_ids:
        message.input.token_ids.ids.extend(request.tokenized.input_ids)
    else:  # the gateway has made no token of an empty text
        message.input.text = ""


def _read_sampling(reader: Violations, wire: Any, sampling: pb.Sampling) -> None:
    for name in _AS_IS:
        setattr(sampling, name, getattr(wire, name))
    for name, value in _stated(wire):
        if name not in SAMPLING:
            if name != "json_object" or value:
                reader.refuse(f"sampling_params.{name}", NOT_DONE)
        elif name in _LISTS:
            getattr(sampling, name).extend(value)
        elif name == "logprobs":
            if value < 0:
                text = f"must be between 0 and 20, got {value}"
                reader.refuse(f"sampling_params.{name}", text)
            else:
                sampling.logprobs = value
        elif name == "seed":
            if value != -1:  # which is none, to vLLM
                sampling.seed = value % 2**64
        elif name not in _OF_TEXT:
            setattr(sampling, name, value)


def _stated(message: Any) -> list[tuple[str, Any]]:
    """Returns names and values of the fields that are stated, or, without presence, not 0."""
    return [(field.name, value) for field, value in message.ListFields()]
