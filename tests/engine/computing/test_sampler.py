"""Each sampling parameter by its effect on picks or on frequencies of many fixed seeds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.computing.cpu import VOCABULARY_BLOCK
from engine.computing.sampler import (
    LIKELIEST,
    Sampler,
    _floors,
    _floors_unseen,
    likeliest,
    splitmix64,
    uniform,
)
from engine.deciding.plan import NOT_FINITE, NOTHING_LEFT, Token
from engine.deciding.request import Sampling
from engine.deciding.sequence import Sequence
from tests.engine.computing.parts import make_sequence

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
DRAWS = 8000


def sequence(
    sampling: Sampling, prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = ()
) -> Sequence:
    return make_sequence(prompt, (), sampling, output=output)


def sample(logits: Tensor, *sequences: Sequence) -> list[Token]:
    return Sampler().sample(logits.expand(len(sequences), -1), sequences).tokens()


def frequencies(logits: Tensor, sampling: Sampling) -> list[float]:
    """Of each token over DRAWS seeds."""
    rows = [sequence(replace(sampling, seed=seed)) for seed in range(DRAWS)]
    ids = torch.tensor([token.id for token in sample(logits, *rows)])
    return (torch.bincount(ids, minlength=len(logits)) / DRAWS).tolist()


def expected(sampling: Sampling) -> list[float]:
    """The distribution over LOGITS that `sampling` asks for, written out."""
    weights = [math.exp(x / sampling.temperature) for x in LOGITS.tolist()]
    probs = {i: w / sum(weights) for i, w in enumerate(weights)}
    ranked = sorted(probs, key=lambda i: -probs[i])
    kept = ranked[: sampling.top_k or None]
    whole, share, nucleus = sum(probs[i] for i in kept), 0.0, []
    for i in kept:
        if share < sampling.top_p * whole:
            nucleus.append(i)
        share += probs[i]
    final = [i for i in nucleus if probs[i] >= sampling.min_p * probs[ranked[0]]]
    whole = sum(probs[i] for i in final)
    return [probs[i] / whole if i in final else 0.0 for i in range(len(LOGITS))]


@pytest.mark.parametrize(
    ("sampling", "support"),
    [
        (Sampling(), 6),
        (Sampling(temperature=0.5), 6),
        (Sampling(temperature=3.0), 6),
        (Sampling(top_k=1), 1),
        (Sampling(top_k=3), 3),
        (Sampling(top_p=0.5), 1),
        (Sampling(top_p=0.75), 2),
        (Sampling(min_p=0.2), 3),
        (Sampling(top_k=3, top_p=0.85), 2),
        (Sampling(temperature=2.0, top_k=5, top_p=0.95, min_p=0.3), 4),
    ],
)
def test_frequencies_are_those_of_the_distribution_asked_for(
    sampling: Sampling, support: int
) -> None:
    probs = expected(sampling)
    assert sum(p > 0 for p in probs) == support
    for seen, p in zip(frequencies(LOGITS, sampling), probs, strict=True):
        if p == 0:
            assert seen == 0
        else:
            assert abs(seen - p) < 4.5 * math.sqrt(p * (1 - p) / DRAWS) + 1e-9


def test_top_p_over_more_tokens_than_are_ranked_at_first() -> None:
    """A flat distribution: 90 % of it is 90 % of the tokens, beyond LIKELIEST."""
    logits = torch.linspace(0, 1e-3, 20 * LIKELIEST)
    seen = frequencies(logits, Sampling(top_p=0.9))
    cut = round(0.1 * len(logits))
    assert sum(seen[: cut - 2]) == 0
    assert sum(share > 0 for share in seen) > 10 * LIKELIEST


def test_temperature_zero_is_the_likeliest_token_also_beside_random_rows() -> None:
    greedy = sequence(Sampling(temperature=0.0))
    assert sample(LOGITS, greedy) == [Token(0)]
    others = [sequence(Sampling(temperature=5.0, seed=seed)) for seed in range(50)]
    tokens = sample(LOGITS, *others, greedy)
    assert tokens[-1] == Token(0)
    assert len({token.id for token in tokens}) > 3


@given(
    rows=st.integers(1, 6),
    size=st.sampled_from([7, VOCABULARY_BLOCK, VOCABULARY_BLOCK + 1, 3 * VOCABULARY_BLOCK + 50]),
    seed=st.integers(0, 99),
    is_coarse=st.booleans(),
)
def test_the_likeliest_by_blocks_is_the_first_of_the_largest(
    rows: int, size: int, seed: int, is_coarse: bool
) -> None:
    """Coarse numbers are often equal; every third row holds one that is not a number."""
    logits = torch.randn(rows, size, generator=torch.manual_seed(seed))
    if is_coarse:
        logits = logits.round()
    logits[::3, seed % size] = torch.nan
    values, ids = likeliest(logits)
    for row, value, index in zip(logits.tolist(), values.tolist(), ids.tolist(), strict=True):
        if any(map(math.isnan, row)):
            assert math.isnan(value)
            assert math.isnan(row[index])
        else:
            assert (value, index) == (max(row), row.index(max(row)))


def test_the_least_temperature_above_zero_is_as_good_as_greedy() -> None:
    """Logits over 1e-38 are infinite, and the difference of two infinities is no number."""
    tiny = [sequence(Sampling(temperature=1e-38, seed=seed)) for seed in range(20)]
    assert sample(10 * LOGITS, *tiny) == [Token(0)] * 20


def test_repetition_penalty_reaches_tokens_of_prompt_and_output() -> None:
    sampling = Sampling(temperature=0.0, repetition_penalty=3.0)
    assert sample(LOGITS, sequence(sampling, prompt=(5,))) == [Token(0)]
    assert sample(LOGITS, sequence(sampling, prompt=(0,))) == [Token(1)]
    assert sample(LOGITS, sequence(sampling, prompt=(0,), output=(1,))) == [Token(0)]
    negative = torch.tensor([-1.0, -1.5])  # multiplied, not divided
    assert sample(negative, sequence(sampling, prompt=(0,))) == [Token(1)]


def test_presence_penalty_is_subtracted_once_from_tokens_of_the_output() -> None:
    sampling = Sampling(temperature=0.0, presence_penalty=1.2)
    assert sample(LOGITS, sequence(sampling, prompt=(0,))) == [Token(0)]
    assert sample(LOGITS, sequence(sampling, output=(0,))) == [Token(1)]
    assert sample(LOGITS, sequence(sampling, output=(0, 0, 0, 1))) == [Token(0)]


def test_frequency_penalty_is_subtracted_for_every_occurrence() -> None:
    sampling = Sampling(temperature=0.0, frequency_penalty=0.4)
    assert sample(LOGITS, sequence(sampling, prompt=(0,) * 9)) == [Token(0)]
    assert sample(LOGITS, sequence(sampling, output=(0, 0))) == [Token(0)]
    assert sample(LOGITS, sequence(sampling, output=(0, 0, 0))) == [Token(1)]


def test_counts_kept_between_iterations_equal_counts_made_anew() -> None:
    """Penalised rows come and go, beside others; a fresh sampler must agree every time."""
    sampling = Sampling(temperature=0.0, frequency_penalty=0.31, repetition_penalty=1.1)
    a, b = sequence(sampling), sequence(replace(sampling, presence_penalty=0.2), prompt=(3,))
    plain = sequence(Sampling(temperature=0.0))
    sampler = Sampler()
    for step in range(30):
        rows = [[a, b], [a], [plain, b, a], [plain]][step % 4]
        logits = LOGITS.expand(len(rows), -1)
        tokens = sampler.sample(logits, rows).tokens()
        assert tokens == Sampler().sample(logits, rows).tokens()
        for row, token in zip(rows, tokens, strict=True):
            row.expect_token(0.0)
            row.take_token(token.id, 0.0)
    assert len(set(a.output)) > 2


def test_stop_tokens_are_masked_before_min_tokens() -> None:
    sampling = Sampling(temperature=0.0, min_tokens=2, stop_token_ids=frozenset({0, 1, 99}))
    assert sample(LOGITS, sequence(sampling)) == [Token(2)]
    assert sample(LOGITS, sequence(sampling, output=(2,))) == [Token(2)]
    assert sample(LOGITS, sequence(sampling, output=(2, 2))) == [Token(0)]


def test_logprobs_are_the_models_own_whatever_the_sampling() -> None:
    own = torch.log_softmax(LOGITS, 0).tolist()
    sampling = Sampling(
        temperature=0.0, repetition_penalty=9.0, min_tokens=1, stop_token_ids=frozenset({1})
    )
    for k in (0, 2, 20):
        (token,) = sample(LOGITS, sequence(replace(sampling, logprobs=k)))
        assert token.id == 2
        assert token.logprob == pytest.approx(own[2], abs=1e-6)
        assert [i for i, _ in token.top] == [0, 1, 2, 3, 4, 5][:k]
        assert [p for _, p in token.top] == pytest.approx(own[:k], abs=1e-6)
    with_and_without = sample(LOGITS, sequence(Sampling(logprobs=1)), sequence(Sampling()))
    assert with_and_without[0].logprob is not None
    assert with_and_without[1].logprob is None


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 300]),
    top_p=st.sampled_from([1.0, 1.0, 0.5, 0.95]),
    min_p=st.sampled_from([0.0, 0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    min_tokens=st.sampled_from([0, 3]),
    stop_token_ids=st.sampled_from([frozenset({7}), frozenset()]),
    logprobs=st.sampled_from([None, None, 3]),
    seed=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)


@settings(max_examples=60, deadline=None)
@given(samplings=st.lists(SAMPLINGS, min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_row_gets_the_same_token_alone_and_in_any_company(
    samplings: list[Sampling], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = [sequence(s, prompt=(1, 2), output=(3, i)) for i, s in enumerate(samplings)]
    logits = 2 * torch.randn(len(rows), 512, generator=generator)
    together = Sampler().sample(logits, rows).tokens()
    alone = [Sampler().sample(logits[i : i + 1], [row]).tokens()[0] for i, row in enumerate(rows)]
    assert [t.id for t in together] == [t.id for t in alone]
    backwards = Sampler().sample(logits.flip(0), rows[::-1]).tokens()
    assert [t.id for t in together] == [t.id for t in reversed(backwards)]


BROKEN = {
    "a NaN": [0.0, math.nan, 0.0],
    "infinity": [0.0, math.inf, 0.0],
    "only NaN": [math.nan],
    "only -infinity": [-math.inf],
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
@settings(max_examples=20, deadline=None)
@given(samplings=st.lists(SAMPLINGS, min_size=1, max_size=6), at=st.integers(0, 5))
def test_of_logits_that_are_not_finite_no_token_is_sampled_and_the_others_are_as_ever(
    broken: list[float], samplings: list[Sampling], at: int
) -> None:
    rows = [sequence(s, prompt=(1, 2), output=(3, i)) for i, s in enumerate(samplings)]
    logits = torch.randn(len(rows), 512, generator=torch.Generator().manual_seed(at))
    expected = Sampler().sample(logits, rows).tokens()
    assert all(token.is_sampled for token in expected)
    row = at % len(rows)
    logits[row] = torch.tensor(broken).repeat(512)[:512]
    tokens = Sampler().sample(logits, rows).tokens()
    assert tokens.pop(row).id == NOT_FINITE
    del expected[row]
    assert [token.id for token in tokens] == [token.id for token in expected]


def test_a_token_without_a_chance_is_no_failure() -> None:
    logits = LOGITS.clone()
    logits[0] = -math.inf
    assert sample(logits, sequence(Sampling(temperature=0.0))) == [Token(1)]


def test_the_log_probability_of_a_token_without_a_chance_is_minus_infinity() -> None:
    logits = LOGITS.clone()
    logits[2:] = -math.inf
    (token,) = sample(logits, sequence(Sampling(temperature=0.0, logprobs=20)))
    top = [logprob for _, logprob in token.top]
    assert top[:2] == pytest.approx(torch.log_softmax(LOGITS[:2], 0).tolist())
    assert top[2:] == [-math.inf] * 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_where_min_tokens_leaves_no_token_none_is_sampled(
    temperature: float, logprobs: int | None
) -> None:
    """It was token 0. The others in the batch are as ever, and so is it beyond min_tokens."""
    logits = LOGITS.clone()
    logits[4:] = -math.inf
    stops = frozenset(range(4))
    sampling = Sampling(temperature, seed=3, min_tokens=2, stop_token_ids=stops, logprobs=logprobs)
    other = sequence(Sampling(temperature, seed=4))
    lost, beside = sample(logits, sequence(sampling), other)
    assert (lost.id, lost.is_sampled) == (NOTHING_LEFT, False)
    assert [beside] == sample(logits, other)
    (later,) = sample(logits, sequence(sampling, output=(4, 4)))
    assert later.is_sampled
    assert sample(LOGITS, sequence(sampling))[0].id in (4, 5)


FLOAT32_MAX = torch.finfo(torch.float32).max


@pytest.mark.parametrize("temperature", [1e-38, 0.5, 1.0])
@pytest.mark.parametrize("low", [-math.inf, -FLOAT32_MAX, -1e38])
@pytest.mark.parametrize("high", [FLOAT32_MAX, 3e38, -3e37])
def test_the_largest_logits_of_all_may_be_divided_by_any_temperature(
    high: float, low: float, temperature: float
) -> None:
    """Two that become infinite differ by no number."""
    logits = torch.tensor([low, high, low, low])
    (token,) = sample(logits, sequence(Sampling(temperature, seed=3)))
    assert token.id == 1


EXTREMES = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-38, 1e-30, 1e-6, 0.7, 1.0, 100.0]),
    top_k=st.sampled_from([0, 0, 1, 3, 8, 9, 2**32 - 1]),
    top_p=st.sampled_from([1.0, 1.0, 1e-9, 0.5, 0.999999]),
    min_p=st.sampled_from([0.0, 0.0, 1e-9, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1e-3, 1.1, 100.0]),
    presence_penalty=st.sampled_from([0.0, -100.0, 100.0]),
    frequency_penalty=st.sampled_from([0.0, -100.0, 100.0]),
    min_tokens=st.sampled_from([0, 3]),
    stop_token_ids=st.frozensets(st.integers(0, 9)),
    logprobs=st.sampled_from([None, 0, 20]),
    seed=st.sampled_from([0, 1, 2**64 - 1]),
)
LOGIT = st.one_of(
    st.floats(-10, 10, width=32),
    st.sampled_from([0.0, -0.0, 1e-40, FLOAT32_MAX, -FLOAT32_MAX, 1e30, -math.inf]),
    st.sampled_from([math.inf, math.nan, *[0.0] * 8]),
)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(
        st.tuples(EXTREMES, st.lists(LOGIT, min_size=8, max_size=8), st.lists(st.integers(0, 7))),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_is_asked_a_token_that_has_a_chance_and_may_be_picked_is_or_none(
    rows: list[tuple[Sampling, list[float], list[int]]],
) -> None:
    sequences = [sequence(s, prompt=(1, 2), output=tuple(output)) for s, _, output in rows]
    tokens = Sampler().sample(torch.tensor([row for _, row, _ in rows]), sequences).tokens()
    for (asked, logits, output), token in zip(rows, tokens, strict=True):
        largest = max(logits) if not any(map(math.isnan, logits)) else math.nan
        forbidden = asked.stop_token_ids if len(output) < asked.min_tokens else frozenset()
        able = {i for i, x in enumerate(logits) if x > -math.inf and i not in forbidden}
        if not math.isfinite(largest):
            assert token.id == NOT_FINITE
        elif not able:
            assert token.id == NOTHING_LEFT
        else:
            assert token.id in able
            assert not any(math.isnan(p) for _, p in token.top)
            assert token.logprob is None or token.logprob <= 0
            is_pure = (asked.repetition_penalty, asked.presence_penalty) == (1, 0)
            if is_pure and not asked.frequency_penalty and asked.temperature == 0:
                assert logits[token.id] == max(logits[i] for i in able)


def test_a_seed_and_an_index_fix_the_draw_and_both_matter() -> None:
    many = [sequence(Sampling(seed=11), output=(0,) * i) for i in range(40)]
    other = [sequence(Sampling(seed=12), output=(0,) * i) for i in range(40)]
    flat = torch.zeros(1000)
    ids = [t.id for t in sample(flat, *many)]
    assert ids == [t.id for t in sample(flat, *many)]
    assert len(set(ids)) > 30
    assert len(set(ids) & {t.id for t in sample(flat, *other)}) < 10


def test_without_a_seed_the_request_id_decides() -> None:
    a, again, b = (make_sequence((0,), (), Sampling(), name) for name in ("a", "a", "b"))
    first, second, third = sample(torch.zeros(10**5), a, again, b)
    assert first == second != third


def test_splitmix64_gives_the_published_sequence() -> None:
    """The first outputs from state 1234567, of the reference implementation (prng.di.unimi.it)."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + i * golden) % 2**64 for i in range(3)]
    assert [splitmix64(s) for s in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    assert all(0 <= uniform(seed, seed) < 1 for seed in (0, 1, 2**64 - 1))


@settings(max_examples=60, deadline=None)
@given(samplings=st.lists(SAMPLINGS, min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_what_is_left_of_the_tokens_can_be_told_without_looking_whether_it_is_decided(
    samplings: list[Sampling], seed: int
) -> None:
    """As on CUDA, where the host does not wait for the answer."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(len(samplings), 512, generator=generator)
    probs = torch.softmax(flat, 1)
    torch.testing.assert_close(_floors_unseen(probs, samplings), _floors(probs, samplings))
