"""What a front end makes of calls that state no targets: it sees how they come and end, and serves
them as others of their site need it, where the operator lets it (`--infer`).

What such calls need is learnt in one place for all front ends (`engine.inferring.habits`): that is
told how each call ended (`observe`), and tells what it has learnt (`learn`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from engine.inferring.calls import CallSite, End, Ended, site_of
from engine.inferring.choice import Choice, choose
from engine.inferring.habit import Need
from engine.inferring.habits import Learnt, Observed
from engine.inferring.rhythm import Rhythm
from engine.tiers import Inferred, TargetSource, Tiers
from engine.tiers_file import MOST_NAME_BYTES
from niyama.v1 import inference_pb2 as pb
from server import fate
from server.call import Call
from server.config import INFER
from server.convert.inbound import Asked
from server.metrics import Metrics

OFF, SHADOW, ON = INFER
_STATED_NOTHING = (TargetSource.DEFAULT, TargetSource.INFERRED)
_ENDS = {
    fate.End.COMPLETE: End.SERVED,
    fate.End.LEFT: End.LEFT,
    fate.End.EXPIRED: End.EXPIRED,
}


class Inferring:
    """What is inferred for the calls of one front end. `observe` is told of each that is over."""

    def __init__(self, mode: str, metrics: Metrics, observe: Callable[[Observed], None]) -> None:
        self.mode = mode
        self._metrics = metrics
        self._observe = observe
        self._rhythm = Rhythm()
        self._needs: dict[CallSite, Need] = {}
        self._choices: dict[CallSite, Choice] = {}
        self._tiers: Tiers | None = None  # that the choices are of

    def learn(self, learnt: Learnt) -> None:
        """Takes what is known of a site from now on."""
        self._choices.pop(learnt.site, None)
        if learnt.need is None:
            self._needs.pop(learnt.site, None)
        else:
            self._needs[learnt.site] = learnt.need

    def inferred(
        self, call: Call, message: pb.GenerateRequest | pb.GenerateStreamRequest, tiers: Tiers
    ) -> Inferred | None:
        """Returns what is inferred for a call that has come, in case it states nothing; None where
        nothing is, or it is not to be used.
        """
        if self.mode == OFF:
            return None
        call.site = _site(call, message)
        choice = self._choice(call.site, tiers)
        return choice.inferred if choice is not None and self.mode == ON else None

    def note(self, call: Call, asked: Asked, tiers: Tiers) -> None:
        """Notes what a call asks for: one that states targets is none of this."""
        if call.site is None:
            return
        if asked.quality.source not in _STATED_NOTHING:
            call.site = None
            return
        call.coming = self._rhythm.arrive(call.site, call.arrived_at)
        choice = self._choice(call.site, tiers)
        is_used = asked.quality.source is TargetSource.INFERRED
        self._metrics.count_inference(None if choice is None else choice.tier.name, is_used)
        if self.mode == SHADOW and choice is not None and choice.inferred is not None:
            call.shadow = tiers.resolve(
                timeout_s=asked.timeout_s,
                importance=asked.quality.importance,
                rights=tiers.rights_of(call.tenant),
                inferred=choice.inferred,
            )

    def over(self, call: Call) -> None:
        """Tells how a call ended, where its caller had a say in that."""
        end = _ENDS.get(call.end) if call.end is not None else None
        if call.site is None or end is None or call.fate is None or call.is_unread:
            return
        now = time.monotonic()
        if end is End.SERVED:
            self._rhythm.served(call.site, now)
        timeout_s = call.asked.timeout_s
        ended = Ended(
            end,
            math.inf if timeout_s is None else timeout_s,
            _silence_s(call, end, now - call.arrived_at),
            call.progress[0].num_tokens,
            call.coming,
        )
        self._observe(Observed(call.site, ended))

    def _choice(self, site: CallSite, tiers: Tiers) -> Choice | None:
        if self._tiers is not tiers:
            self._tiers = tiers
            self._choices.clear()
        choice = self._choices.get(site)
        if choice is None and (need := self._needs.get(site)) is not None:
            choice = self._choices[site] = choose(need, tiers.seen_by(site.tenant))
        return choice


def _site(call: Call, message: pb.GenerateRequest | pb.GenerateStreamRequest) -> CallSite:
    """Returns where a call comes from. A name that is too long is refused elsewhere."""
    metadata = call.context.invocation_metadata() or ()
    agent = next((value for key, value in metadata if key == "user-agent"), "")
    sampling = message.sampling
    return site_of(
        call.share.name,
        call.tenant,
        message.qos.application[:MOST_NAME_BYTES],
        call.is_streamed,
        agent if isinstance(agent, str) else "",
        call.timeout_s(),
        sampling.max_tokens if sampling.HasField("max_tokens") else None,
    )


def _silence_s(call: Call, end: End, lived_s: float) -> float:
    """Returns the longest time that a caller saw nothing come: of one who left, the last."""
    seen = call.progress[0]
    if not call.is_streamed or not seen.num_tokens:
        return lived_s
    return lived_s - seen.last_s if end is End.LEFT else max(seen.first_s, seen.worst_gap_s)
