"""From sampled tokens to what a client sees: pieces, stop strings, ends."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.tokenizer import Tokenizer
from engine.deciding.plan import Accepted, Finished, Relegated, Timings, Token
from engine.deciding.request import BEST_EFFORT, Sampling
from engine.deciding.sequence import FinishReason
from engine.embedded import FOLDER
from engine.linking.errors import EngineLost
from engine.linking.streams import Item, RequestStream, Restarted
from server.generation import (
    Ended,
    Generation,
    GenerationFailed,
    Piece,
    RelegatedAt,
    RestartedAt,
    Text,
)

ACCEPTED = Accepted("a", True, 0.1, 0.2)
NO_TIMINGS = Timings(None, None, None, None, None, None, None, None)


def finished(reason: FinishReason = FinishReason.LENGTH, detail: str = "") -> Finished:
    return Finished("a", reason, 3, 0, 9, BEST_EFFORT, False, 0, NO_TIMINGS, detail)


class Played:
    """A generation whose engine is played by the test."""

    def __init__(
        self, n: int = 1, stop: tuple[str, ...] = (), is_renewed: bool = False, **sampling: object
    ) -> None:
        """With `is_renewed`, a completion that is begun again gets a text of its own."""
        self.tokenizer = Tokenizer.load(FOLDER)
        self.cancelled: list[tuple[str, FinishReason]] = []
        self.stream = RequestStream(
            [f"a/{i}" for i in range(n)], lambda *cancel: self.cancelled.append(cancel)
        )
        prompt = self.tokenizer.encode("The")

        def text_of(index: int) -> Text:
            return Text(self.tokenizer.detokenizer(prompt), Sampling(**sampling), stop)  # type: ignore[arg-type]  # any field

        texts = [text_of(index) for index in range(n)]
        renew = text_of if is_renewed else None
        self.generation = Generation(self.stream, len(prompt), texts, renew)

    def tokens_of(self, text: str) -> list[Token]:
        """`text` begins with a space, which sentencepiece puts there by itself."""
        return [Token(i) for i in self.tokenizer.encode(text.removeprefix(" "), add_bos=False)]

    def put(self, *items: Item, index: int = 0) -> None:
        for item in items:
            put = self.stream.end if isinstance(item, Finished) else self.stream.put
            put(index, item)


async def test_everything_a_slow_reader_missed_is_one_piece() -> None:
    played = Played()
    tokens = played.tokens_of(" cat sat on the mat")
    played.put(ACCEPTED, *tokens, finished())
    accepted, piece, ended = await played.generation.next()
    assert accepted == ACCEPTED
    assert piece == Piece(0, " cat sat on the mat", tokens)
    assert ended == Ended(0, finished(), "", len(tokens))
    assert played.generation.is_done


async def test_a_waiting_reader_gets_each_token_as_it_comes() -> None:
    played = Played()
    texts = []
    for token in played.tokens_of(" cat sat on"):
        reading = asyncio.create_task(played.generation.next())
        await asyncio.sleep(0)
        played.put(token)
        (piece,) = await reading
        assert isinstance(piece, Piece)
        assert piece.tokens == [token]
        texts.append(piece.text)
    assert "".join(texts) == " cat sat on"


async def test_a_completion_that_is_begun_again_begins_with_a_text_of_its_own() -> None:
    """Half a stop string of the first attempt must not meet the second half of the next."""
    played = Played(n=2, stop=("cat sat",), is_renewed=True)
    tokens = played.tokens_of(" cat")
    played.put(ACCEPTED, *tokens)
    played.put(*tokens, index=1)
    await played.generation.next()
    played.put(Restarted(), ACCEPTED, *played.tokens_of(" sat on"), finished())
    outputs = await played.generation.next()
    assert outputs[0] == RestartedAt(0)
    assert "".join(o.text for o in outputs if isinstance(o, Piece)) == " sat on"
    ended = outputs[-1]
    assert isinstance(ended, Ended)
    assert (ended.matched_stop, ended.num_tokens) == ("", len(played.tokens_of(" sat on")))
    assert played.generation.is_restarted


async def test_a_stop_string_cuts_the_text_and_stops_the_engine() -> None:
    """It spans tokens and batches; nothing of it is shown, not even while it might be one."""
    played = Played(stop=("sat on",))
    tokens = played.tokens_of(" cat sat on the mat")
    text, used, outputs = "", 0, []
    for token in tokens:
        played.put(token)
        for output in await played.generation.next() if not played.cancelled else []:
            assert isinstance(output, Piece)
            text, used = text + output.text, used + len(output.tokens)
    assert text == " cat "
    assert played.cancelled == [("a/0", FinishReason.STOP)]
    played.put(finished(FinishReason.STOP))
    outputs = await played.generation.next()
    assert outputs == [Ended(0, finished(FinishReason.STOP), "sat on", used)]
    assert used < len(tokens)


async def test_a_stop_string_in_the_last_tokens_is_a_stop_whatever_the_engine_says() -> None:
    played = Played(stop=("mat",))
    played.put(*played.tokens_of(" cat mat"), finished(FinishReason.LENGTH))
    piece, ended = await played.generation.next()
    assert isinstance(piece, Piece)
    assert piece.text == " cat "
    assert isinstance(ended, Ended)
    assert ended.matched_stop == "mat"


async def test_text_held_back_for_a_stop_string_is_given_out_at_the_end() -> None:
    played = Played(stop=("on the moon",))
    played.put(*played.tokens_of(" sat on the"))
    (first,) = await played.generation.next()
    played.put(finished())
    rest, ended = await played.generation.next()
    assert isinstance(first, Piece)
    assert first.text == " sat "
    assert rest == Piece(0, "on the", ())
    assert isinstance(ended, Ended)
    assert ended.matched_stop == ""


async def test_a_stop_string_counts_only_after_the_fewest_tokens() -> None:
    probe = Played()
    least = len(probe.tokens_of(" cat sat"))
    played = Played(stop=("cat",), min_tokens=least)
    played.put(*played.tokens_of(" cat sat on the cat again"), finished())
    piece, ended = await played.generation.next()
    assert isinstance(piece, Piece)
    assert piece.text == " cat sat on the "
    assert isinstance(ended, Ended)
    assert ended.matched_stop == "cat"


async def test_a_stop_string_that_begins_within_the_fewest_tokens_and_ends_later_counts() -> None:
    """Nothing of it is shown, not even while the output may not end yet."""
    probe = Played()
    least = len(probe.tokens_of(" the house"))
    played = Played(stop=(" house, and",), min_tokens=least)
    text = ""
    for token in played.tokens_of(" the house, and so"):
        if not played.cancelled:
            played.put(token)
            (piece,) = await played.generation.next()
            assert isinstance(piece, Piece)
            text += piece.text
    assert text == " the"
    assert played.cancelled == [("a/0", FinishReason.STOP)]


async def test_a_special_token_that_is_a_stop_string_stops() -> None:
    """It is shown as nothing, yet it is what the caller named."""
    played = Played(stop=("</s>",))
    eos = Token(played.tokenizer.eos_id or 0)
    played.put(*played.tokens_of(" cat"), eos, *played.tokens_of(" sat"))
    (piece,) = await played.generation.next()
    assert isinstance(piece, Piece)
    assert piece.text == " cat"
    assert piece.tokens[-1] == eos
    assert played.cancelled == [("a/0", FinishReason.STOP)]
    played.put(finished(FinishReason.STOP))
    assert await played.generation.next() == [
        Ended(0, finished(FinishReason.STOP), "</s>", len(piece.tokens))
    ]


async def test_a_stop_string_around_a_special_token_cuts_the_text_before_it() -> None:
    played = Played(n=2, stop=("cat</s> sat",))
    eos, sat = Token(played.tokenizer.eos_id or 0), played.tokens_of(" sat")
    played.put(*played.tokens_of(" cat"), eos, *sat)
    played.put(*played.tokens_of(" cat"), eos, eos, *sat, index=1)
    one, two = await played.generation.next()
    assert isinstance(one, Piece)
    assert isinstance(two, Piece)
    assert (one.text, two.text) == (" ", " cat sat")
    assert played.cancelled == [("a/0", FinishReason.STOP)]


async def test_which_token_ends_the_output_is_nothing_to_a_stop_string() -> None:
    """The model's own end, whose text the caller named, too: the reason is STOP either way."""
    played = Played(stop=("cat</s>",))
    eos = played.tokenizer.eos_id or 0
    played = Played(stop=("cat</s>",), stop_token_ids=frozenset({eos}))
    played.put(*played.tokens_of(" a cat"), Token(eos), finished(FinishReason.STOP))
    piece, ended = await played.generation.next()
    assert isinstance(piece, Piece)
    assert piece.text == " a "
    assert isinstance(ended, Ended)
    assert ended.matched_stop == "cat</s>"
    assert ended.finished.reason is FinishReason.STOP


