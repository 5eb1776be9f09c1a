import pytest

from loadgen.workload.mix import BACKGROUND, INTERACTIVE, BadMix, complete_mix, default_lengths
from tests.loadgen.examples import INFO

TIERS = ["interactive", "standard", "batch"]


def test_what_is_left_over_goes_to_the_other_tiers_in_equal_parts() -> None:
    mix = complete_mix({"interactive": 0.6}, TIERS)
    assert mix == pytest.approx({"interactive": 0.6, "standard": 0.2, "batch": 0.2})


def test_a_full_mix_leaves_the_others_out() -> None:
    mix = complete_mix({"interactive": 0.6, "batch": 0.4}, TIERS)
    assert mix == pytest.approx({"interactive": 0.6, "batch": 0.4})


def test_no_mix_is_equal_parts() -> None:
    assert complete_mix({}, TIERS) == pytest.approx(dict.fromkeys(TIERS, 1 / 3))


def test_thirds_typed_with_few_digits_add_up() -> None:
    mix = complete_mix({"interactive": 0.3333333, "standard": 0.3333333, "batch": 0.3333333}, TIERS)
    assert sum(mix.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"interactive": 0.7, "batch": 0.4}, "add up to 1.1, more than 1"),
        ({"gold": 0.5}, "unknown tier gold; the target has interactive, standard, batch"),
        (
            {"interactive": 0.3, "standard": 0.3, "batch": 0.3},
            "add up to 0.9, and no other tier takes the rest",
        ),
    ],
)
def test_a_mix_that_does_not_add_up_is_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(BadMix, match=message):
        complete_mix(given, TIERS)


def test_lengths_go_by_the_kind_of_tier_where_nobody_said() -> None:
    interactive, standard, _ = INFO.tiers
    assert default_lengths(interactive) == INTERACTIVE
    assert default_lengths(standard) == BACKGROUND
    assert default_lengths(standard, prompt=INTERACTIVE.prompt).output == BACKGROUND.output
