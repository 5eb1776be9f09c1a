"""Moves of a sequence: legal ones keep its invariants, illegal ones raise and change nothing."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import engine
from engine.deciding.request import BEYOND, Importance, Sampling
from engine.deciding.sequence import FinishReason, IllegalMove, Sequence, Status
from tests.engine.deciding.parts import decode, interactive, make_request, make_sequence

PAGE_SIZE = 2
STOP_TOKEN = 7
WAITING, DECODING = Status.WAITING, Status.DECODING
ENDING, FINISHED = Status.ENDING, Status.FINISHED


def state(sequence: Sequence) -> dict[str, object]:
    """Every field, in copies that a later move cannot change."""
    return {f.name: copy.copy(getattr(sequence, f.name)) for f in fields(sequence)}


class Moves(RuleBasedStateMachine):
    """Any move is tried at any time. What is legal is told from the machine's own account: which
    positions have their keys and values, which tokens came, and whether one is on its way.
    """

    @initialize(prompt=st.integers(1, 6), output=st.integers(1, 4), min_tokens=st.integers(0, 1))
    def start(self, prompt: int, output: int, min_tokens: int) -> None:
        sampling = Sampling(
            max_tokens=output, min_tokens=min_tokens, stop_token_ids=frozenset({STOP_TOKEN})
        )
        self.sampling = sampling
        self.sequence = make_sequence(
            prompt=prompt, sampling=sampling, targets=interactive(1.0, 0.5)
        )
        self.prompt_len = prompt
        self.status = WAITING
        self.num_computed = 0
        self.tokens: list[int] = []
        self.is_in_flight = False
        self.is_relegated = False
        self.now = 0.0

    def move(self, is_legal: bool, make: Callable[[], object]) -> bool:
        """Makes a move, which raises exactly if it is illegal; whether it was made."""
        before = state(self.sequence)
        if is_legal:
            make()
            return True
        with pytest.raises(IllegalMove, match="cannot"):
            make()
        assert state(self.sequence) == before, "an illegal move changes nothing"
        return False

    @property
    def num_uncomputed(self) -> int:
        return self.prompt_len + len(self.tokens) + self.is_in_flight - self.num_computed

    def empty(self) -> bool:
        """Whether the sequence holds no pages."""
        return not self.sequence.pages

    @rule(count=st.integers(0, 3))
    def grant_or_take_pages(self, count: int) -> None:
        """As the page pool does it, which is asked by the scheduler."""
        if count == 0:
            self.sequence.pages.clear()
        else:
            self.sequence.pages.extend(range(count))

    @rule(length=st.integers(-1, 7))
    def take_prefix(self, length: int) -> None:
        legal = self.status is WAITING and self.num_computed == 0 and 1 <= length < self.prompt_len
        if self.move(legal, lambda: self.sequence.take_prefix(length)):
            self.num_computed = length
            assert self.sequence.num_cached >= length

    @rule(length=st.integers(-1, 8))
    def prefill(self, length: int) -> None:
        legal = self.status is WAITING and 1 <= length < self.num_uncomputed
        if self.move(legal, lambda: self.sequence.prefill(length, self.now)):
            self.num_computed += length

    @rule()
    def expect_token(self) -> None:
        legal = self.status in (WAITING, DECODING) and not self.is_in_flight
        if self.move(legal, lambda: self.sequence.expect_token(self.now)):
            self.num_computed = self.prompt_len + len(self.tokens)
            self.is_in_flight = True
            is_last = len(self.tokens) + 1 >= self.sampling.max_tokens
            self.status = ENDING if is_last else DECODING

    @rule(token=st.sampled_from((1, STOP_TOKEN)), after=st.sampled_from((0.25, 2.0)))
    def take_token(self, token: int, after: float) -> None:
        reasons: list[FinishReason | None] = []
        legal = self.status is not FINISHED and self.is_in_flight
        now = self.now + after
        if self.move(legal, lambda: reasons.append(self.sequence.take_token(token, now))):
            self.now = now
            self.is_in_flight = False
            self.tokens.append(token)
            count = len(self.tokens)
            expected = FinishReason.LENGTH if count >= self.sampling.max_tokens else None
            if token == STOP_TOKEN and count > self.sampling.min_tokens:
                expected = FinishReason.STOP
            assert reasons == [expected]

    @rule()
    def preempt(self) -> None:
        legal = self.status in (WAITING, DECODING) and self.empty()
        lost: list[int] = []
        if self.move(legal, lambda: lost.append(self.sequence.preempt())):
            assert lost == [self.num_computed]
            self.status, self.num_computed = WAITING, 0

    @rule()
    def relegate(self) -> None:
        legal = self.status is WAITING and not self.is_relegated
        self.is_relegated |= self.move(legal, self.sequence.relegate)

    @rule()
    def restore(self) -> None:
        legal = self.status is WAITING and self.is_relegated
        self.is_relegated &= not self.move(legal, self.sequence.restore)

    @rule()
    def prefill_by(self) -> None:
        if self.move(self.status is WAITING, lambda: self.sequence.prefill_by(self.now)):
            assert self.sequence.prefill_due_at == self.now

    @rule(importance=st.integers(BEYOND, Importance.HIGH))
    def count_as(self, importance: int) -> None:
        legal = self.status is WAITING and importance <= Importance.NORMAL
        if self.move(legal, lambda: self.sequence.count_as(importance)):
            assert self.sequence.importance == importance

    @rule()
    def restart(self) -> None:
        old, copies = self.sequence, []
        legal = self.status is not FINISHED and self.empty()
        if self.move(legal, lambda: copies.append(old.restart())):
            (self.sequence,) = copies
            assert (old.status, old.finish_reason) == (FINISHED, FinishReason.ERROR)
            self.status, self.num_computed, self.is_in_flight = WAITING, 0, False

    @rule(reason=st.sampled_from(FinishReason))
    def finish(self, reason: FinishReason) -> None:
        legal = self.status is not FINISHED and self.empty()
        if self.move(legal, lambda: self.sequence.finish(reason, self.now)):
            self.status = FINISHED
            assert (self.sequence.finish_reason, self.sequence.finished_at) == (reason, self.now)

    @invariant()
    def agrees_with_the_account(self) -> None:
        sequence = self.sequence
        assert sequence.status is self.status
        assert (sequence.output, sequence.num_in_flight) == (self.tokens, self.is_in_flight)
        assert (sequence.num_computed, sequence.relegated) == (self.num_computed, self.is_relegated)
        assert (sequence.finish_reason is not None) == (self.status is FINISHED)
        assert sequence.num_uncomputed >= 1
        if self.status is DECODING:
            assert sequence.num_uncomputed == 1
        known = [*sequence.request.prompt, *self.tokens]
        assert sequence.tokens(0, len(known)) == known
        assert [sequence.token_at(i) for i in range(len(known))] == known
        number = len(self.tokens) + self.is_in_flight + 1
        assert sequence.due_at == sequence.request.token_due_at(number)


TestMoves = Moves.TestCase
TestMoves.settings = settings(
    max_examples=200, stateful_step_count=30, deadline=None, derandomize=True
)


def test_an_illegal_move_says_what_the_sequence_is_and_what_was_asked() -> None:
    sequence = make_sequence("a", prompt=4)
    with pytest.raises(IllegalMove, match=r"<Sequence a waiting 0/4 pages=0> cannot take a token"):
        sequence.take_token(1, 0.0)


def test_a_copy_that_is_begun_again_shares_nothing_with_the_old_one() -> None:
    """A token that comes for the old one, which nobody takes, must not appear in the new one."""
    old = make_sequence(output=9)
    decode(old, 2)
    old.expect_token(0.0)
    new = old.restart()
    assert new.output == [0, 0]
    assert new.output is not old.output
    assert new.pages is not old.pages
    assert (new.num_computed, new.num_in_flight, new.status) == (0, 0, WAITING)
    decode(new, 1)
    assert old.output == [0, 0]


def test_a_sequence_in_the_middle_of_its_life_can_be_made() -> None:
    sequence = Sequence(make_request(prompt=8), 0.0, pages=[5, 3], num_computed=7)
    sequence.check(page_size=4)
    sequence.expect_token(0.0)
    assert sequence.num_computed == 8


# What else has fields of the same names: an object itself, and totals, which count the same things.
OWN_FIELDS = ("self", "self.totals", "self._totals")


def changed_from_outside(path: Path) -> list[str]:
    """Places that assign what is called like a field of a sequence."""
    names = {f.name for f in fields(Sequence)}
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for part in (part for target in targets for part in ast.walk(target)):
            if not isinstance(part, ast.Attribute) or not isinstance(part.ctx, ast.Store):
                continue
            if part.attr in names and ast.unparse(part.value) not in OWN_FIELDS:
                found.append(f"{path}:{part.lineno} {ast.unparse(part)}")
    return found


def test_nobody_else_assigns_the_fields_of_a_sequence() -> None:
    folder = Path(next(iter(engine.__path__)))
    assert [line for path in folder.rglob("*.py") for line in changed_from_outside(path)] == []
