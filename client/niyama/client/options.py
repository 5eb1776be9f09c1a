"""The keyword arguments of a call, stated once for every method that takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from niyama.client.credentials import Pem
from niyama.client.tokens import Token
from niyama.client.values import Importance

# Plain text, token ids, or chat messages ({"role": "user", "content": "..."}, oldest first).
Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


class QosOptions(TypedDict, total=False):
    """The latency that a request needs.

    Where nothing is said, its application's preset holds, or the server's default tier. A timeout
    caps the targets, and is itself a target only where the operator says so. Explicit targets
    cannot be combined with a tier or with each other.
    """

    tier: str  # a tier that the server knows
    ttft: float  # explicit: seconds to the first token; needs tbt
    tbt: float  # explicit: seconds between tokens; needs ttft
    ttlt: float  # explicit: seconds to the last token
    best_effort: bool  # explicit: nothing is promised
    refuse_if_late: (
        bool  # refuse it, before anything is sent, where a target is expected to be missed
    )
    importance: Importance | str  # "low", "normal" or "high"
    application: str  # selects its preset, and groups requests with similar output lengths


class SamplingOptions(TypedDict, total=False):
    """How tokens are picked and when to stop. For what is left out the server's defaults hold."""

    temperature: float  # 0 is greedy
    top_k: int  # 0 is all tokens
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int  # same seed, request and float32 model: same tokens
    max_tokens: int
    min_tokens: int
    stop: str | Sequence[str]  # texts that end the output; not part of it
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int  # log probabilities of the picked token and the k likeliest
    n: int  # number of independent completions


class GenerateOptions(QosOptions, SamplingOptions, total=False):
    """Everything a generation takes besides its prompt."""

    request_id: str  # chosen by the caller, unique among the requests in flight
    timeout: float  # seconds after which the call is given up, and frees what it holds; inf: never
    tenant: str  # instead of the client's: on whose behalf, for one client that serves many


class ConnectionOptions(TypedDict, total=False):
    """How a client reaches its server and shows who calls.

    With `tls`, or with a certificate, the connection is encrypted; without `ca` whom the machine
    trusts is trusted. `token` goes with every call: a text, the pathlib.Path of a file that is read
    again when it changes, or a function that returns it. It is sent unencrypted only to this
    machine, unless `allow_plaintext` says that it may be.

    Unless `retries` is False, gRPC tries a call again that was refused for the moment or found no
    server, a few times and within its timeout, as long as nothing of its answer has come: as
    `connection.SERVICE_CONFIG` says, and when the server says so.
    """

    timeout: float | None  # seconds of the calls that generate nothing; None: no limit
    tenant: str  # on whose behalf calls are made
    token: Token | None
    allow_plaintext: bool
    tls: bool
    ca: Pem | None  # the authorities that are trusted: the path of a PEM file, or PEM as bytes
    cert: Pem | None  # the client's certificate, with those that lead to its authority
    key: Pem | None  # its private key
    server_name: str | None  # whom the server's certificate has to name, if not the host
    retries: bool
    channel_options: Sequence[tuple[str, object]]  # of gRPC, which hold before those chosen here
