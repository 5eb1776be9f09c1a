"""The record: every decision that changed a request's fate, with predicted and actual instants.

What is remembered is bounded in two ways. Of `capacity` requests in all, each share of the engine
keeps as many as it has while there is room; then the oldest request of whichever share has most is
forgotten, so that nobody's flood makes another share's forgotten. And one request keeps
MAX_DECISIONS entries: from then on each further one is told together with the last of its kind, so
that a timeline stays complete in its sums. Besides, the last notable decisions of all requests are
kept (notable.py).

A sink, where one is given, gets each entry as a plain dict, those of forgotten requests too. It is
told besides what each request asked for ("arrived") and how it fared ("finished"), and of calls
that were refused before they came here, so that its entries alone say what was asked of the engine
and what it made of that. With neither capacity nor sink, the record is off and costs next to
nothing. Instants and durations are in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from engine.deciding.budget import Account, Budget
from engine.deciding.entries import Entry, Unserved, asked, end_of, fared, unserved_end
from engine.deciding.forecast import Forecast
from engine.deciding.notable import NotableDecisions
from engine.deciding.outcome import Fate
from engine.deciding.plan import Finished, Plan
from engine.deciding.request import Request, key_of, named_by
from engine.deciding.sequence import Sequence, Status
from engine.deciding.speed import Span
from engine.deciding.story import head
from engine.deciding.timeline import Ahead, Decision, Timeline

MAX_DECISIONS = 200
MAX_TENANTS_TOLD = 5

NOTHING: Mapping[str, Any] = {}
Ids = OrderedDict[str, None]  # of requests, the oldest first


class Record:
    """The timelines of the last requests, by id (`Request.id`)."""

    def __init__(self, capacity: int, sink: Callable[[Entry], None] | None = None) -> None:
        self._capacity = capacity
        self._sink = sink
        self._is_off = capacity == 0 and sink is None
        self._timelines: dict[str, Timeline] = {}
        self._by_share: dict[str, Ids] = {}  # by the name of the share
        self._by_name: dict[str, Ids] = {}  # by the name of the request, of all tenants
        self._accounts: dict[str, Account] = {}  # of the requests in flight
        self.notable = NotableDecisions()

    # What is remembered

    def __len__(self) -> int:
        return len(self._timelines)

    @property
    def is_on(self) -> bool:
        """Whether anything is remembered or told."""
        return not self._is_off

    def open(self, request: Request) -> None:
        """A request came in: its timeline begins, anew where the id has been used before."""
        if request.id in self._timelines:
            self._forget(request.id)
        self._timelines[request.id] = Timeline(request.without_tokens())
        self._by_share.setdefault(request.share.name, OrderedDict())[request.id] = None
        self._by_name.setdefault(request.name, OrderedDict())[request.id] = None
        while len(self._timelines) > self._capacity:
            fullest = max(self._by_share.values(), key=len)
            self._forget(next(iter(fullest)))

    def _forget(self, request_id: str) -> None:
        request = self._timelines.pop(request_id).request
        _discard(self._by_share, request.share.name, request_id)
        _discard(self._by_name, request.name, request_id)

    def check(self) -> None:
        """Asserts that by share and by name every timeline is found, and nothing else."""
        for found in (self._by_share, self._by_name):
            assert all(found.values()), "nothing is remembered of a name, but the name"
            assert sorted(i for ids in found.values() for i in ids) == sorted(self._timelines)

    def find(self, name: str, tenant: str | None = None) -> Timeline:
        """Returns the timeline of the request that its tenant calls `name`: `NAME/INDEX` for one of
        several completions, of which the first speaks for `NAME`. With `tenant` None, it may be any
        tenant's. Raises LookupError where none is remembered, and ValueError where several tenants
        have one.
        """
        if self._is_off:
            raise LookupError("nothing is remembered")
        if tenant is None:
            tenant = self._only_tenant(name)
        for request_id in _possible_ids(name, tenant):
            if request_id in self._timelines:
                return self._timelines[request_id]
        raise LookupError(f"request_id {name!r} is not remembered")

    def _only_tenant(self, name: str) -> str:
        ids = {**self._by_name.get(name, {}), **self._by_name.get(f"{name}/0", {})}
        return only_tenant(name, {named_by(request_id)[0] for request_id in ids})

    def spent(self, request_id: str, now: float) -> Budget | None:
        """Returns where the time of a request in flight went until now."""
        account = self._accounts.get(request_id)
        return None if account is None else account.until(now)

    # What is noted

    def note(
        self,
        request_id: str,
        at: float,
        kind: str,
        detail: str = "",
        predicted_at: float | None = None,
        ahead: tuple[Ahead, ...] = (),
        told: Mapping[str, Any] = NOTHING,
        **values: float,
    ) -> None:
        """Appends an entry to the timeline of a request that is remembered, and tells the sink,
        which gets what is `told`, too.
        """
        if self._is_off:
            return
        timeline = self._timelines.get(request_id)
        if timeline is not None:
            remember(timeline.decisions, Decision(at, kind, detail, values, predicted_at, ahead))
        if self._sink is not None:
            whose = {"ahead": [list(each) for each in ahead]} if ahead else NOTHING
            self._tell(request_id, at, kind, detail, predicted_at, {**values, **told, **whose})

    def _tell(
        self,
        request_id: str,
        at: float,
        kind: str,
        detail: str = "",
        predicted_at: float | None = None,
        values: Mapping[str, Any] = NOTHING,
    ) -> None:
        """Tells the sink, where there is one."""
        if self._sink is None:
            return
        tenant, name = named_by(request_id)
        entry: Entry = {"kind": kind, "request_id": name, "tenant": tenant, "at": at}
        entry["detail"] = detail
        if predicted_at is not None:
            entry["predicted_at"] = predicted_at
        entry.update(values)
        self._sink(entry)

    def _arrived(self, request: Request) -> None:
        """Tells the sink what was asked for."""
        if self._sink is not None:
            self._tell(request.id, request.arrived_at, "arrived", values=asked(request))

    def admitted(
        self,
        request: Request,
        expected: Forecast,
        at: float,
        ahead: tuple[Ahead, ...] = (),
        **values: float,
    ) -> None:
        """A request came in, and this is expected of it. `values` are more of what is known."""
        if self._is_off:
            return
        self._accounts[request.id] = Account(request.arrived_at, at)
        self.open(request)
        self._arrived(request)
        if request.attempt > 1:
            self.note(request.id, at, "restarted", "the engine process that had it was lost")
        self.note(
            request.id,
            at,
            "admitted",
            f"{len(request.prompt)} prompt tokens",
            predicted_at=request.arrived_at + expected.ttft_s,
            ahead=ahead,
            told=NOTHING,
            on_time=float(expected.on_time),
            ahead_s=expected.ahead_s,
            late_chance=expected.late_chance,
            predicted_ttlt_s=expected.ttlt_s,
            **values,
        )

    def rejected(self, sequence: Sequence, event: Finished, at: float) -> None:
        """A request came, and was not let in."""
        if self._is_off:
            return
        self.open(sequence.request)
        self._arrived(sequence.request)
        self.close(sequence, event, at)

    def unserved(self, call: Unserved) -> None:
        """A call ended before its requests came here. One whose id is in flight is told to the sink
        alone, as a sum of one: entries of that id and the timeline are of who has the id now.
        """
        if self._is_off:
            return
        request, is_refused = call.request, call.fate is Fate.REFUSED
        kind = "refused" if is_refused else "finished"
        values: Entry = {"result": call.fate.value, "reason": call.reason}
        if call.num_calls > 1 or request.id in self._accounts:
            values |= {"count": call.num_calls, "since": request.arrived_at} | asked(request)
            self._tell(request.id, call.until, kind, call.detail, values=values)
            return
        self._arrived(request)
        self._tell(request.id, call.until, kind, call.detail, values=values)
        if is_refused:
            self.notable.add(request, call.until, kind, call.detail or call.reason)
        if self._capacity:
            self.open(request)
            timeline = self._timelines[request.id]
            timeline.decisions.append(Decision(call.until, kind, call.detail or call.reason, {}))
            timeline.end = unserved_end(call)

    def moved(
        self,
        sequence: Sequence,
        kind: str,
        reason: str,
        expected: Forecast,
        at: float,
        ahead: tuple[Ahead, ...] = (),
        **values: float,
    ) -> None:
        """A sequence was relegated or restored, as `kind` says. `values` are what that went by."""
        if self._is_off:
            return
        if kind == "relegated":
            self.notable.add(sequence.request, at, kind, reason)
        self.note(
            sequence.id,
            at,
            kind,
            reason,
            predicted_at=sequence.request.arrived_at + expected.ttlt_s,
            ahead=ahead,
            told=NOTHING,
            slack_s=sequence.due_at - at,
            ahead_s=expected.ahead_s,
            **values,
        )

    def preempted(self, sequence: Sequence, why: str, num_lost: int, at: float) -> None:
        """The pages of a sequence were taken, and so many computed tokens lost."""
        if self._is_off:
            return
        self._accounts[sequence.id].stop(at)
        self.notable.add(sequence.request, at, "preempted", why)
        self.note(sequence.id, at, "preempted", why, tokens_lost=num_lost)

    def restarted(self, sequence: Sequence, why: str, at: float) -> None:
        """A sequence is computed again, with its output so far."""
        if self._is_off:
            return
        self._accounts[sequence.id].stop(at)
        self.note(sequence.id, at, "restarted", why)

    def go_on(self, sequences: Iterable[Sequence], at: float) -> None:
        """Running sequences that sat iterations out do not sit out this one."""
        if self._is_off:
            return
        for sequence in sequences:
            self._accounts[sequence.id].go_on(at)

    def held(self, sequences: Iterable[Sequence], at: float) -> None:
        """Running sequences sit iterations out from this one on."""
        if self._is_off:
            return
        for sequence in sequences:
            self._accounts[sequence.id].hold(at)
            slack_s = sequence.due_at - at
            self.note(sequence.id, at, "held", "tokens of others are due", slack_s=slack_s)

    def computed(self, plan: Plan, at: float, took_s: float) -> None:
        """A plan was carried out, which took so long. Its chunks are noted, except those of
        requests that have ended; its tokens are not in the outputs yet.
        """
        if self._is_off:
            return
        for sequence, start, length, samples in plan.chunks:
            if sequence.finish_reason is not None:
                continue
            account = self._accounts[sequence.id]
            account.compute(took_s)
            if samples and sequence.status is not Status.WAITING:  # else it was preempted since
                account.decode(at)
            known = sequence.prompt_len + len(sequence.output)
            self.note(
                sequence.id,
                at,
                "chunk",
                f"tokens {start} to {start + length} of {known}",
                predicted_at=plan.planned_at + plan.predicted_s,
                told={"start": start, "known": known},
                tokens=float(length),
                batch_tokens=float(plan.work.num_tokens),
                took_s=took_s,
                expected_s=plan.predicted_s,
            )

    def ran(self, span: Span) -> None:
        """Tells the sink how long iterations took."""
        self._tell("", span.at, "speed", values=span._asdict())

    def first_token(self, sequence: Sequence, at: float) -> None:
        """The first token of a request came."""
        if self._is_off:
            return
        waited_s = self._accounts[sequence.id].until(at).waiting_s
        self.note(sequence.id, at, "first_token", waited_s=waited_s)

    def close(self, sequence: Sequence, event: Finished, at: float) -> None:
        """A request ended, with that event."""
        if self._is_off:
            return
        request = sequence.request
        account = self._accounts.pop(request.id, None) or Account(request.arrived_at, at)
        end = end_of(sequence, event, account, at)
        detail = ": ".join(filter(None, (event.reason.value, event.detail)))
        timeline = self._timelines.get(request.id) or Timeline(request)
        timeline.end = end
        values = {"output_tokens": float(event.output_tokens)}
        remember(timeline.decisions, Decision(at, "finished", detail, values))
        self.notable.add_end(request, end, head(timeline, end))
        if self._sink is not None:
            self._tell(request.id, at, "finished", detail, values=fared(event, end))


def only_tenant(name: str, having: Iterable[str]) -> str:
    """Returns the tenant that has a request of that name, of all `having` one. Raises LookupError
    where none has, and ValueError where several have.
    """
    tenants = sorted(having)
    if not tenants:
        raise LookupError(f"request_id {name!r} is not remembered")
    if len(tenants) > 1:
        some = ", ".join(repr(each) for each in tenants[:MAX_TENANTS_TOLD])
        raise ValueError(
            f"niyama-tenant must be given: {len(tenants)} tenants have a request_id {name!r}"
            f" ({some}{', ...' if len(tenants) > MAX_TENANTS_TOLD else ''})"
        )
    return tenants[0]


def _possible_ids(name: str, tenant: str) -> Iterator[str]:
    """Ids that a name may stand for, the likeliest first. A request that is called `a/1` comes
    before completion 1 of `a`.
    """
    yield key_of(tenant, name)
    whole, _, index = name.rpartition("/")
    if index.isdecimal():
        yield key_of(tenant, whole, int(index))
    yield key_of(tenant, name, 0)


def _discard(groups: dict[str, Ids], key: str, request_id: str) -> None:
    """Removes an id from its group, and a group that becomes empty."""
    del groups[key][request_id]
    if not groups[key]:
        del groups[key]


def remember(decisions: list[Decision], new: Decision) -> None:
    """Appends an entry; of a full timeline it takes the place of the last of its kind."""
    if len(decisions) >= MAX_DECISIONS:
        for i in range(len(decisions) - 1, -1, -1):
            if decisions[i].kind == new.kind:
                new = _joined(decisions.pop(i), new)
                break
    decisions.append(new)


def _joined(old: Decision, new: Decision) -> Decision:
    """Tells two entries of one kind as one, in which the values of both are added up."""
    values = {k: old.values.get(k, 0.0) + v for k, v in new.values.items()}
    return Decision(new.at, new.kind, "(several, told together)", values, new.predicted_at)
