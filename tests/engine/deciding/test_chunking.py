"""Room for prefills, and who sits out, by hand and without a scheduler, but for the last test.

MILLI: an iteration takes 1 ms, 1 ms more for each prefill token, and 0.1 ms for each decode; no
chunk is larger than 64 tokens. PACE has gaps up to two TBTs, and a reserve of two TBTs.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.chunking import (
    AMPLE,
    ENDANGERED,
    LIGHT,
    LONGEST_WISH,
    PATIENCE,
    Chunking,
)
from engine.deciding.demand import OUTPUT_RISK, Demand
from engine.deciding.history import OutputLengths
from engine.deciding.latency import (
    A100_LLAMA3_8B,
    UNBOUNDED,
    LatencyModel,
    LatencyProfile,
    Segment,
    add_chunk,
)
from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.pace import LOST_GAP, PaceConfig
from engine.deciding.plan import Plan, Work
from engine.deciding.request import BEST_EFFORT, Targets
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams
from engine.simulator import Replica
from tests.engine.deciding.parts import (
    MILLI,
    deadline,
    decode,
    decodes_only,
    interactive,
    is_late,
    late_share,
    make_replica,
    make_request,
    make_sequence,
    make_stream,
    serve,
)

PACE = PaceConfig(max_gap=2.0)
BUSY = 2 * LIGHT


def make_chunking(
    profile: LatencyProfile = MILLI, max_held_pages: int = 100, pace: PaceConfig = PACE
) -> Chunking:
    latency = LatencyModel(profile, learns=False)
    demand = Demand(latency, OutputLengths(2.0), profile.max_chunk)
    return Chunking(pace, latency, demand, max_held_pages)


def held(
    sequences: list[Sequence],
    max_held_pages: int = 100,
    load: float = 0.0,
    prefills_go: bool = True,
) -> list[Sequence]:
    """Who sits an iteration at 0 out."""
    chunking = make_chunking(max_held_pages=max_held_pages)
    work = decodes_only(sequences)
    return chunking.hold(Streams(sequences), work, 0.0, load, prefills_go)


def begun(
    *decodes: Sequence,
    load: float = BUSY,
    response_s: float = math.inf,
    profile: LatencyProfile = MILLI,
    pace: PaceConfig = PACE,
) -> tuple[Chunking, Work]:
    """An iteration at 0 with these decodes, and its work."""
    chunking = make_chunking(profile, pace=pace)
    work = decodes_only(decodes)
    chunking.begin(Streams(decodes), work, load, response_s, 0.0)
    return chunking, work


def test_with_nobody_to_protect_a_chunk_is_as_large_as_ever_and_no_larger_than_what_is_left() -> (
    None
):
    chunking, work = begun()
    assert chunking.room(work, 0, 1000) == 64
    assert chunking.room(work, 100, 5) == 5
    assert chunking.room(add_chunk(work, 0, 60), 0, 1000) == 4
    assert chunking.room(add_chunk(work, 0, 64), 0, 1000) == 0


def test_the_chunk_ends_where_the_slack_of_a_stream_does() -> None:
    """1.1 ms for the decode; 10 ms of slack over the reserve of 2 * 6 ms leave 8 tokens, and a gap
    of 2 * 6 ms leaves 10. Where more than one sequence shares the chunk, all of it counts.
    """
    tight = make_stream(interactive(1.0, 0.006), due_at=0.022)
    easy = make_stream(interactive(1.0, 0.006), due_at=0.9)
    for stream, room in ((tight, 8), (easy, 10)):
        chunking, work = begun(stream)
        assert chunking.room(work, 0, 1000) == room
        assert chunking.room(add_chunk(work, 0, 3), 0, 1000) == room - 3


def test_while_the_queue_is_light_no_gap_is_longer_than_the_target() -> None:
    """6 ms in which 1.1 ms go to the decode, instead of 12."""
    stream = make_stream(interactive(1.0, 0.006), due_at=0.9)
    chunking, work = begun(stream, load=LIGHT / 2)
    assert chunking.room(work, 0, 1000) == 4


def test_whoever_arrives_during_an_iteration_is_answered_in_time() -> None:
    """20 ms, of which 19 are for tokens; but no less than twice what the decodes take, 2.2 ms, of
    which 1 is left for a token.
    """
    chunking, work = begun(response_s=0.02)
    assert chunking.room(work, 0, 1000) == 19
    patient = make_stream(deadline(99.0), due_at=99.0)
    chunking, work = begun(patient, response_s=1e-6)
    assert chunking.room(work, 0, 1000) == 1


def test_an_iteration_computes_something_however_little_time_there_is() -> None:
    chunking, work = begun(response_s=1e-6)
    assert chunking.room(work, 0, 1000) == 1


# 0.1 ms per token from 101 to 200 tokens. Fewer cost 0.2 each; for more there is another kernel,
# which takes 15 ms to begin with.
STEPS = LatencyProfile(
    "steps",
    (Segment(100, 1e-3, 2e-4), Segment(200, 1e-3, 1e-4), Segment(UNBOUNDED, 16e-3, 1e-4)),
    max_chunk=300,
)


def test_a_clearly_cheaper_smaller_chunk_is_taken_and_the_slack_is_kept() -> None:
    """A stream with a TBT of 20 ms lets an iteration take 40.05 ms: 240 tokens fit, and add 39 ms
    to the decode's 1 ms, which are 6.2 tokens for each. The first 100 add 10 ms: 10 for each.
    """
    stream = make_stream(interactive(1.0, 0.020025), due_at=0.9)
    chunking, work = begun(stream, profile=STEPS)
    assert chunking.room(work, 0, 1000) == 100


def test_where_no_stream_limits_the_chunk_it_is_not_made_smaller() -> None:
    """For whoever arrives an iteration may take 40.05 ms. A shorter one would save no slack."""
    chunking, work = begun(response_s=0.04005, profile=STEPS)
    assert chunking.room(work, 0, 1000) == 240


# Wishes, of streams that only have a deadline for their last token


def wishing(seconds: float, name: str = "r") -> Sequence:
    """A stream whose output, were it three times as long as the guess of 5, had that long for each
    token after the first.
    """
    due_at = seconds * (OUTPUT_RISK * 5 - 1)
    stream = make_sequence(name, output=5, targets=deadline(due_at))
    decode(stream, 1)
    return stream


def test_the_hastiest_wish_is_granted_down_to_a_share_for_prefills() -> None:
    """The decodes take 1.2 ms, so 10 ms leave room for 8 tokens, and 3 are always left: as a token
    costs the same in any chunk, an iteration is never wished below four times 1.2 ms.
    """
    for wish_s, room in ((0.099, 64), (0.010, 8), (0.0045, 3), (1e-6, 3)):
        chunking, work = begun(wishing(wish_s), wishing(0.5))
        assert chunking.room(work, 0, 1000) == room


def test_who_is_past_the_guess_wishes_as_if_there_were_far_to_go() -> None:
    """It has 40 tokens where 20 were guessed: so it may have 60 more, three times the guess, though
    by the guess there is one. With 600 ms left that is 10 ms a token, with room for 8 beside it.
    """
    history = OutputLengths(2.0)
    stream = make_sequence(output=999, targets=deadline(0.6), application="chat")
    for _ in range(5):
        history.observe(stream.output_group, 20)
    decode(stream, 40)
    latency = LatencyModel(MILLI, learns=False)
    chunking = Chunking(PACE, latency, Demand(latency, history, 64), 100)
    work = decodes_only([stream])
    chunking.begin(Streams([stream]), work, BUSY, math.inf, 0.0)
    assert chunking.room(work, 0, 1000) == 8


def test_where_somebody_found_no_place_prefills_are_spread_beside_the_decodes() -> None:
    """As if the decode, which takes 1.1 ms, wished for the shortest: an iteration of four times
    that, of which 3.3 ms are for prefills; until an output, guessed as 2 tokens, is over.
    """
    decode = make_stream(BEST_EFFORT, due_at=math.inf)
    chunking, work = begun(decode)
    assert chunking.room(work, 0, 1000) == 64
    starve(chunking)
    for now, room in ((0.001, 3), (1.0, 64)):
        chunking.begin(Streams([decode]), work, BUSY, math.inf, now)
        assert chunking.room(work, 0, 1000) == room


def test_where_there_are_always_prefills_to_do_they_are_not_put_off_for_want_of_places() -> None:
    decode = make_stream(BEST_EFFORT, due_at=math.inf)
    chunking, work = begun(decode)
    starve(chunking)
    for _ in range(100):
        chunking.crowded_out(make_sequence(), 0.0)
        chunking.launched(has_prefills=True)
    chunking.begin(Streams([decode]), work, BUSY, math.inf, 0.001)
    assert chunking.room(work, 0, 1000) == 64


def test_one_that_found_no_place_starves_no_later_iteration() -> None:
    decode = make_stream(BEST_EFFORT, due_at=math.inf)
    chunking, work = begun(decode)
    chunking.crowded_out(make_sequence(), 0.0)
    for _ in range(100):
        chunking.launched(has_prefills=False)
    chunking.begin(Streams([decode]), work, BUSY, math.inf, 0.001)
    assert chunking.room(work, 0, 1000) == 64


def starve(chunking: Chunking) -> None:
    """Some iterations have decodes alone, as there was no place for who waits."""
    for _ in range(5):
        chunking.crowded_out(make_sequence(), 0.0)
        chunking.launched(has_prefills=False)


def test_who_is_late_wishes_for_nothing() -> None:
    late = make_stream(deadline(1.0), due_at=0.0)
    chunking, work = begun(late)
    assert chunking.room(work, 0, 1000) == 64


def test_what_is_left_over_ends_where_a_stream_would_be_late() -> None:
    """The decodes take 1.2 ms, and one of them has 4.5 ms for each token that it may have left: 3
    tokens fit, and fewer where it has less. Whoever is promised to be on time always has 3 tokens.
    """
    for token_s, room in ((0.0045, 3), (0.0023, 1), (0.0021, 0), (0.0011, 0)):
        chunking, work = begun(wishing(token_s), wishing(0.5))
        assert chunking.room(work, 0, 1000, left_over=True) == room
        assert chunking.room(work, 0, 1000) == 3


def test_what_is_left_over_keeps_neither_an_arrival_nor_a_stream_waiting() -> None:
    """A longest iteration of 42 ms for who comes next: three fifths of it have room for 24 tokens,
    and the gap of a stream for 18; for 1 token where the stream has 3 ms more to spare beside its
    reserve of 20 ms, and for none where it has less.
    """
    streams = [make_stream(interactive(1.0, 0.01), due_at=due) for due in (1.0, 0.065, 0.06)]
    for decodes, room in (
        ([], 24),
        (streams[:1], 18),
        (streams[1:2], 1),
        (streams[2:], 0),
    ):
        chunking, work = make_chunking(), decodes_only(decodes)
        chunking.begin(Streams(decodes), work, BUSY, 0.042, 0.0)
        assert chunking.room(work, 0, 1000, left_over=True) == room
        assert chunking.room(work, 0, 1000) > 9


def test_what_is_left_over_goes_on_however_short_a_ttft_is_asked_for() -> None:
    """With nothing else to do an iteration takes 1 ms before it computes a token: it may take 2."""
    chunking = make_chunking()
    chunking.begin(Streams(), Work(), BUSY, 1e-5, 0.0)
    assert chunking.room(Work(), 0, 1000, left_over=True) == 1


def test_what_follows_the_first_chunk_keeps_the_same_iteration() -> None:
    chunking, work = begun(wishing(1e-6))
    room = chunking.room(work, 0, 1000)
    assert chunking.room(add_chunk(work, 0, 1), 0, 1000) == room - 1


def test_a_wish_is_granted_where_a_prefill_token_delays_the_decodes_least() -> None:
    """A decode takes 10 ms. Up to 20 tokens cost 1 ms each, more of them 1.5 ms: 20 are taken, not
    the 26 that fit in 40 ms.
    """
    dearer = LatencyProfile(
        "dearer",
        (Segment(21, 10e-3, 1e-3), Segment(UNBOUNDED, 10e-3, 1.5e-3)),
        max_chunk=64,
    )
    chunking, work = begun(wishing(1e-6), profile=dearer)
    assert chunking.room(work, 0, 1000) == 20


@given(
    st.lists(st.floats(1e-7, 1.0), min_size=1, max_size=30),
    st.integers(0, 2000),
    st.sampled_from([MILLI, STEPS, A100_LLAMA3_8B]),
)
def test_no_wish_takes_more_than_its_share(
    wishes_s: list[float], start: int, profile: LatencyProfile
) -> None:
    """However hurried the streams are, one token more would make the iteration longer than LOST_GAP
    times the decodes, of which the rest is prefill; and it is longer than the hastiest wish only up
    to LONGEST_WISH times the decodes.
    """
    streams = [wishing(wish_s) for wish_s in wishes_s]
    chunking, work = begun(*streams, profile=profile)
    seconds = LatencyModel(profile, learns=False).predict
    idle_s = seconds(work)
    room = chunking.room(work, start, 10_000)
    if room < profile.max_chunk:
        assert seconds(add_chunk(work, start, room + 1)) > LOST_GAP * idle_s
        longest_s = max(LONGEST_WISH * idle_s, min(wishes_s))
        assert room == 0 or seconds(add_chunk(work, start, room)) <= longest_s + 1e-9


# Holding: under MILLI twenty decodes take 3 ms.


def running(tbt_s: float, dues: list[float]) -> list[Sequence]:
    """An interactive stream, and others with 4 tokens left by these instants, on a page each."""
    sequences = [make_stream(interactive(9.0, tbt_s), due_at=9.0)]
    for i, due in enumerate(dues):
        sequence = make_sequence(f"elastic{i}", output=5, targets=deadline(due))
        decode(sequence, 1)
        sequence.pages.append(i)
        sequences.append(sequence)
    return sequences


def test_nobody_sits_out_while_the_decodes_are_fast_enough() -> None:
    """Twenty decodes take 3 ms, of 2 * 1.6 ms that are allowed."""
    assert held(running(1.6e-3, [9.0] * 19)) == []


def test_those_with_most_time_sit_out_and_no_more_than_needed() -> None:
    """2.42 ms allow for the interactive stream and 13 others; of 19, the 6 that are due last."""
    sequences = running(1.21e-3, [1.0 + i for i in range(19)])
    assert {s.due_at for s in held(sequences)} == {19.0 - i for i in range(6)}


def test_who_has_no_time_for_twice_the_iterations_never_sits_out() -> None:
    """4 tokens in 20 ms are 5 ms for each, less than twice the 3 ms of an iteration."""
    assert held(running(1.21e-3, [0.020] * 19)) == []
    assert len(held(running(1.21e-3, [0.028] * 19))) == 6


def test_those_who_sit_out_keep_a_bounded_part_of_the_memory() -> None:
    assert len(held(running(1.21e-3, [9.0] * 19), max_held_pages=4)) == 4


@pytest.mark.parametrize("targets", [interactive(9.0, 1e-4), Targets()])
def test_without_a_deadline_nobody_sits_out(targets: Targets) -> None:
    sequences = [make_stream(targets, due_at=9.0) for _ in range(20)]
    sequences.append(make_stream(interactive(9.0, 1e-4), due_at=9.0))
    assert held(sequences) == []


def test_while_prefills_are_in_danger_all_that_have_ample_time_sit_out() -> None:
    """An iteration takes 3 ms, and of 5 tokens one is there: 84 ms are time for twice the
    iterations, were there 15. It is only for prefills that go on, and for a loaded queue.
    """
    sequences = running(0.01, [0.083] * 9 + [0.085] * 10)
    assert set(held(sequences, load=ENDANGERED)) == set(sequences[10:])
    assert held(sequences, load=ENDANGERED, prefills_go=False) == []
    assert held(sequences, load=0.9 * ENDANGERED) == []


def test_nobody_sits_out_for_prefills_where_all_decodes_fill_most_of_the_pace() -> None:
    """Of 4 ms AMPLE are 3 ms, which twenty decodes take. One more, and they must not become more
    yet: it is the decodes that slow the prefills then.
    """
    assert AMPLE == 0.75
    assert len(held(running(4.01e-3, [9.0] * 19), load=math.inf)) == 19
    assert held(running(4.01e-3, [9.0] * 20), load=math.inf) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["pace", "deadline", "free"]), st.floats(1e-3, 10.0)),
        min_size=1,
        max_size=30,
    ),
    st.floats(1e-3, 0.1),
    st.sampled_from([0.0, ENDANGERED, math.inf]),
    st.booleans(),
    st.integers(0, 40),
)
def test_whoever_sits_out_was_promised_no_pace_has_time_and_leaves_somebody_to_go_on(
    streams: list[tuple[str, float]], tbt_s: float, load: float, goes: bool, most_pages: int
) -> None:
    """So no gap that a stream was promised is ever made by sitting out, whoever sits out is in time
    with half of the iterations that are left, and an iteration computes something.
    """
    sequences = []
    for i, (kind, due) in enumerate(streams):
        if kind == "deadline":
            sequence = make_sequence(f"d{i}", output=5, targets=deadline(due))
            decode(sequence, 1)
        else:
            targets = interactive(9.0, tbt_s) if kind == "pace" else Targets()
            sequence = make_stream(targets, due_at=due)
        sequence.pages += [i, 100 + i]
        sequences.append(sequence)
    waits = held(sequences, most_pages, load, goes)
    expected_s = LatencyModel(MILLI, learns=False).predict(decodes_only(sequences))
    assert len(set(waits)) == len(waits) < len(sequences)
    assert set(waits) <= set(sequences)
    for sequence in waits:
        assert sequence.request.targets.ttlt_s is not None
        assert sequence.due_at >= PATIENCE * 4 * expected_s
    assert sum(len(s.pages) for s in waits) <= most_pages


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_prompts_in_a_hurry_are_answered_in_time_as_decodes_sit_out(share: float) -> None:
    """Forty decodes take half of what a stream allows. Prompts of 4,000 tokens are late beside
    them, and are not while those of a quarter of the memory sit out. The forty are in time anyhow.
    """
    config = NiyamaConfig(pace=PACE, max_held_share=share)
    replica = make_replica(num_pages=11_000, niyama=config)
    batch = [make_request(f"b{i}", 1500, 400, 0.0, deadline(60.0)) for i in range(40)]
    stream = make_request("stream", 500, 300, 9.0, interactive(0.5, 0.05))
    hasty = [
        make_request(f"h{i}", 4000, 2, 12.0 + 2 * i, interactive(0.555, 0.05)) for i in range(3)
    ]
    outcomes = serve([*batch, stream, *hasty], replica)
    late = {name for name, outcome in outcomes.items() if is_late(outcome)}
    assert late == (set() if share else {r.id for r in hasty})


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_batch_decodes_sit_out_and_rejoin_in_time(share: float) -> None:
    """Decodes of sixty long contexts take 36 ms, one stream wants a token each 33 ms. Those that
    have 60 s for 600 tokens wait, within their share of the memory, and still end in time. Where
    none may wait, the stream is late.
    """
    num_pages = 11_000
    config = NiyamaConfig(max_held_share=share)
    replica = make_replica(num_pages=num_pages, niyama=config)
    scheduler = replica.scheduler
    batch = [make_request(f"b{i}", 2000, 600, 0.0, deadline(60.0)) for i in range(60)]
    stream = make_request("stream", 500, 400, 15.0, interactive(0.5, 0.033))
    most_held = 0

    def observe(replica: Replica, plan: Plan) -> None:
        nonlocal most_held
        held = scheduler.roster.running.keys() - set(plan.decodes)
        most_held = max(most_held, sum(len(s.pages) for s in held))
        assert "stream" not in {s.id for s in held}

    outcomes = serve([*batch, stream], replica, observe)
    assert (most_held > 0) == (share > 0)
    assert most_held <= share * num_pages
    assert is_late(outcomes.pop("stream")) == (share == 0)
    assert late_share(outcomes.values()) == 0
