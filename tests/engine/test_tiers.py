"""Where a request's targets come from, what a tiers file may say, what an engine proposes."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from engine.deciding.request import BEST_EFFORT, Importance, Share, Targets
from engine.tiers import (
    BUILT_IN,
    FromGateway,
    Inferred,
    Resolved,
    TargetSource,
    Tier,
    Tiers,
    UnknownTier,
    least_of,
    propose,
)
from engine.tiers_file import load, parse, presets
from engine.toml_file import MOST_BYTES

FILE = """
default_tier = "report"

[tiers.chat]
ttft_s = 0.5
tbt_s = 0.05
importance = "high"

[tiers.report]
ttlt_s = 30

[tiers.steady]
ttft_s = 0.5
tbt_s = 9
max_gap = 1

[tiers.leftovers]
importance = "low"

[applications.nightly]
tier = "report"
importance = "low"

[applications.desk]
tier = "chat"

[applications.search]
ttlt_s = 2

[applications.mailer]
deadline_is_target = true
tier = "chat"

[applications.clock]
deadline_is_target = true
"""


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    path = tmp_path / "tiers.toml"
    path.write_text(FILE)
    return load(path)


def test_the_nearest_source_of_targets_wins(tiers: Tiers) -> None:
    """Explicit, named tier, gateway, application, default: drop one at a time."""
    explicit = Targets(ttlt_s=1.0)
    said = Targets(ttlt_s=4.0)
    everything = {
        "explicit": explicit,
        "tier": "chat",
        "gateway": FromGateway(said, tiers.objective("chat"), reason="tracestate"),
        "application": "search",
        "timeout_s": 70.0,
    }
    expected = [
        ("explicit", TargetSource.REQUEST, explicit, ""),
        ("tier", TargetSource.TIER, Targets(ttft_s=0.5, tbt_s=0.05), "chat"),
        ("gateway", TargetSource.GATEWAY, said, ""),
        ("application", TargetSource.APPLICATION, Targets(ttlt_s=2.0), ""),
        ("", TargetSource.DEFAULT, Targets(ttlt_s=30.0), "report"),
    ]
    for argument, source, targets, tier in expected:
        resolved = tiers.resolve(**everything)  # type: ignore[arg-type]  # spelled above
        assert (resolved.source, resolved.targets, resolved.tier) == (source, targets, tier)
        assert resolved.reason == ("tracestate" if source is TargetSource.GATEWAY else "")
        everything.pop(argument, None)


def test_an_objective_is_a_tier_or_else_a_preset(tiers: Tiers) -> None:
    chat = tiers.resolve(application="nightly", gateway=FromGateway(None, tiers.objective("chat")))
    assert (chat.tier, chat.importance) == ("chat", Importance.HIGH)
    search = FromGateway(None, tiers.objective("search"))
    assert tiers.resolve(gateway=search).targets == Targets(ttlt_s=2.0)
    mailer = FromGateway(None, tiers.objective("mailer"), reason="x")
    timed = tiers.resolve(gateway=mailer, timeout_s=3.0)
    assert (timed.source, timed.targets) == (TargetSource.RPC_DEADLINE, Targets(ttlt_s=3.0))
    assert tiers.objective("gold") is None


def test_a_gateway_s_importance_holds_where_the_request_states_none_and_no_tier(
    tiers: Tiers,
) -> None:
    low = FromGateway(None, None, Importance.LOW)
    assert tiers.resolve(gateway=low).importance is Importance.LOW
    assert tiers.resolve(gateway=low).source is TargetSource.DEFAULT
    assert tiers.resolve(explicit=BEST_EFFORT, gateway=low).importance is Importance.LOW
    assert tiers.resolve(application="desk", gateway=low).importance is Importance.LOW
    assert tiers.resolve(tier="chat", gateway=low).importance is Importance.HIGH
    high = tiers.resolve(importance=Importance.HIGH, gateway=low)
    assert high.importance is Importance.HIGH
    both = FromGateway(None, tiers.objective("chat"), Importance.NORMAL)
    assert tiers.resolve(gateway=both).importance is Importance.NORMAL  # nearer than the tier's


def test_a_low_tier_and_a_low_preset_are_low(tiers: Tiers, tmp_path: Path) -> None:
    """LOW is 0: `importance or NORMAL` served every low tier as normal."""
    path = tmp_path / "low.toml"
    path.write_text(
        '[tiers.x]\nttlt_s = 5\nimportance = "low"\n'
        '[applications.own]\nttlt_s = 1\nimportance = "low"\n'
        '[applications.named]\ntier = "x"\nimportance = "normal"\n'
        '[applications.timed]\ndeadline_is_target = true\nimportance = "low"\n'
    )
    known = load(path)
    assert known.resolve(tier="x").importance is Importance.LOW
    assert known.resolve().importance is Importance.LOW
    assert known.resolve(application="own").importance is Importance.LOW
    assert known.resolve(application="named").importance is Importance.NORMAL
    assert known.resolve(application="timed", timeout_s=3.0).importance is Importance.LOW
    assert known.resolve(tier="x", importance=Importance.HIGH).importance is Importance.HIGH
    assert tiers.resolve(tier="leftovers").importance is Importance.LOW


@pytest.mark.parametrize(
    ("arguments", "targets"),
    [
        ({"tier": "chat"}, Targets(ttft_s=0.5, tbt_s=0.05)),  # earlier than the deadline: as stated
        ({"tier": "report"}, Targets(ttlt_s=7.0)),
        ({"tier": "steady"}, Targets(ttft_s=0.5, tbt_s=7.0, max_gap=1.0)),
        ({"explicit": Targets(ttft_s=9.0, tbt_s=8.0)}, Targets(ttft_s=7.0, tbt_s=7.0)),
        ({"explicit": Targets(ttft_s=9.0, tbt_s=0.1)}, Targets(ttft_s=7.0, tbt_s=0.1)),
        ({"explicit": BEST_EFFORT}, BEST_EFFORT),
        ({"application": "search"}, Targets(ttlt_s=2.0)),
        ({}, Targets(ttlt_s=7.0)),
    ],
)
def test_a_deadline_caps_targets_and_leaves_their_source(
    tiers: Tiers, arguments: dict[str, object], targets: Targets
) -> None:
    without = tiers.resolve(**arguments)  # type: ignore[arg-type]  # spelled above
    capped = tiers.resolve(**arguments, timeout_s=7.0)  # type: ignore[arg-type]
    assert capped.targets == targets
    assert (capped.source, capped.tier) == (without.source, without.tier)


@pytest.mark.parametrize("timeout_s", [None, 0.0, -1.0])
def test_a_call_without_a_deadline_or_past_it_keeps_its_targets(
    tiers: Tiers, timeout_s: float | None
) -> None:
    assert tiers.resolve(timeout_s=timeout_s) == tiers.resolve()
    assert tiers.resolve(application="mailer", timeout_s=timeout_s).tier == "chat"


def test_a_deadline_is_the_target_of_the_applications_that_say_so(tiers: Tiers) -> None:
    mailer = tiers.resolve(application="mailer", timeout_s=7.0)
    expected = Resolved(Targets(ttlt_s=7.0), Importance.HIGH, TargetSource.RPC_DEADLINE)
    assert mailer == expected
    assert tiers.resolve(application="clock", timeout_s=7.0).source is TargetSource.RPC_DEADLINE
    assert tiers.resolve(application="clock").tier == "report"  # the default
    named = tiers.resolve(tier="chat", application="mailer", timeout_s=7.0)
    assert named.source is TargetSource.TIER


def test_a_deadline_is_the_target_of_a_whole_server_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text("deadline_is_target = true\n[applications.desk]\ntier = 'batch'\n")
    known = load(path)
    assert known.resolve(timeout_s=7.0).targets == Targets(ttlt_s=7.0)
    assert known.resolve().tier == "interactive"
    preset = known.resolve(application="desk", timeout_s=7.0)  # nearer than the server's word
    assert (preset.source, preset.tier) == (TargetSource.APPLICATION, "batch")


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


def test_a_file_without_tiers_keeps_the_built_in_ones() -> None:
    text = '[applications.x]\ntier = "gold"\n'
    built_in = (Tier("gold", Targets(ttlt_s=1.0)), Tier("tin", BEST_EFFORT))
    tiers = parse(text, Path("tiers.toml"), built_in)
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
        ("deadline_is_target = 1", "deadline_is_target must be true or false"),
        ("[applications.b]\ndeadline_is_target = 'no'", "applications.b.deadline_is_target must"),
        ("[applications.b]\ntier = ['batch']", "applications.b.tier ['batch'] is not one of"),
        ("[tiers.a]\nimportance = 0", "tiers.a.importance must be one of low, normal, high"),
        ("[tiers.a]\nimportance = ['low']", "tiers.a.importance must be one of low, normal"),
        ("[tiers.a]\ndeadline_is_target = true", "tiers.a.deadline_is_target is unknown"),
        ("[tiers.a]\nttft_s = 1\ntbt_s = 1\nmax_gap = 0.5", "tiers.a.max_gap must be at least 1"),
        ("[tiers.a]\nttft_s = 1\ntbt_s = 1\nmax_gap = nan", "tiers.a.max_gap must be at least 1"),
        ("[tiers.a]\nttft_s = 1\ntbt_s = 1\nmax_gap = '2'", "max_gap must be a number of TBTs"),
        ("[tiers.a]\nttlt_s = 1\nmax_gap = 2", "tiers.a.max_gap is in TBTs: it needs"),
        ("tiers = 3", "tiers must be tables"),
        ("[tires.a]\nttlt_s = 1", "tires is unknown"),
        ("[tiers.a", "Expected"),
        ("[tenants.a]\nweigth = 2", "tenants.a.weigth is unknown"),
        ("[tenants.a]\nweight = 0", "tenants.a.weight must be positive"),
        ("[tenants.a]\nweight = inf", "tenants.a.weight must be positive"),
        ("[tenants.a]\nweight = true", "tenants.a.weight must be a number"),
        ("[tenants.'']\nweight = 1", "tenants.: no call can name it: a name is printable ASCII"),
        ("[tenants.a]\nweight = 1" + "0" * 400, "tenants.a.weight is too large a number"),
        ("[tenants.a]\nweight = 1e308\n[tenants.b]\nweight = 1e308", "tenants.a.weight must be"),
        ("[tenants.a]\nweight = 5e-324", "tenants.a.weight must be positive, from 1e-06 to 1e+06"),
        ("[tiers.a]\nttlt_s = 1" + "0" * 400, "tiers.a.ttlt_s is too large a number"),
        ("[tiers.a]\nttlt_s = 1e300", "tiers.a.ttlt_s must be at most 1e+09, got 1e+300"),
        ('[tiers."caf\u00e9"]\nttlt_s = 1', "tiers.caf\u00e9: no call can name it"),
        ('[tiers."a\\nb"]\nttlt_s = 1', "tiers.'a\\nb': no call can name it"),
        ("[tiers.explicit]\nttlt_s = 1", "tiers.explicit is a name that metrics have"),
        ("[tenants.other]\nweight = 1", "tenants.other.weight is of one tenant"),
        (f"[applications.{'a' * 129}]\nttlt_s = 1", "no call can name it"),
        ("default_tier = '" + "a" * 9999 + "'", "...aaaaaaaaaaaaa' is not one of the tiers"),
        ("tenants = ['a']", "tenants must be tables"),
    ],
)
def test_a_bad_file_is_told_by_its_path_line_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        load(path)
    assert re.match(rf"{re.escape(str(path))}:[1-4]: ", str(caught.value))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_is_no_larger_than_it_can_be_read_while_calls_are_served(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_bytes(b"#" * (MOST_BYTES + 1))
    with pytest.raises(ValueError, match=f"^{path}: has more than {MOST_BYTES} bytes$"):
        load(path)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_bytes(b"\xef\xbb\xbf[tiers.a]\r\nttlt_s = 1\r\n")
    assert list(load(path).tiers) == ["a"]


def test_a_tenant_has_a_share_of_its_own_where_the_operator_names_it(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text("[tenants.acme]\nweight = 2\n[tenants.corp]\n")
    tiers = load(path)
    assert tiers.share_of("acme") == Share("acme", 2.0)
    assert tiers.share_of("corp") == Share("corp", 1.0)
    assert tiers.share_of("invented") == tiers.share_of("") == Tiers().share_of("acme")


def test_a_quick_machine_gets_the_usual_tiers() -> None:
    proposed = propose(LatencyProfile("quick", (Segment(UNBOUNDED, 1e-3, 1e-5),)), 64, 4096)
    assert [(t.name, t.targets) for t in proposed] == [
        ("interactive", Targets(ttft_s=1.0, tbt_s=0.05)),
        ("standard", Targets(ttlt_s=10.0)),
        ("batch", Targets(ttlt_s=60.0)),
    ]


def test_a_slow_machine_gets_tiers_that_it_can_keep() -> None:
    """32 decodes of 5 ms and 64 tokens of 1 ms: 224 ms, so 300. Four prompts of 1,024 tokens: some
    4.1 s, so 5. Everything else follows the slower of both, TBT: sixfold.
    """
    segment = Segment(UNBOUNDED, 0.0, prefill=1e-3, decode=5e-3)
    proposed = propose(LatencyProfile("slow", (segment,)), 64, 4096)
    assert proposed[0].targets == Targets(ttft_s=5.0, tbt_s=0.3)
    assert proposed[1].targets == Targets(ttlt_s=60.0)
    assert proposed[2].targets == Targets(ttlt_s=360.0)


SLOW = LatencyProfile("slow", (Segment(UNBOUNDED, 2e-3, prefill=1e-3, decode=5e-3),))


def test_the_least_that_can_be_kept_is_worked_out_from_the_profile() -> None:
    """One token of prompt: 3 ms; one decode: 7; beside 32 decodes and 64 tokens: 226; four prompts
    of 1,024 tokens: 4.1 s, and 2 ms for each iteration.
    """
    least = least_of(SLOW, 64, 4096)
    assert (least.alone_ttft_s, least.alone_tbt_s) == pytest.approx((3e-3, 7e-3))
    assert least.loaded_tbt_s == pytest.approx(0.226)
    assert 4.096 < least.loaded_ttft_s < 4.2


def test_a_tier_that_cannot_be_kept_is_named_with_the_least_that_can(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text(
        "[tiers.slow]\nttft_s = 0.003\ntbt_s = 0.007\n"
        "[tiers.hasty]\nttft_s = 1\ntbt_s = 0.0001\n"
        "[tiers.none]\n"
        "[applications.a]\nttlt_s = 0.002\n"
        "[applications.b]\ntier = 'hasty'\n"
    )
    found = load(path).shortfalls(least_of(SLOW, 64, 4096))
    assert list(found) == ["tiers.hasty", "applications.a"]
    (short,) = found["tiers.hasty"]
    assert (short.target, short.stated_s) == ("tbt_s", 1e-4)
    assert str(short) == (
        "TBT of 0.1 ms cannot be kept: here it takes 7 ms even alone, 226 ms under moderate load"
    )
    assert [each.target for each in found["applications.a"]] == ["ttlt_s"]


def test_what_an_engine_proposes_it_can_keep() -> None:
    for profile in (SLOW, LatencyProfile("quick", (Segment(UNBOUNDED, 1e-3, 1e-5),))):
        proposed = {tier.name: tier for tier in propose(profile, 64, 4096)}
        assert Tiers(proposed).shortfalls(least_of(profile, 64, 4096)) == {}


def test_an_application_may_name_a_preset_which_is_a_tier_from_then_on() -> None:
    tiers = parse("[applications.a]\ntier = 'nightly-batch'\nimportance = 'normal'", Path("f.toml"))
    assert list(tiers.tiers) == ["interactive", "standard", "batch", "nightly-batch"]
    assert tiers.default == "interactive"
    assert tiers.tiers["nightly-batch"] == presets()["nightly-batch"]
    resolved = tiers.resolve(application="a")
    assert (resolved.tier, resolved.importance) == ("nightly-batch", Importance.NORMAL)
    assert tiers.resolve(tier="nightly-batch").importance is Importance.LOW
    assert parse("default_tier = 'chat'", Path("f.toml")).default == "chat"
    assert "chat" not in parse("", Path("f.toml")).tiers


def test_a_tier_of_the_file_replaces_a_preset_of_its_name() -> None:
    text = "[tiers.chat]\nttlt_s = 5\n[applications.a]\ntier = 'chat'"
    tiers = parse(text, Path("f.toml"))
    assert tiers.tiers == {"chat": Tier("chat", Targets(ttlt_s=5.0))}


def test_there_are_presets_for_the_usual_kinds_of_work_each_with_its_reason() -> None:
    """A comment above each table, and no name that a built-in tier has."""
    assert presets().keys() == {
        *("chat", "code-completion", "retrieval-answer", "agent-step", "summary", "extraction"),
        *("nightly-batch", "evaluation", "scoring"),
    }
    assert not presets().keys() & {tier.name for tier in BUILT_IN}
    lines = files("engine").joinpath("presets.toml").read_text().splitlines()
    for i, line in enumerate(lines):
        assert not line.startswith("[") or lines[i - 1].startswith("# ")


def test_what_is_inferred_comes_after_all_that_is_stated(tiers: Tiers) -> None:
    inferred = Inferred(Tier("steady", tiers.tiers["steady"].targets), "why")
    stated: list[tuple[dict[str, object], TargetSource]] = [
        ({"explicit": Targets(ttlt_s=1.0)}, TargetSource.REQUEST),
        ({"tier": "chat"}, TargetSource.TIER),
        ({"application": "search"}, TargetSource.APPLICATION),
        ({"application": "unknown"}, TargetSource.INFERRED),
        ({}, TargetSource.INFERRED),
    ]
    for arguments, source in stated:
        resolved = tiers.resolve(**arguments, inferred=inferred)  # type: ignore[arg-type]
        assert resolved.source is source
        assert resolved.reason == ("why" if source is TargetSource.INFERRED else "")
    assert tiers.resolve(inferred=inferred, timeout_s=2.0).targets.tbt_s == 2.0
    operators = replace(tiers, deadline_is_target=True)
    assert operators.resolve(inferred=inferred, timeout_s=2.0).source is TargetSource.RPC_DEADLINE
    assert operators.resolve(inferred=inferred).source is TargetSource.INFERRED
