"""Flags: one default each, and bad values are told by the flag's name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.driving.config import EngineConfig
from engine.embedded import FOLDER
from server.config import ServerConfig, parse


def test_no_flags_give_the_defaults_of_the_dataclasses() -> None:
    assert parse([]) == ServerConfig()
    assert ServerConfig().engine.model == FOLDER
    assert (ServerConfig().host, ServerConfig().port) == ("127.0.0.1", 50051)


def test_every_flag_reaches_its_field() -> None:
    flags = "--port 0 --drain-s 2.5 --config t.toml --model m --chunk-size 64 --policy edf"
    engine = EngineConfig(model=Path("m"), chunk_size=64, policy="edf")
    expected = replace(ServerConfig(engine=engine), port=0, drain_s=2.5, config=Path("t.toml"))
    assert parse(flags.split()) == expected


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
        "--dtype float8",
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
