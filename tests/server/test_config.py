"""Flags: one default each, and bad values are told by the flag's name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from engine.checkpoint import options
from engine.checkpoint.source import Folder
from engine.config import SECTIONS, EngineConfig
from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.pace import PaceConfig
from engine.deciding.plan import Pending, Plan
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig
from engine.driving.assemble import assemble
from engine.embedded import FOLDER
from engine.flags import flags_of
from server.config import ServerConfig
from server.settings import CONFIGURATION, parse

# What the server is asked to do instead of serving: no setting, and so no field.
COMMANDS = {"--check-config", "--make-token", "--json", "--version"}

PROFILE = LatencyProfile("test", (Segment(UNBOUNDED, 1e-3),))


class Unused:
    compilations = 0

    def launch(self, plan: Plan) -> Pending:
        raise AssertionError


def test_no_flags_give_the_defaults_of_the_dataclasses() -> None:
    assert parse([]) == ServerConfig()
    assert ServerConfig().engine.model == FOLDER
    assert (ServerConfig().host, ServerConfig().port) == ("127.0.0.1", 50051)


def test_every_flag_reaches_its_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.toml").touch()
    flags = "--port 0 --drain-s 2.5 --config t.toml --model m --chunk-size 64 --policy edf"
    engine = EngineConfig(model=Path("m"), chunk_size=64, policy="edf")
    expected = replace(ServerConfig(engine=engine), port=0, drain_s=2.5, config=Path("t.toml"))
    assert parse(flags.split()) == expected


def test_the_scheduler_s_flags_reach_it() -> None:
    flags = (
        "--policy srpf --chunk-size 64 --max-gap 3 --reserve 1 --relegation-allowance 0.1"
        " --background-share 0.05 --longest-wait-s 60 --record-capacity 7 --max-batch-size 5"
    )
    config = parse(flags.split()).engine
    model = Folder(FOLDER).model_config()
    engine = assemble(config, model, Unused(), PROFILE, 10, dtype="none", device="none")
    assert isinstance(engine.scheduler, Scheduler)
    niyama = NiyamaConfig(
        pace=PaceConfig(max_gap=3, reserve=1),
        allowance=0.1,
        background_share=0.05,
        longest_wait_s=60,
    )
    assert engine.scheduler.config == SchedulerConfig(
        num_pages=10,
        context_len=model.max_positions,
        policy="srpf",
        chunk_size=64,
        max_batch_size=5,
        record_capacity=7,
        niyama=niyama,
    )


def test_help_names_the_embedded_model_and_no_folder_of_this_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(default: the embedded model)" in said
    assert str(FOLDER.parent) not in said.replace(" ", "")


def test_help_says_what_holds_where_a_flag_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Help that explains one value in brackets ("0: none") once left the default out."""
    monkeypatch.setenv("COLUMNS", "1000")  # nothing is wrapped
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for config in (ServerConfig(), EngineConfig()):
        for name, hint in get_type_hints(type(config), include_extras=True).items():
            value = getattr(config, name)
            for flag in getattr(hint, "__metadata__", ()):
                if value not in (None, ()) and not isinstance(value, bool):
                    told = "(default" in flag.help or f"{flag.help} (default: {value})" in said
                    assert told, name


def test_every_flag_has_a_section() -> None:
    """By it help is grouped, and a configuration file has tables."""
    for config in (ServerConfig, EngineConfig):
        for name, flag in flags_of(config).items():
            if name == "config":
                continue
            assert flag.section in SECTIONS, f'{name}: Flag(..., section="one of config.SECTIONS")'


def test_help_has_every_flag_once_in_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said, place = capsys.readouterr().out, ""
    found = []
    for line in said.splitlines():
        if line.endswith(":") and line[:-1] in (CONFIGURATION, *SECTIONS):
            place = line[:-1]
        elif line.startswith("  --") and line.split()[0] not in COMMANDS:
            found.append((place, line.split()[0].rstrip(",")))
    wanted = [
        (flag.section, f"--{name.replace('_', '-')}")
        for config in (ServerConfig, EngineConfig)
        for name, flag in flags_of(config).items()
    ]
    assert sorted(each for each in found if each[0]) == sorted(wanted)


def test_engine_flags_that_take_no_value_and_paths() -> None:
    flags = "--recalibrate --calibration-cache c --save-profile p --decision-log d --patience-s 9"
    engine = parse(flags.split()).engine
    assert engine.recalibrate
    assert (engine.calibration_cache, engine.save_profile) == (Path("c"), Path("p"))
    assert (engine.decision_log, engine.patience_s) == (Path("d"), 9)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "float8"),
        ("quantize", "int3"),
        ("compile", "maybe"),
        ("overlap", ""),
        ("policy", "magic"),
        ("device", "tpu"),
        ("device", "cuda:"),
        ("device", "cpu:0"),
        ("device", "cuda:one"),
    ],
)
def test_an_engine_s_configuration_refuses_words_that_nothing_knows(field: str, value: str) -> None:
    """Here already, not in the engine's process once it has started."""
    with pytest.raises(ValueError, match=rf"^{field} must be .*, got {value!r}$"):
        replace(EngineConfig(), **{field: value})


def test_what_flags_offer_is_what_the_engine_carries_out() -> None:
    hints = get_type_hints(EngineConfig, include_extras=True)
    offered = {name: get_args(hints[name])[1].choices for name in ("dtype", "quantize", "compile")}
    assert offered["dtype"] == ("auto", *options.DTYPES)
    assert (offered["quantize"], offered["compile"]) == (options.QUANTIZE, options.COMPILE)
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:17"):
        assert EngineConfig(device=device).device == device


@pytest.mark.parametrize(
    "flags",
    [
        "--port 70000",
        "--port -1",
        "--max-requests 0",
        "--max-message-bytes 0",
        "--drain-s -1",
        "--drain-s nan",
        "--chunk-size 0",
        "--max-batch-size 0",
        "--page-size 0",
        "--kv-memory-mib -1",
        "--context-len -5",
        "--torch-threads -1",
        "--policy magic",
        "--max-gap 0.5",
        "--reserve -1",
        "--relegation-allowance 1",
        "--background-share 1.5",
        "--longest-wait-s 0",
        "--record-capacity -1",
        "--calibration-s -1",
        "--calibration-s nan",
        "--patience-s 0",
        "--dtype float8",
        "--device tpu",
        "--frontends 0",
        "--frontends 65",
        "--metrics-port 5 --port 5",
        "--port many",
    ],
)
def test_bad_values_exit_with_a_line_that_names_the_flag(
    flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(flags.split())
    assert caught.value.code == 2
    assert flags.split()[0] in capsys.readouterr().err.splitlines()[-1]
