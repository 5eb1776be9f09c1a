"""Flags and files become the workload that they say."""

from pathlib import Path

import pytest

from loadgen.arguments import parse, to_spec
from loadgen.workload.arrivals import Process, Rate, Shape
from loadgen.workload.lengths import Fixed, FromTrace, Independent, Lognormal
from loadgen.workload.mix import INTERACTIVE
from loadgen.workload.plan import SharedPrefix, TierLoad, Workload, plan
from loadgen.workload.spec import build
from loadgen.workload.toml_file import BadWorkloadFile, load
from loadgen.workload.traces import Row
from niyama.client.values import Importance, Targets
from tests.loadgen.examples import CHAT, INFO

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.0000000,100,10
2023-11-16 18:15:48.0000000,200,20
"""
FILE = """
rps = "2..5/15m"
duration = "4h"
seed = 3
cv = 3
[tenants]
acme = 0.7
zen = 0.3
[all]
prompt_tokens = "80/200"
timeout = "30s"
cancel_rate = 0.02
importance = {low = 0.2, normal = 0.8}
[tiers.interactive]
share = 0.5
output_tokens = 30
shared_prefix = {length = 256, share = 0.5, count = 4}
[tiers.mine]
share = 0.5
ttft_s = 1
tbt_s = 0.05
trace = "trace.csv"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trace.csv").write_text(TRACE)
    (tmp_path / "load.toml").write_text(FILE)
    return tmp_path


def built(*argv: str) -> Workload:
    return build(to_spec(parse(argv)), INFO)


def by_name(workload: Workload) -> dict[str, TierLoad]:
    return {each.tier: each for each in workload.tiers}


def test_the_command_of_the_readme_splits_the_rest_of_the_mix() -> None:
    workload = built("--rps", "40", "--mix", "interactive:0.6")
    tiers = by_name(workload)
    shares = {name: tier.share for name, tier in tiers.items()}
    assert shares == pytest.approx({"interactive": 0.6, "standard": 0.2, "batch": 0.2})
    assert workload.arrivals.rate == Rate(40, 40)
    assert workload.arrivals.process is Process.POISSON
    assert (workload.duration_s, workload.seed, workload.context_length) == (30.0, 0, 512)
    assert tiers["interactive"].targets == CHAT
    assert tiers["interactive"].lengths == INTERACTIVE
    assert not tiers["interactive"].explicit


def test_lengths_are_for_all_tiers_or_for_one() -> None:
    tiers = by_name(built("--prompt-tokens", "80/200", "--prompt-tokens", "batch:300"))
    interactive, batch = tiers["interactive"].lengths, tiers["batch"].lengths
    assert interactive == Independent(Lognormal(80, 200), INTERACTIVE.output)
    assert isinstance(batch, Independent)
    assert batch.prompt == Fixed(300)


def test_flags_for_everything_else() -> None:
    workload = built(
        *("--rps", "ramp:1..9", "--duration", "2m", "--seed", "5", "--cv", "3"),
        *("--tenants", "a:0.5,b:0.5", "--applications", "chat:1", "--importance", "low:1"),
        *("--shared-prefix", "256:0.5:4", "--cancel-rate", "0.1", "--timeout", "5s"),
        "--refuse-if-late",
    )
    assert workload.arrivals.rate == Rate(1, 9, Shape.RAMP)
    assert (workload.arrivals.process, workload.arrivals.cv) == (Process.GAMMA, 3.0)
    assert (workload.duration_s, workload.seed) == (120.0, 5)
    assert (workload.tenants, workload.applications) == ({"a": 0.5, "b": 0.5}, {"chat": 1.0})
    for tier in workload.tiers:
        assert tier.importance == {Importance.LOW: 1.0}
        assert tier.prefix == SharedPrefix(256, 0.5, 4)
        assert (tier.cancel_rate, tier.timeout_s, tier.refuse_if_late) == (0.1, 5.0, True)


def test_a_trace_gives_lengths_and_a_replay_gives_both(folder: Path) -> None:
    trace = str(folder / "trace.csv")
    lengths = by_name(built("--trace", trace))["batch"].lengths
    assert lengths == FromTrace((Row(0.0, 100, 10), Row(2.0, 200, 20)))
    replay = built("--replay", trace)
    assert (replay.arrivals.rate, replay.replay_lengths) == (None, True)
    assert replay.duration_s == 4.0, "a gap goes on after the last of two rows, 2 s apart"
    assert built("--replay", trace, "--duration", "1h").duration_s == 4.0
    assert built("--replay", trace, "--duration", "1h", "--rps", "2").duration_s == 1.0
    assert built("--replay", trace, "--duration", "1").duration_s == 1.0
    assert not built("--replay", trace, "--prompt-tokens", "5").replay_lengths
    file = folder / "replay.toml"
    file.write_text('replay = "trace.csv"\nreplay_lengths = true\n[all]\nprompt_tokens = 5\n')
    assert built("--workload", str(file)).replay_lengths


