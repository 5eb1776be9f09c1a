"""Where a request's targets come from, and what a tiers file may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.deciding.request import BEST_EFFORT, Importance, Targets
from engine.tiers import Resolved, TargetSource, Tier, Tiers, UnknownTier, load

FILE = """
default_tier = "report"

[tiers.chat]
ttft_s = 0.5
tbt_s = 0.05
importance = "high"

[tiers.report]
ttlt_s = 30

[tiers.leftovers]
importance = "low"

[applications.nightly]
tier = "report"
importance = "low"

[applications.desk]
tier = "chat"

[applications.search]
ttlt_s = 2
"""


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    path = tmp_path / "tiers.toml"
    path.write_text(FILE)
    return load(path)


def test_the_nearest_source_of_targets_wins(tiers: Tiers) -> None:
    """Explicit, named tier, application, the call's deadline, default: drop one at a time."""
    explicit = Targets(ttlt_s=1.0)
    everything = {
        "explicit": explicit,
        "tier": "chat",
        "application": "search",
        "timeout_s": 7.0,
    }
    expected = [
        ("explicit", TargetSource.REQUEST, explicit, ""),
        ("tier", TargetSource.TIER, Targets(ttft_s=0.5, tbt_s=0.05), "chat"),
        ("application", TargetSource.APPLICATION, Targets(ttlt_s=2.0), ""),
        ("timeout_s", TargetSource.RPC_DEADLINE, Targets(ttlt_s=7.0), ""),
        ("", TargetSource.DEFAULT, Targets(ttlt_s=30.0), "report"),
    ]
    for argument, source, targets, tier in expected:
        resolved = tiers.resolve(**everything)  # type: ignore[arg-type]  # spelled above
        assert (resolved.source, resolved.targets, resolved.tier) == (source, targets, tier)
        everything.pop(argument, None)


@pytest.mark.parametrize(
    ("arguments", "importance"),
    [
        ({"tier": "chat"}, Importance.HIGH),
        ({"tier": "chat", "importance": Importance.LOW}, Importance.LOW),
        ({"application": "nightly"}, Importance.LOW),
        ({"application": "desk"}, Importance.HIGH),
        ({"application": "search"}, Importance.NORMAL),
        ({"explicit": BEST_EFFORT}, Importance.NORMAL),
        ({}, Importance.NORMAL),
    ],
)
def test_importance_is_the_request_s_else_that_of_the_source(
    tiers: Tiers, arguments: dict[str, object], importance: Importance
) -> None:
    assert tiers.resolve(**arguments).importance is importance  # type: ignore[arg-type]  # spelled above


def test_an_application_with_a_tier_s_targets_names_that_tier(tiers: Tiers) -> None:
    resolved = tiers.resolve(application="nightly")
    expected = Resolved(
        Targets(ttlt_s=30.0), Importance.LOW, TargetSource.APPLICATION, tier="report"
    )
    assert resolved == expected


def test_a_tier_without_targets_is_best_effort(tiers: Tiers) -> None:
    assert tiers.resolve(tier="leftovers").targets == BEST_EFFORT


def test_an_unknown_tier_is_told_with_the_known_ones(tiers: Tiers) -> None:
    with pytest.raises(UnknownTier, match="'gold'; the server has chat, leftovers, report"):
        tiers.resolve(tier="gold")


def test_an_unknown_application_has_no_preset(tiers: Tiers) -> None:
    assert tiers.resolve(application="new").source is TargetSource.DEFAULT


def test_the_built_in_tiers_are_interactive_standard_and_batch() -> None:
    assert list(Tiers().tiers) == ["interactive", "standard", "batch"]
    assert Tiers().resolve().tier == "interactive"


def test_a_file_without_tiers_keeps_the_built_in_ones(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text('[applications.x]\ntier = "gold"\n')
    built_in = (Tier("gold", Targets(ttlt_s=1.0)), Tier("tin", BEST_EFFORT))
    tiers = load(path, built_in)
    assert list(tiers.tiers) == ["gold", "tin"]
    assert tiers.resolve(application="x").tier == "gold"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tiers.a]\nttft_s = 1", "tiers.a.tbt_s is required"),
        ("[tiers.a]\nttlt_s = -1", "tiers.a.ttlt_s must be positive"),
        ("[tiers.a]\nttlt_s = '1s'", "tiers.a.ttlt_s must be a number of seconds"),
        ("[tiers.a]\nttlt_s = true", "tiers.a.ttlt_s must be a number of seconds"),
        ("[tiers.a]\nttlt_s = 1\nttft_s = 1\ntbt_s = 1", "tiers.a.ttlt_s cannot be combined"),
        ("[tiers.a]\nttlt = 1", "tiers.a.ttlt is unknown"),
        ("[tiers.a]\nimportance = 'top'", "tiers.a.importance must be one of low, normal, high"),
        ("[applications.b]\ntier = 'gold'", "applications.b.tier 'gold' is not one of the tiers"),
        ("[applications.b]\ntier = 'batch'\nttlt_s = 1", "applications.b.ttlt_s is unknown"),
        ("default_tier = 'gold'", "default_tier 'gold' is not one of the tiers"),
        ("default_tier = ['a']", "default_tier"),
        ("tiers = 3", "tiers must be tables"),
        ("[tires.a]\nttlt_s = 1", "tires is unknown"),
        ("[tiers.a", "Expected"),
    ],
)
def test_a_bad_file_is_told_by_its_path_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
