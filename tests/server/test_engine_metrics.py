"""What is told of engine, machine and setup, as a scrape of a real server has it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from engine.deciding.experience import MOST_RISK
from engine.deciding.queued_work import STATES
from engine.deciding.request import Targets
from engine.tiers import Tier, Tiers
from niyama.v1 import inference_pb2 as pb
from server import process_metrics
from server.engine_metrics import REASONS, ReloadMetrics, ReportedMetrics, SetupMetrics
from tests.server.conftest import BATCH, MAX_REQUESTS, Running, within
from tests.server.monitoring.prometheus import promtool


async def scraped(running: Running) -> bytes:
    """The metrics, after a request of a tier and one of best effort."""
    sampling = pb.Sampling(max_tokens=4, ignore_eos=True)
    request = pb.GenerateRequest(input=pb.Input(text="Once"), sampling=sampling)
    request.qos.tier = "batch"
    await within(running.stub.Generate(request))
    request.qos.tier = ""
    request.qos.best_effort.SetInParent()
    await within(running.stub.Generate(request))
    await within(running.service.calls.idle.wait())
    await within(running.server.engine.refresh_metrics())
    return generate_latest(running.metrics.registry)


@pytest.mark.asyncio(loop_scope="session")
async def test_promtool_finds_no_fault_in_a_scrape(running: Running, tmp_path: Path) -> None:
    text = await scraped(running)
    assert b"_created" not in text
    assert b"_created" not in openmetrics(running.metrics.registry)
    names = [line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE")]
    assert len(set(names)) == len(names)
    await asyncio.to_thread(promtool, "check", "metrics", told=text.decode())


@pytest.mark.asyncio(loop_scope="session")
async def test_the_engine_and_the_machine_are_told(running: Running) -> None:
    await scraped(running)
    sample = running.metrics.registry.get_sample_value
    stats = await running.stats()

    def value(name: str, **labels: str) -> float:
        found = sample(f"niyama_{name}", labels)
        assert found is not None, name
        return found

    assert value("engine_up") == 1
    assert value("target_least_seconds", target="tbt", load="alone") > 0
    assert value("config_last_reload_successful") == 1
    assert value("iteration_seconds_count") == stats.totals.num_iterations > 0
    assert value("iteration_seconds_bucket", le="+Inf") == stats.totals.num_iterations
    assert value("iteration_error_ratio_count") == stats.totals.num_iterations
    assert 0 < value("iteration_seconds_sum") <= value("engine_busy_seconds_total")
    assert value("iteration_predicted_seconds_total") > 0
    assert value("speed_ratio") > 0
    assert value("demand_ratio") > 0
    assert value("prompt_tokens_total") == stats.totals.prompt_tokens > 0
    assert value("prefill_tokens_total") > 0
    assert value("decode_tokens_total") > 0
    assert value("chunks_total") > 0
    assert value("work_seconds_total", tenant="other", tier="batch") > 0
    pages = {state: value("kv_pages", state=state) for state in ("used", "cached", "free")}
    assert sum(pages.values()) == stats.pages_total
    assert pages["used"] == value("kv_usage_ratio") == 0
    assert value("limit_requests") == MAX_REQUESTS
    assert value("limit_queued_tokens") == running.server.config.most_queued_tokens
    assert value("limit_batch_sequences") == BATCH
    assert value("limit_kv_tokens") >= value("limit_context_tokens") > 0
    for tier in ("interactive", "standard", "batch"):
        chance = value("forecast_late_chance", tier=tier)
        assert 0 <= chance <= 1
        assert (value("headroom_seconds", tier=tier) > 0) == (chance < MOST_RISK)
        for reason in REASONS:
            assert value("relegations_total", tier=tier, reason=reason) >= 0
        for state in STATES:
            assert value("sequences", tier=tier, state=state) == 0
            assert value("queued_work_seconds", tier=tier, state=state) == 0
    targets = running.service.tiers.tiers["interactive"].targets
    assert value("tier_target_seconds", tier="interactive", target="ttft") == targets.ttft_s
    assert value("tier_target_seconds", tier="interactive", target="tbt") == targets.tbt_s


@pytest.mark.asyncio(loop_scope="session")
async def test_every_process_of_the_service_is_told(running: Running) -> None:
    """By its name, with what the system says of it."""
    found = process_metrics.processes()
    assert found.keys() >= {"server", "engine", "reader-short", "reader-long"}
    assert found["server"] == os.getpid()
    own = {process.pid for process in psutil.Process().children()}
    assert {pid for name, pid in found.items() if name != "server"} <= own
    usage, process = process_metrics.read(os.getpid()), psutil.Process()
    assert usage is not None
    times = process.cpu_times()
    assert usage.cpu_s == pytest.approx(times.user + times.system, abs=0.5)
    assert usage.started_at == pytest.approx(process.create_time(), abs=2)
    assert usage.resident == pytest.approx(process.memory_info().rss, rel=0.2)
    assert usage.virtual == pytest.approx(process.memory_info().vms, rel=0.2)
    assert 0 < usage.open_fds < usage.max_fds
    sample = running.metrics.registry.get_sample_value
    for name in ("server", "engine", "reader-short", "reader-long"):
        assert (sample("process_resident_memory_bytes", {"process": name}) or 0) > 1 << 20
        assert (sample("process_cpu_seconds_total", {"process": name}) or 0) > 0


def of(registry: CollectorRegistry, name: str) -> list[str]:
    """The samples whose names begin so, each as its line."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if line.startswith(name)]


