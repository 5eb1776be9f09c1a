"""What is expected of requests by the queue as it is: of those that wait, of those that have just
come, and of those that somebody only asks about. Nothing is changed by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine.deciding.experience import Experience
from engine.deciding.forecast import Forecast, forecast, on_time_in_s
from engine.deciding.headroom import headroom_s
from engine.deciding.history import OutputLengths
from engine.deciding.latency import LatencyModel
from engine.deciding.plan import Work
from engine.deciding.policy import Policy
from engine.deciding.questions import Estimate
from engine.deciding.queued_work import Amount, tokens_left
from engine.deciding.request import Request, Sampling, Share, TargetKind
from engine.deciding.roster import Roster
from engine.deciding.sequence import Sequence
from engine.deciding.stats import Outlook, Speeds, TierAsked
from engine.deciding.timeline import Ahead, whose
from engine.deciding.typical import Typical

# Of a tenant that asks for nothing else: no name that a caller could have, as it is not printable.
_NOBODY = Share("\t")


class Expectations:
    """What is to be expected by a scheduler's policy, queue, latency model and experience. Instants
    and durations are in seconds.
    """

    def __init__(
        self,
        policy: Policy,
        roster: Roster,
        latency: LatencyModel,
        history: OutputLengths,
        experience: Experience,
        max_batch_size: int,
    ) -> None:
        self._policy = policy
        self._roster = roster
        self._latency = latency
        self._history = history
        self._experience = experience
        self._max_batch_size = max_batch_size

    def of(self, sequence: Sequence, now: float) -> Forecast:
        """Returns what is expected of a sequence."""
        return self._by_ahead(sequence, now)(self._ahead_s(sequence, now))

    def promise(self, arriving: Sequence, now: float) -> Forecast:
        """Returns what a request that has just come is told to expect, before anything of it is
        kept; where that is to be late, also when such a request would be on time.

        Of several completions the last one is judged, too, with all that come before it ahead.
        """
        request = arriving.request
        # The policy may mark whom it is asked about.
        twin = Sequence(request, now, expected_prefix=arriving.expected_prefix)
        ahead_s, at = self._ahead_s(twin, now), self._by_ahead(twin, now)
        expected = at(ahead_s)
        if expected.on_time and request.num_after:
            demand = self._policy.demand
            each_s = demand.prefill_s(twin) + demand.decodes_until_due_s(twin, now)
            last_s = ahead_s + request.num_after * each_s
            if not (last := at(last_s)).on_time:
                ahead_s, expected = last_s, last
        if expected.on_time:
            return expected
        new = replace(request, arrived_at=now)  # as it would come
        then = self._by_ahead(Sequence(new, now, expected_prefix=twin.expected_prefix), now)
        in_s = on_time_in_s(then, ahead_s, self._experience.slowdown)
        return replace(expected, on_time_in_s=in_s)

    def estimate(self, asked: Estimate, now: float) -> Forecast:
        """Returns what would become of such a request if it was sent now."""
        sequence, output_len = _made_up(asked, now), asked.output_len
        if output_len is None:
            output_len = self._history.known(sequence.output_group)
        if output_len is None:
            most = asked.default_output_len
            output_len = self._history.estimate(sequence.output_group, most)
        ahead_s, at = self._ahead_s(sequence, now), self._by_ahead(sequence, now, output_len)
        return replace(
            at(ahead_s),
            refusal=self._policy.refusal(sequence, now),
            retry_s=self._policy.retry_s(sequence, now),
            on_time_in_s=on_time_in_s(at, ahead_s, self._experience.slowdown),
        )

    def outlook(
        self, tier: TierAsked, typical: Typical | None, longest: int, now: float
    ) -> Outlook | None:
        """Returns what a typical request of the tier, of `longest` tokens of prompt at most, has to
        expect; None where it expects nothing, and before the first request of any.
        """
        if typical is None or tier.targets.kind is TargetKind.BEST_EFFORT:
            return None
        asked = Estimate(
            min(typical.prompt_len, longest),
            typical.output_len,
            tier.targets,
            importance=tier.importance,
            tier=tier.name,
            share=_NOBODY,
        )
        expected = self.estimate(asked, now)
        waiting, place = self._roster.waiting, self._policy.place_of_new(_made_up(asked, now), now)
        tokens = round(waiting.sum_before(place, tokens_left))
        return Outlook(
            headroom_s(expected, tier.targets, self._experience),
            expected.late_chance,
            expected.ttft_s,
            Amount(waiting.num_before(place), expected.ahead_s, tokens),
            tier.targets.target_s,
            asked.prompt_len,
        )

    def speeds(self) -> Speeds:
        """Returns how fast the engine is of late."""
        demand = self._policy.demand
        prefill_s = self._latency.prefill_seconds(0, demand.chunk, demand.chunk)
        context = self._roster.context // max(1, len(self._roster.running))
        return Speeds(
            demand.iteration_s,
            demand.chunk / max(prefill_s, 1e-9),
            self._latency.decode_seconds(context, demand.chunk),
            self._experience.slowdown,
        )

    def whose_is_ahead(self, sequence: Sequence, expected: Forecast) -> tuple[Ahead, ...]:
        """Returns whose work is ahead of a waiting sequence, of which so much is expected."""
        if not expected.ahead_s > 0:
            return ()
        waiting = self._roster.waiting
        before = waiting.sample_before(self._policy.served_before(sequence, waiting))
        others = (other for other in before if other is not sequence)
        return whose(others, self._policy.known_work_s, expected.ahead_s)

    def decodes_of(self, sequence: Sequence) -> tuple[float, float]:
        """Returns how many decodes are expected of a request that has just come, and their work.
        They are charged their part of what a full batch costs whoever is in it, too.
        """
        decodes = self._history.mean(sequence.output_group, sequence.max_tokens)
        fixed_s = self._latency.usual(Work()) / self._max_batch_size
        return decodes, self._policy.demand.decodes_s(sequence) + decodes * fixed_s

    def work_s(self, sequence: Sequence) -> float:
        """Returns the work of a request that is not taken in."""
        return self._policy.demand.prefill_s(sequence) + self.decodes_of(sequence)[1]

    def _ahead_s(self, sequence: Sequence, now: float) -> float:
        return self._policy.ahead_s(sequence, self._roster.waiting, now)

    def _by_ahead(
        self, sequence: Sequence, now: float, output_len: int | None = None
    ) -> Callable[[float], Forecast]:
        """Returns what is expected of a sequence by the work ahead of it. Iterations are expected
        to last as long as of late, and as a decode of this one by itself at least; where the policy
        keeps the pace of streams, not longer than its TBT, unless the decodes alone take that.
        """
        demand, running = self._policy.demand, self._roster.running
        alone_s = self._latency.usual(Work(1, sequence.num_known))
        iteration_s = max(demand.iteration_s, alone_s)
        tbt_s = sequence.request.targets.tbt_s
        if tbt_s is not None and self._policy.keeps_pace:
            context = sequence.num_known + self._roster.context
            decodes_s = self._latency.usual(Work(1 + len(running), context))
            iteration_s = min(iteration_s, max(tbt_s, decodes_s))

        def by_ahead(ahead_s: float) -> Forecast:
            experience = self._experience
            return forecast(sequence, ahead_s, demand, experience, iteration_s, now, output_len)

        return by_ahead


def _made_up(asked: Estimate, now: float) -> Sequence:
    """Returns the sequence of a request that somebody only asks about, as if it came now."""
    output_len = asked.output_len
    request = Request(
        "",
        range(asked.prompt_len),
        Sampling(max_tokens=asked.default_output_len if output_len is None else output_len),
        arrived_at=now,
        targets=asked.targets,
        importance=asked.importance,
        tier=asked.tier,
        application=asked.application,
        tenant=asked.tenant,
        share=asked.share,
    )
    return Sequence(request, admitted_at=now)