def test_a_file_says_what_flags_make_clumsy(folder: Path) -> None:
    workload = built("--workload", str(folder / "load.toml"))
    tiers = by_name(workload)
    assert workload.arrivals.rate == Rate(2, 5, Shape.SQUARE, 900.0)
    assert workload.arrivals.process is Process.GAMMA
    assert (workload.duration_s, workload.seed) == (14400.0, 3)
    assert workload.tenants == {"acme": 0.7, "zen": 0.3}
    assert set(tiers) == {"interactive", "mine"}
    interactive, mine = tiers["interactive"], tiers["mine"]
    assert interactive.lengths == Independent(Lognormal(80, 200), Fixed(30))
    assert interactive.prefix == SharedPrefix(256, 0.5, 4)
    assert interactive.importance == {Importance.LOW: 0.2, Importance.NORMAL: 0.8}
    assert (interactive.cancel_rate, interactive.timeout_s) == (0.02, 30.0)
    assert (mine.targets, mine.explicit) == (Targets(ttft=1.0, tbt=0.05), True)
    assert isinstance(mine.lengths, FromTrace)


def test_flags_override_the_file(folder: Path) -> None:
    file = str(folder / "load.toml")
    workload = built("--workload", file, "--rps", "7", "--mix", "batch:1", "--timeout", "9")
    assert workload.arrivals.rate == Rate(7, 7)
    assert workload.seed == 3
    assert [(each.tier, each.share, each.timeout_s) for each in workload.tiers] == [
        ("batch", 1.0, 9.0)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rps = 'fast'", "rps: 'fast' is not a rate"),
        ("rsp = 3", "unknown key rsp"),
        ("[all]\nprompts = 3", "unknown key all.prompts"),
        ("[tiers.batch]\nshare = 'x'", "tiers.batch.share: must be a number, not 'x'"),
        ("[tiers.batch]\nttft_s = 1", "tiers.batch.: targets are ttft_s with tbt_s, or ttlt_s"),
        ("[tiers.batch]\nttlt_s = 1\ntbt_s = 1\nttft_s = 1", "targets are ttft_s with tbt_s"),
        ("[all]\nshared_prefix = {size = 3}", "all.shared_prefix: .*size"),
        ("[all]\nshared_prefix = {length = 1.5}", "all.shared_prefix: must be a whole number"),
        ("seed = 1.5", "seed: must be a whole number, not 1.5"),
        ("replay_lengths = 'no'", "replay_lengths: must be true or false, not 'no'"),
        ("[all]\nimportance = {huge = 1}", "all.importance: huge is no importance: one of low"),
        ("tenants = 3", "tenants: must be a table"),
        ("rps = ", "Invalid value"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadWorkloadFile, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
NAMED = f"""{HEADER},Application,Tier
2024-05-10 00:00:00,100,10,editor,interactive
2024-05-10 00:00:01,200,20,,batch
2024-05-10 00:00:02,300,30,editor,interactive
2024-05-10 00:00:03,400,40,night,batch
"""


def test_a_request_log_says_which_tier_and_application_each_row_is_of(folder: Path) -> None:
    path = folder / "requests.csv"
    path.write_text(NAMED)
    workload = built("--replay", str(path))
    assert [(load.tier, load.share) for load in workload.tiers] == [
        ("interactive", 0.5),
        ("batch", 0.5),
    ]
    assert [(r.at, r.tier, r.application, r.prompt_len, r.output_len) for r in plan(workload)] == [
        (0.0, "interactive", "editor", 100, 10),
        (1.0, "batch", "", 200, 20),
        (2.0, "interactive", "editor", 300, 30),
        (3.0, "batch", "night", 400, 40),
    ]
    twice = built("--replay", str(path), "--scale", "2", "--prompt-tokens", "7")
    assert [(r.at, r.tier, r.prompt_len) for r in plan(twice)] == [
        (0.0, "interactive", 7),
        (0.5, "batch", 7),
        (1.0, "interactive", 7),
        (1.5, "batch", 7),
    ]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (NAMED, ("--mix", "batch:1"), "shares of tiers: not allowed with a trace, whose rows"),
        (NAMED, ("--applications", "a:1"), "shares of applications: not allowed with a trace"),
        (NAMED.replace("batch", "gold"), (), "unknown tier gold; the target has "),
        (NAMED.replace("batch", ""), (), "line 3: no tier \\(Tier\\)"),
        (f"{HEADER},Tier\n2024-05-10 00:00:00,1,1\n", (), "line 2: too few columns"),
    ],
)
def test_a_request_log_that_cannot_be_had_is_refused(
    folder: Path, text: str, flags: tuple[str, ...], message: str
) -> None:
    path = folder / "requests.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        built("--replay", str(path), *flags)