@pytest.mark.asyncio(loop_scope="session")
async def test_no_speed_is_told_without_calibration_and_nothing_of_a_silent_engine(
    running: Running,
) -> None:
    await scraped(running)
    serves = True
    reported, registry = ReportedMetrics(lambda: serves), CollectorRegistry()
    registry.register(reported)
    info = running.server.engine.link.ready()
    reported.stats, reported.info = running.server.engine.metrics.reported.stats, info
    assert len(of(registry, "niyama_speed_ratio")) == 1
    reported.info = replace(info, calibration=None)
    assert not of(registry, "niyama_speed_ratio")
    assert of(registry, "niyama_engine_up") == ["niyama_engine_up 1.0"]
    assert of(registry, "niyama_demand_ratio")
    serves = False
    assert of(registry, "niyama_engine_up") == ["niyama_engine_up 0.0"]
    assert not of(registry, "niyama_demand_ratio")


@pytest.mark.asyncio(loop_scope="session")
async def test_the_targets_told_are_those_in_force(running: Running) -> None:
    """Also after the operator has changed them."""
    tiers = Tiers({"chat": Tier("chat", Targets(ttft_s=2.0, tbt_s=0.25))}, "chat")
    reported, registry = ReportedMetrics(lambda: True), CollectorRegistry()
    registry.register(SetupMetrics(running.server.config, reported, lambda: tiers))
    name = "niyama_tier_target_seconds"
    assert of(registry, name) == [
        f'{name}{{target="ttft",tier="chat"}} 2.0',
        f'{name}{{target="tbt",tier="chat"}} 0.25',
    ]
    night, free = Tier("night", Targets(ttlt_s=60.0)), Tier("free", Targets())
    tiers = Tiers({"night": night, "free": free}, "night")
    assert of(registry, name) == [f'{name}{{target="ttlt",tier="night"}} 60.0']
    assert not of(registry, "niyama_config_info"), "no engine has been ready"
    reported.info = running.server.engine.link.ready()
    (info,) = of(registry, "niyama_config_info")
    assert 'policy="niyama"' in info
    assert 'calibrated="true"' in info
    assert len(of(registry, "niyama_build_info")) == 1


def test_nothing_is_told_of_a_process_that_has_ended() -> None:
    assert process_metrics.read(1 << 30) is None


def test_a_reload_that_fails_leaves_the_instant_of_the_last_good_one() -> None:
    registry = CollectorRegistry()
    reloads = ReloadMetrics(registry)
    for is_good, unix_s, last in ((True, 5.0, 5.0), (False, 6.0, 5.0), (True, 7.0, 7.0)):
        reloads.told(is_good, unix_s)
        found = registry.get_sample_value("niyama_config_last_reload_successful")
        at = registry.get_sample_value("niyama_config_last_reload_success_timestamp_seconds")
        assert (found, at) == (is_good, last)
