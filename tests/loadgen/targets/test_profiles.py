"""Profiles: a roofline against figures worked out by hand and against a published measurement;
saved calibrations; tiers; and what is said of bad ones.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from engine.deciding.latency import A100_LLAMA3_8B, LatencyModel, LatencyProfile, add_chunk
from engine.deciding.plan import Work
from loadgen.simulation_flags import parse_tier
from loadgen.targets import profiles
from loadgen.targets.profiles import A100, BadProfile, Device, Efficiency, ModelShape
from niyama.client.values import Importance, Targets, Tier

LLAMA3_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA3_8B))
    return path


def seconds(profile: profiles.Profile, work: Work) -> float:
    return LatencyModel(profile.latency).predict(work)


def test_a_small_iteration_of_a_roofline_costs_the_reading_of_the_weights() -> None:
    """1,000 + 200 parameters of 2 bytes at 100 bytes/s: 24 s. Below the ridge tokens are free."""
    shape = ModelShape(1000, 200, 0, kv_bytes=4, attention_flops=0, context_len=64)
    exact = Efficiency(1.0, 1.0, 1.0)
    profile = profiles.roofline("r", Device(1000.0, 100.0, 2800.0), shape, exact, 0.5)
    assert profile.kv_tokens == 100, "(2,800 - 2,400) / 4"
    ridge = profile.latency.segments[0].up_to
    assert ridge == 12, "a token is 2 FLOPs per parameter, 2 s"
    assert seconds(profile, add_chunk(Work(), 0, 10)) == pytest.approx(0.5 + 24.0 + 10 * 0.04)
    assert seconds(profile, add_chunk(Work(), 0, 100)) == pytest.approx(0.5 + 200.0 + 100 * 0.04)


def test_attention_costs_its_pairs_and_the_context_it_reads() -> None:
    shape = ModelShape(1000, 200, 0, kv_bytes=50, attention_flops=100, context_len=64)
    exact = Efficiency(1.0, 1.0, 1.0)
    profile = profiles.roofline("r", Device(1000.0, 100.0, 1e6), shape, exact, 0.0)
    decodes = Work(num_decodes=2, decode_context=20)
    assert seconds(profile, decodes) == pytest.approx(24.0 + 20 * 0.5)
    chunk = add_chunk(Work(), 10, 2)  # attends to 11 and 12 positions, of 12 that are read
    assert seconds(profile, chunk) == pytest.approx(24.0 + 12 * 0.5 + 23 * 0.1)


def test_a_roofline_of_the_published_gpu_is_near_the_published_times(llama: Path) -> None:
    roofline = profiles.load(f"roofline:a100-80gb:{llama}")
    assert roofline.kv_tokens == pytest.approx(A100.kv_tokens, rel=0.02)
    for chunk in (256, 512, 1024, 2048):
        work = add_chunk(Work(32, 32 * 2000), 0, chunk)
        assert seconds(roofline, work) == pytest.approx(seconds(A100, work), rel=0.35)


def test_a_faster_device_is_faster_and_a_given_one_is_the_same_as_a_named_one(llama: Path) -> None:
    work = add_chunk(Work(32, 32 * 2000), 0, 512)
    a100, h100, h200, given = (
        profiles.load(f"roofline:{device}:{llama}")
        for device in ("a100-80gb", "h100", "h200", "312e12,2.039e12,80e9")
    )
    assert seconds(a100, work) > seconds(h100, work) > seconds(h200, work)
    assert h200.kv_tokens > h100.kv_tokens
    assert seconds(given, work) == seconds(a100, work)


def test_a_saved_calibration_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(A100_LLAMA3_8B.to_dict() | {"kv_tokens": 5000, "context_len": 700}))
    profile = profiles.load(str(path))
    assert profile.latency == A100_LLAMA3_8B
    assert (profile.kv_tokens, profile.context_len) == (5000, 700)


def test_host_overhead_is_added_to_every_iteration() -> None:
    for work in (Work(1, 100), add_chunk(Work(), 0, 2048)):
        slower = seconds(A100.with_overhead(0.01), work)
        assert slower == pytest.approx(seconds(A100, work) + 0.01)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("nowhere.json", None, "is no file; a profile is a100-llama3-8b"),
        ("bad.json", "{", "not JSON"),
        ("bad.json", "[]", "not a JSON object"),
        ("bad.json", '{"name": "x"}', "not a saved calibration"),
        ("roofline:h100:bad.json", '{"hidden_size": 1}', "not a model's config.json"),
        (
            "roofline:l4:bad.json",
            json.dumps(LLAMA3_8B | {"num_attention_heads": 0}),
            "not positive",
        ),
        ("roofline:l4:bad.json", json.dumps(LLAMA3_8B | {"num_hidden_layers": 0}), "not positive"),
        (
            "roofline:l4:bad.json",
            json.dumps(LLAMA3_8B | {"num_key_value_heads": "x"}),
            "bad.json: not a model's config.json: invalid literal",
        ),
        ("roofline:tpu:bad.json", json.dumps(LLAMA3_8B), "unknown device 'tpu'"),
        ("roofline:1,2,-3:bad.json", json.dumps(LLAMA3_8B), "positive"),
        ("roofline:l4,:bad.json", json.dumps(LLAMA3_8B), "unknown device"),
        ("roofline:1e12,1e12,1e9:bad.json", json.dumps(LLAMA3_8B), "the weights take 16.1 GB"),
    ],
)
def test_a_bad_profile_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str | None,
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("bad.json").write_text(content)
    with pytest.raises(BadProfile, match=problem) as error:
        profiles.load(name)
    assert "\n" not in str(error.value)


def test_tiers_are_read_as_the_server_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text(
        'default_tier = "chat"\n[tiers.chat]\nttft_s = 0.5\ntbt_s = 0.05\nimportance = "high"\n'
        "max_gap = 1.5\n[tiers.report]\nttlt_s = 30\n[tiers.rest]\n"
    )
    assert profiles.load_tiers(path) == (
        Tier("chat", Targets(0.5, 0.05), Importance.HIGH, 1.5),
        Tier("report", Targets(ttlt=30.0), Importance.NORMAL),
        Tier("rest", Targets(), Importance.NORMAL),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "No such file"),
        ("tiers = 5", "must be tables"),
        ("[tiers.a]\nttft_s = 1", "tiers.a.tbt_s is required"),
        ("[tiers.a]\nttft = 0.5\ntbt = 0.05", "tiers.a.ttft is unknown; known are"),
        ("default_tir = 'a'", "default_tir is unknown"),
        ('[tiers.a]\nttft_s = "5s"', "tiers.a.ttft_s must be a number of seconds"),
        ("[tiers.a]\nttlt_s = -1", "tiers.a.ttlt_s must be"),
        ('[tiers.a]\nimportance = "vital"', "tiers.a.importance must be one of"),
    ],
)
def test_bad_tiers_are_one_line(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "tiers.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadProfile, match=problem) as error:
        profiles.load_tiers(path)
    line = "" if text is None else ":[12]"
    assert re.match(f"{re.escape(str(path))}{line}: ", str(error.value))
    assert "\n" not in str(error.value)


def test_without_a_table_the_tiers_are_a_server_s_own(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text("")
    assert profiles.load_tiers(path) == profiles.SERVER_TIERS


def test_a_tier_of_a_flag() -> None:
    assert parse_tier("chat=6s/50ms").targets == Targets(ttft=6.0, tbt=0.05)
    assert parse_tier("chat=6s/50ms").max_gap is None
    assert parse_tier("chat=6s/50ms/1.5") == Tier(
        "chat", Targets(ttft=6.0, tbt=0.05), Importance.NORMAL, 1.5
    )
    assert parse_tier("chat=6s/50ms/inf").max_gap == math.inf
    for text in ("chat=6s/50ms/0.5", "chat=6s/50ms/nan", "chat=6s/50ms/", "chat=6s/50ms/2/3"):
        with pytest.raises(ValueError, match="max_gap is a number of TBTs"):
            parse_tier(text)
    assert parse_tier("report=10m").targets == Targets(ttlt=600.0)
    assert parse_tier("rest=none").targets == Targets()
    for text in ("chat", "=5s", "chat=fast"):
        with pytest.raises(ValueError, match="such as"):
            parse_tier(text)


def test_a_profile_must_be_a_known_shape() -> None:
    with pytest.raises(ValueError, match="UNBOUNDED"):
        LatencyProfile("none", ())
