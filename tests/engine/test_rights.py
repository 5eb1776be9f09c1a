"""What a tenant may have: whatever is stated, by whomever, it is served within that or denied."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.request import Importance, TargetKind, Targets
from engine.rights import Claim, NotAllowed, Rights
from engine.tiers import FromGateway, Preset, Tier, Tiers
from engine.tiers_file import parse

GOLD = Tier("gold", Targets(ttft_s=0.5, tbt_s=0.05), Importance.HIGH)
SILVER = Tier("silver", Targets(ttlt_s=10.0))
BRONZE = Tier("bronze", Targets(ttlt_s=60.0), Importance.LOW)
TIERS = {tier.name: tier for tier in (GOLD, SILVER, BRONZE)}
OWN = Preset(Tier("", Targets(ttlt_s=0.5), Importance.HIGH))
PRESETS = {"golden": Preset(GOLD), "own": OWN, "hurried": Preset(SILVER, deadline_is_target=True)}

names = st.sampled_from(["", *TIERS])
targets = st.none() | st.sampled_from(
    [Targets(ttft_s=0.1, tbt_s=0.1), Targets(ttlt_s=5), Targets()]
)
importances = st.none() | st.sampled_from(Importance)
objectives = st.none() | st.sampled_from([*map(Preset, TIERS.values()), *PRESETS.values()])


@given(
    own=st.lists(st.sampled_from(list(TIERS)), min_size=1, unique=True),
    most=st.sampled_from(Importance),
    default=st.sampled_from(list(TIERS)),
    is_target=st.booleans(),
    explicit=targets,
    tier=names,
    application=st.sampled_from(["", *PRESETS]),
    timeout_s=st.none() | st.sampled_from([0.2, 1000.0]),
    importance=importances,
    gateway=st.builds(FromGateway, targets, objectives, importances),
)
def test_who_is_restricted_to_tiers_gets_one_of_them_or_best_effort_or_is_denied(
    own: list[str],
    most: Importance,
    default: str,
    is_target: bool,
    explicit: Targets | None,
    tier: str,
    application: str,
    timeout_s: float | None,
    importance: Importance | None,
    gateway: FromGateway,
) -> None:
    tier = "" if explicit is not None else tier  # both are refused before
    rights = Rights(tuple(own), most, explicit_targets=False)
    tiers = Tiers(TIERS, default, PRESETS, is_target)
    wishes = (explicit, tier, application, timeout_s, importance, gateway)
    is_too_much = (
        (bool(tier) and tier not in own)
        or (explicit is not None and explicit.kind is not TargetKind.BEST_EFFORT)
        or (importance is not None and importance > most)
    )
    try:
        found = tiers.resolve(*wishes, rights=rights)
    except NotAllowed:
        assert is_too_much
        return
    assert not is_too_much
    assert found.importance <= most
    if found.tier:
        assert found.tier in own
        assert found.targets == TIERS[found.tier].targets
    else:
        assert found.targets.kind is TargetKind.BEST_EFFORT


@given(
    explicit=targets,
    application=st.sampled_from(["", *PRESETS]),
    timeout_s=st.none() | st.sampled_from([0.2, 1000.0]),
    importance=importances,
    gateway=st.builds(FromGateway, targets, objectives, importances),
)
def test_without_restrictions_nothing_is_different(
    explicit: Targets | None,
    application: str,
    timeout_s: float | None,
    importance: Importance | None,
    gateway: FromGateway,
) -> None:
    tiers = Tiers(TIERS, "gold", PRESETS)
    wishes = (explicit, "", application, timeout_s, importance, gateway)
    assert tiers.resolve(
        *wishes, rights=Rights(tuple(TIERS), explicit_targets=True)
    ) == tiers.resolve(*wishes)


TEXT = """
[tiers.gold]
ttft_s = 0.5
tbt_s = 0.05
[tiers.bronze]
ttlt_s = 60
[tenants.acme]
weight = 2
[tenants.free]
tiers = ["bronze"]
importance = "normal"
max_requests = 4
[tenants.trusted]
tiers = ["bronze"]
explicit_targets = true
[tenants.other]
explicit_targets = false
max_queued_tokens = 1000
"""


def test_the_file_says_what_each_may_and_what_all_the_others_may() -> None:
    tiers = parse(TEXT, Path("niyama.toml"))
    assert tiers.rights_of("acme") == Rights()
    assert tiers.rights_of("free") == Rights(("bronze",), Importance.NORMAL, False, 4)
    assert tiers.rights_of("trusted").explicit_targets
    others = Rights(explicit_targets=False, max_queued_tokens=1000)
    for name in ("", "nobody-ever-heard-of", "other"):
        assert tiers.rights_of(name) == others
    assert set(tiers.tenants) == {"acme", "free", "trusted"}  # who has a share of its own
    assert tiers.seen_by("free").default == "bronze"
    assert tiers.seen_by("acme") is tiers


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tiers = ['no']", "'no' is not one of the tiers"),
        ("tiers = []", "must name one at least"),
        ("tiers = 'bronze'", "must be a list of texts"),
        ("importance = 'highest'", "must be one of low, normal, high"),
        ("explicit_targets = 1", "must be true or false"),
        ("max_requests = 0", "must be a whole number from 1"),
        ("max_requests = true", "must be a whole number from 1"),
        ("certificates = ['']", "must be a list of texts"),
        ("speaks = true", "is unknown; known are admin"),
    ],
)
def test_what_is_no_right_is_told_by_its_line(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(f"[tenants.a]\n{text}\n", Path("niyama.toml"))
    assert str(caught.value).startswith("niyama.toml:2: tenants.a.")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "key", ["certificates = ['a']", "speaks_for_others = true", "admin = true"]
)
def test_who_has_no_name_speaks_for_nobody(key: str) -> None:
    with pytest.raises(ValueError, match="is of one tenant"):
        parse(f"[tenants.other]\n{key}\n", Path("niyama.toml"))


def test_a_certificate_is_one_tenant_s() -> None:
    text = "[tenants.a]\ncertificates = ['CN=x']\n[tenants.b]\ncertificates = ['CN=x']\n"
    with pytest.raises(
        ValueError, match=r"niyama\.toml:4: tenants\.b\.certificates 'CN=x' is tenant a's"
    ):
        parse(text, Path("niyama.toml"))


def test_a_denial_crosses_to_another_process_whole() -> None:
    error = pickle.loads(pickle.dumps(NotAllowed(Claim.TIER, "no")))
    assert (error.claim, str(error)) == (Claim.TIER, "no")