async def test_no_stop_string_begins_in_the_prompt() -> None:
    played = Played(stop=("The cat",))
    played.put(*played.tokens_of(" cat"), finished())
    piece, ended = await played.generation.next()
    assert isinstance(piece, Piece)
    assert piece.text == " cat"
    assert isinstance(ended, Ended)
    assert ended.matched_stop == ""


async def test_what_is_no_character_is_found_as_what_it_is_shown_as() -> None:
    played = Played(stop=("\ufffd",))
    first, *_ = played.tokenizer.encode("漢", add_bos=False)[1:]
    played.put(*played.tokens_of(" a"), Token(first), finished())
    piece, ended = await played.generation.next()
    assert isinstance(piece, Piece)
    assert piece.text == " a"
    assert isinstance(ended, Ended)
    assert ended.matched_stop == "\ufffd"


async def test_an_empty_output_has_no_stop_string() -> None:
    played = Played(stop=("a",))
    played.put(finished(FinishReason.STOP))
    assert await played.generation.next() == [Ended(0, finished(FinishReason.STOP), "", 0)]


TOKENIZER = Tokenizer.load(FOLDER)
FEW = [*TOKENIZER.encode("the house, and</s> ab\n", add_bos=False), *TOKENIZER.encode("漢")]


@settings(deadline=None, max_examples=300)
@given(
    ids=st.lists(st.sampled_from(FEW), max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=6),
    at=st.tuples(st.integers(0, 20), st.integers(1, 12)),
    others=st.lists(st.sampled_from(["</s>", "</s><s>", "e", " ", "house", "\ufffd"]), max_size=3),
    min_tokens=st.integers(0, 8),
)
def test_the_text_does_not_depend_on_how_the_tokens_came(
    ids: list[int], cuts: list[int], at: tuple[int, int], others: list[str], min_tokens: int
) -> None:
    text = TOKENIZER.decode(ids)
    stops = [stop for stop in (text[at[0] :][: at[1]], *others) if stop]

    def result(batches: list[list[int]]) -> tuple[str, int, str]:
        sampling = Sampling(max_tokens=99, min_tokens=min_tokens)
        output = Text(TOKENIZER.detokenizer([]), sampling, stops)
        shown, used = "", 0
        for batch in batches:
            if not output.matched_stop:
                text, tokens = output.take([Token(i) for i in batch])
                shown, used = shown + text, used + len(tokens)
        return shown + output.rest(), used, output.matched_stop

    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    alone = result([[i] for i in ids])
    assert result([ids[a:b] for a, b in pairwise(bounds)]) == alone
    shown, _, matched = alone
    assert text.startswith(shown)
    if not matched:
        assert shown == text
    elif not min_tokens:
        assert all(stop not in shown for stop in stops)


