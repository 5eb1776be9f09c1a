"""What a router is to know of a call: targets, lengths, and how its prompt begins.

Targets are resolved by the code by which a replica resolves them, from the same file, so that both
mean the same; but what a replica infers of calls that state nothing, and who shows a token, only
the replica knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from engine.deciding.request import Importance, Targets
from engine.rights import NotAllowed
from engine.routing.prefixes import PREFIX_LEN, prefix_keys
from engine.routing.states import Asked
from engine.tiers import NO_GATEWAY, Resolved, Tier, Tiers
from niyama.v1 import inference_pb2 as pb
from server.configuration import Configuration
from server.convert import gateway
from server.convert.inbound import IMPORTANCES, TENANT_KEY, read_quality, read_tenant
from server.convert.work import BYTES_PER_TOKEN
from server.identity.tokens import KEY as TOKEN_KEY
from server.ray.messages import Call
from server.violations import InvalidRequest

MOST_BYTES = 256 << 10  # of a message that is looked into: some milliseconds at worst
OUTPUT_LEN = 128.0  # of requests that state none, where no replica has said better
Generates = pb.GenerateRequest | pb.GenerateStreamRequest
_KINDS: Final[Mapping[str, type[Generates]]] = {
    "/niyama.v1.Inference/Generate": pb.GenerateRequest,
    "/niyama.v1.Inference/GenerateStream": pb.GenerateStreamRequest,
}
# A question costs next to nothing wherever it is asked.
QUESTION = Asked("", Targets(), Importance.NORMAL, prompt_len=0, output_len=0)


class Reader:
    """Reads calls as servers do that have the operator's file, if there is one."""

    def __init__(self, path: str | None, text: str | None, has_gateway: bool) -> None:
        self._configuration = Configuration(None if path is None else Path(path), text)
        self._has_gateway = has_gateway

    @property
    def tiers(self) -> Tiers:
        """Returns the tiers that are taken to hold."""
        return self._configuration.tiers

    def learn(self, info: pb.GetServerInfoResponse) -> None:
        """Takes the tiers that a replica tells: without a file an engine has proposed them."""
        self._configuration.propose([_tier(each) for each in info.tiers])

    def read(self, call: Call) -> Asked:
        """Returns what the call asks for; of what cannot be read, as it would be of nothing."""
        kind = _KINDS.get(call.method)
        if kind is None:
            return QUESTION
        message = kind()
        length = len(call.message)
        try:
            if length <= MOST_BYTES:
                message.ParseFromString(call.message)
        except DecodeError:
            return QUESTION  # a replica says what is wrong with it
        metadata = [(key, value) for key, value in call.metadata if isinstance(value, str)]
        quality = self._quality(message, metadata, call.timeout_s)
        if quality is None:
            return QUESTION
        prompt, unit = _prompt(message.input)
        sampling = message.sampling
        return Asked(
            quality.tier,
            quality.targets,
            quality.importance,
            len(prompt) // unit if prompt else length // BYTES_PER_TOKEN,
            float(sampling.max_tokens) if sampling.HasField("max_tokens") else OUTPUT_LEN,
            prefix_keys(_whose(metadata), prompt, PREFIX_LEN * unit),
            PREFIX_LEN,
        )

    def _quality(
        self, message: Generates, metadata: list[tuple[str, str]], timeout_s: float | None
    ) -> Resolved | None:
        """Returns what the message asks for, None where it says nothing good of that."""
        try:
            tenant = read_tenant(metadata)
            said = gateway.read(metadata, self.tiers).said if self._has_gateway else NO_GATEWAY
            return read_quality(message, self.tiers, timeout_s, tenant, said)
        except (InvalidRequest, NotAllowed):
            return None


def _prompt(given: pb.Input) -> tuple[Sequence[int] | bytes, int]:
    """Returns a prompt as far as it has keys, and how long a token is in it, about."""
    form = given.WhichOneof("form")
    if form == "token_ids":
        return given.token_ids.ids, 1
    if form == "text":
        return given.text.encode(), BYTES_PER_TOKEN
    return given.chat.SerializeToString(), BYTES_PER_TOKEN


def _whose(metadata: list[tuple[str, str]]) -> str:
    """Returns what tells tenants apart: no two of them share a prefix."""
    return "\n".join(value for key, value in metadata if key in (TENANT_KEY, TOKEN_KEY))


def _tier(told: pb.Tier) -> Tier:
    times = {
        f"{name}_s": getattr(told, name).ToTimedelta().total_seconds()
        for name in ("ttft", "tbt", "ttlt")
        if told.HasField(name)
    }
    return Tier(told.name, Targets(**times), IMPORTANCES.get(told.importance, Importance.NORMAL))
