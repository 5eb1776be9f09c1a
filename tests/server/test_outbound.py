"""What the engine says, as a client reads it."""

from __future__ import annotations

import math

from engine.deciding.plan import Finished, Timings, Token
from engine.deciding.request import Targets
from engine.deciding.sequence import FinishReason
from engine.tiers import Tier
from niyama.client import values
from niyama.client.convert import from_info_response, from_stream_response
from niyama.v1 import inference_pb2 as pb
from server.convert.outbound import to_finished, to_logprobs, to_tier


def test_log_probabilities_of_tokens_without_a_chance_cross_the_wire() -> None:
    (sent,) = to_logprobs([Token(7, -0.5, ((7, -0.5), (9, -math.inf)))])
    read = pb.TokenLogprobs.FromString(sent.SerializeToString())
    assert read.logprob == -0.5
    assert [(each.token_id, each.logprob) for each in read.top] == [(7, -0.5), (9, -math.inf)]


def test_a_tier_tells_the_longest_gap_in_force() -> None:
    """Its own, else the server's; nothing without a TBT, or of a policy that bounds no gaps."""
    steady = Tier("steady", Targets(1.0, 0.05, None, 1.0))
    chat, report = Tier("chat", Targets(1.0, 0.05)), Tier("report", Targets(ttlt_s=9.0))
    told = [to_tier(tier, max_gap=math.inf) for tier in (steady, chat, report)]
    read = from_info_response(pb.GetServerInfoResponse(tiers=told)).tiers
    assert [tier.max_gap for tier in read] == [1.0, math.inf, None]
    assert not to_tier(steady, max_gap=None).HasField("max_gap")


def test_what_a_request_took_is_what_its_client_reads() -> None:
    """Every field has a value of its own. A client is told the tokens that it was handed."""
    event = Finished(
        request_id="a",
        reason=FinishReason.LENGTH,
        prompt_tokens=11,
        cached_tokens=5,
        output_tokens=8,
        targets=Targets(ttlt_s=9.0),
        relegated=True,
        num_preemptions=3,
        timings=Timings(0.25, 0.5, 0.125, 0.75, 4.0, None, None, True),
    )
    sent = pb.GenerateStreamResponse(finished=to_finished(1, event, "", num_tokens=7))
    read = from_stream_response(pb.GenerateStreamResponse.FromString(sent.SerializeToString()))
    assert isinstance(read, values.Finished)
    assert read.usage == values.Usage(
        prompt_tokens=11, cached_tokens=5, output_tokens=7, preemptions=3
    )
    assert read.timings == values.Timings(
        queue=0.25, ttft=0.5, mean_tbt=0.125, worst_tbt=0.75, ttlt=4.0
    )
    assert (read.reason, read.relegated, read.index) == (values.FinishReason.LENGTH, True, 1)