async def test_a_stop_token_is_counted_but_not_spelled() -> None:
    *others, last = tokens = Played().tokens_of(" cat sits")
    assert last not in others
    played = Played(stop_token_ids=frozenset({last.id}))
    played.put(*tokens, finished(FinishReason.STOP))
    piece, ended = await played.generation.next()
    assert isinstance(piece, Piece)
    assert piece.tokens == tokens
    spell = played.tokenizer.detokenizer(played.tokenizer.encode("The")).feed
    assert piece.text == "".join(spell(token.id) for token in others)
    assert isinstance(ended, Ended)
    assert ended.num_tokens == len(tokens)


async def test_completions_keep_their_tokens_apart() -> None:
    played = Played(n=2)
    one, two = played.tokens_of(" one"), played.tokens_of(" two")
    played.put(ACCEPTED, index=0)
    played.put(ACCEPTED, index=1)
    for i in range(max(len(one), len(two))):
        played.put(*one[i : i + 1], index=0)
        played.put(*two[i : i + 1], index=1)
    outputs = await played.generation.next()
    assert outputs == [ACCEPTED, Piece(0, " one", one), Piece(1, " two", two)]
    played.put(finished(), index=1)
    assert await played.generation.next() == [Ended(1, finished(), "", len(two))]
    assert not played.generation.is_done
    played.generation.close(FinishReason.CANCELLED)
    assert played.cancelled == [("a/0", FinishReason.CANCELLED)]


async def test_relegation_is_passed_on() -> None:
    played = Played()
    event = Relegated("a", "its deadline is lost", 9.0)
    played.put(event)
    assert await played.generation.next() == [RelegatedAt(0, event)]


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.CANCELLED])
async def test_an_end_that_is_no_result_is_raised(reason: FinishReason) -> None:
    played = Played()
    played.put(finished(reason, "why"))
    with pytest.raises(GenerationFailed, match="why") as caught:
        await played.generation.next()
    assert caught.value.reason is reason


async def test_a_lost_engine_is_raised_after_what_had_arrived() -> None:
    played = Played()
    played.put(*played.tokens_of(" cat"))
    played.stream.fail(EngineLost("gone"))
    (piece,) = await played.generation.next()
    assert isinstance(piece, Piece)
    assert not played.generation.is_done
    with pytest.raises(EngineLost, match="gone"):
        await played.generation.next()
