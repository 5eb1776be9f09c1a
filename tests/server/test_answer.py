"""The answer to a unary call is whole, and is not made at its end."""

from __future__ import annotations

import time

from engine.deciding.plan import Token
from niyama.v1 import inference_pb2 as pb
from server.answer import Answer
from server.convert.outbound import to_logprobs
from server.generation import Piece

COMPLETIONS, TOKENS, ALTERNATIVES = 8, 250, 20
TOP = tuple((i, -float(i)) for i in range(ALTERNATIVES))


def token(number: int) -> Token:
    return Token(number, -1.0, TOP)


def test_it_has_all_that_came_since_a_completion_was_begun_for_the_last_time() -> None:
    answer = Answer(2)
    answer.add(Piece(0, "void", [token(9)]))
    answer.restart(0)
    answer.add(Piece(1, "one", [token(1), token(2)]))
    answer.add(Piece(0, "ze", [token(3)]))
    answer.add(Piece(0, "ro", [token(4)]))
    for index in range(2):
        answer.end(index, pb.Finished(index=index))
    response = answer.response("an id", pb.ResolvedTargets())
    first, second = response.completions
    assert (response.request_id, first.text, second.text) == ("an id", "zero", "one")
    assert (list(first.token_ids), list(second.token_ids)) == ([3, 4], [1, 2])
    assert list(first.logprobs) == to_logprobs([token(3), token(4)])
    assert [(c.index, c.finished.index) for c in response.completions] == [(0, 0), (1, 1)]


def test_little_of_it_is_left_for_the_end() -> None:
    """As a ratio: the end costs a seventh, and most of all if the tokens were looked at again."""
    answer, began_at = Answer(COMPLETIONS), time.process_time()
    for number in range(TOKENS):
        for index in range(COMPLETIONS):
            answer.add(Piece(index, "x", [token(number)]))
    added_at = time.process_time()
    for index in range(COMPLETIONS):
        answer.end(index, pb.Finished(index=index))
    raw = answer.response("an id", pb.ResolvedTargets()).SerializeToString()
    ended_at = time.process_time()
    assert len(raw) > COMPLETIONS * TOKENS * ALTERNATIVES
    assert ended_at - added_at < (added_at - began_at) / 2
