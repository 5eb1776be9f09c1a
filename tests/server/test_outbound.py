"""What the engine says, as a client reads it."""

from __future__ import annotations

import math

from engine.deciding.plan import Token
from proto.niyama.v1 import inference_pb2 as pb
from server.convert.outbound import to_logprobs


def test_log_probabilities_of_tokens_without_a_chance_cross_the_wire() -> None:
    (sent,) = to_logprobs([Token(7, -0.5, ((7, -0.5), (9, -math.inf)))])
    read = pb.TokenLogprobs.FromString(sent.SerializeToString())
    assert read.logprob == -0.5
    assert [(each.token_id, each.logprob) for each in read.top] == [(7, -0.5), (9, -math.inf)]
