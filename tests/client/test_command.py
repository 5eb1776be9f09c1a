"""`python -m client`: a bare prompt streams; the subcommands answer; failures are one line."""

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from niyama.client.__main__ import main
from tests.client.little_server import LittleInference

ADMITTED = {"admitted": True, "reason": "", "detail": "", "retry_after": None}
Capture = pytest.CaptureFixture[str]


async def run(*argv: str) -> int:
    return await asyncio.to_thread(main, argv)


async def test_a_bare_prompt_streams_and_prints_the_timings(address: str, capsys: Capture) -> None:
    assert await run("one two", "--tier", "interactive", "--server", address) == 0
    output = capsys.readouterr()
    assert output.out == "one two \n"
    assert "TTFT 2.0 ms" in output.err
    assert "TTFT target 500.0 ms: met" in output.err
    assert "TBT target 50.0 ms: MISSED" in output.err


async def test_options_may_come_before_the_prompt(address: str, servicer: LittleInference) -> None:
    assert await run("--server", address, "--ttlt", "9", "--seed", "4", "--stop", ".", "hi") == 0
    request = servicer.requests[0]
    assert request.qos.deadline.ttlt.seconds == 9
    assert (request.sampling.seed, list(request.sampling.stop)) == (4, ["."])


async def test_a_prompt_that_is_a_command_word_is_sent_by_generate(
    address: str, capsys: Capture
) -> None:
    assert await run("generate", "info", "--server", address) == 0
    assert capsys.readouterr().out == "info \n"


async def test_a_dash_reads_standard_input(
    address: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert await run("-", "--server", address) == 0
    assert capsys.readouterr().out == "from a pipe \n"


async def test_info_shows_the_tiers(address: str, capsys: Capture) -> None:
    assert await run("info", "--server", address) == 0
    output = capsys.readouterr().out
    assert "interactive: TTFT 500.0 ms, TBT 50.0 ms, importance high" in output
    assert "standard: TTLT 31,000.0 ms, importance normal  (default)" in output


async def test_the_environment_may_name_the_server(
    address: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIYAMA_SERVER", address)
    assert await run("info") == 0
    assert await run("info", "--server", "127.0.0.1:1") == 1
    assert "127.0.0.1:1: " in capsys.readouterr().err


async def test_info_shows_the_sampling_of_requests_that_state_none(
    address: str, capsys: Capture
) -> None:
    assert await run("info", "--server", address) == 0
    assert (
        "sampling  temperature 0.25, top-k 3, top-p 1, min-p 0, repetition penalty 1.5, "
        "128 tokens at most, where a request does not say\n"
    ) in capsys.readouterr().out


async def test_a_reader_that_leaves_early_is_no_traceback(address: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = (sys.executable, "-m", "client", "info", "--server", address)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=writing, stderr=asyncio.subprocess.PIPE
    )
    os.close(writing)
    _, error = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, error) == (1, b"")


@pytest.mark.parametrize("module", ["client", "niyama.client"])
def test_it_is_a_command_by_either_name(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"niyama {version('niyama-client')}\n"


NO_UTF_8 = b"caf\xe9"
TO_NOBODY = ("--server", "127.0.0.1:1")


def ran(*argv: str | bytes, closed: str = "", **streams: Any) -> tuple[int, str]:
    """As a shell starts it: the exit status, and what is on standard error. `closed` is how a shell
    closes one of its streams.
    """
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"] if closed else []
    command = [*shell, sys.executable, "-m", "client", *argv]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60, **streams)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    "argv",
    [
        (NO_UTF_8,),
        ("hi", "--stop", NO_UTF_8),
        ("hi", "--tenant", NO_UTF_8),
        ("explain", NO_UTF_8),
        ("hi", "--server", NO_UTF_8 + b":50051"),
        ("hi", "--server", "http://host:50051"),
        ("hi", "--server", ""),
        ("hi", "--timeout", "nan"),
        ("hi", "--seed", "-1"),
    ],
)
def test_arguments_that_make_no_call_are_one_line(
    argv: tuple[str | bytes, ...], capsys: Capture
) -> None:
    """Python hands on an argument's bytes that are no UTF-8 as lone surrogates."""
    arguments = [os.fsdecode(word) for word in argv]
    if "--server" not in arguments:
        arguments += TO_NOBODY
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("niyama: ")
    assert error.count("\n") == 1


def test_standard_input_that_is_no_text_is_one_line() -> None:
    utf_8 = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    status, error = ran("-", *TO_NOBODY, input=NO_UTF_8, env=utf_8)
    assert status == 2
    assert error == "niyama: 127.0.0.1:1: standard input: not utf-8 at byte 3\n"


def test_streams_that_are_closed_take_nothing() -> None:
    """Their descriptors would be sockets, and what is printed sent to the server."""
    without_output = ran("info", *TO_NOBODY, closed=">&-")
    assert without_output == (1, "niyama: standard output is closed\n")
    assert ran("-", "--server", "", closed="<&-")[0] == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
async def test_output_that_cannot_be_written_is_one_line(address: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    ended = await asyncio.to_thread(ran, "info", "--server", address, stdout=full)
    os.close(full)
    assert ended == (1, "niyama: standard output: No space left on device\n")


async def test_a_character_that_the_terminal_lacks_is_escaped(address: str) -> None:
    reads = {"stdout": subprocess.PIPE, "env": {**os.environ, "PYTHONIOENCODING": "ascii"}}
    status, error = await asyncio.to_thread(ran, "caf\xe9", "--server", address, **reads)
    assert status == 0, error


async def test_estimate_and_explain_and_count(address: str, capsys: Capture) -> None:
    assert await run("estimate", "10", "15", "--ttlt", "20", "--server", address) == 0
    assert capsys.readouterr().out.startswith("LATE\npredicted TTFT 10,000.0 ms")
    assert await run("explain", "known", "--server", address) == 0
    shown = capsys.readouterr().out
    assert "20.0 ms  chunk        64 tokens  (predicted 18.0 ms)" in shown
    assert "2,000.0 ms ahead, tier chat, tenant acme, 1,000.0 ms of it beyond its part" in shown
    assert "1,000.0 ms ahead, of others" in shown
    assert "read in the decision log" in shown
    assert shown.endswith("On time.\n- Nothing.\n")
    assert await run("count", "a b c", "--server", address) == 0
    assert capsys.readouterr().out == "3\n"


async def test_what_programs_read_is_an_object_per_line(address: str, capsys: Capture) -> None:
    """Instants and durations in seconds; what is not finite is null."""
    for command, expected in (
        (("explain", "known"), {"request_id": "known", "result": "on_time", "tenant": "acme"}),
        (("estimate", "10", "15", "--ttlt", "20"), {"admission": ADMITTED}),
        (("info",), {"default_tier": "standard"}),
    ):
        assert await run(*command, "--json", "--server", address) == 0
        (line,) = capsys.readouterr().out.splitlines()
        told = json.loads(line)
        assert expected.items() <= told.items()
    assert json.loads(line)["tiers"][0]["importance"] in ("low", "normal", "high")


async def test_a_relegation_is_shown_when_it_comes(address: str, capsys: Capture) -> None:
    assert await run("relegate me", "--server", address) == 0
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("relegated: a long queue; expected to be complete 9,000.0 ms after")


async def test_flags_say_who_calls_and_what_is_rather_refused(
    address: str,
    servicer: LittleInference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    path = tmp_path / "token"
    path.write_text("word\n")
    server = ("--server", address)
    assert await run("--token-file", str(path), *server, "--refuse-if-late", "one") == 0
    assert servicer.requests[0].qos.refuse_if_late
    monkeypatch.setenv("NIYAMA_TOKEN_FILE", str(path))
    assert await run("count", "one", *server) == 0
    assert servicer.tokens == ["Bearer word"] * 2
    servicer.num_away = 1
    assert await run("info", *server) == 1
    servicer.num_away = 1
    assert await run("info", "--retries", *server) == 0
    capsys.readouterr()
    assert await run("info", "--server", "niyama.example:1") == 2
    assert "a token is not sent unencrypted to niyama.example:1" in capsys.readouterr().err


async def test_a_variable_that_is_no_good_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("NIYAMA_TLS", "perhaps")
    with pytest.raises(SystemExit) as caught:
        await run("info")
    assert caught.value.code == 2
    assert "NIYAMA_TLS is true or false, not 'perhaps'" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["two words", "", "caf\u00e9"])
async def test_a_file_that_holds_no_token_is_named(
    content: str, address: str, capsys: Capture, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text(content, "utf-8")
    assert await run("--token-file", str(path), "info", "--server", address) == 2
    told = f"niyama: {address}: token file {path}: a token is one word of printable ASCII\n"
    assert capsys.readouterr().err == told


async def test_failures_are_one_line_and_an_exit_status(address: str, capsys: Capture) -> None:
    for prompt, status, message in (
        ("full", 1, "the queue is full (retry after 1.5 s)"),
        ("bad", 2, "sampling.top_p: too large"),
        ("die 1", 1, "the engine was lost"),
    ):
        assert await run(prompt, "--server", address) == status
        error = capsys.readouterr().err
        assert error == f"niyama: {address}: {message}\n"


def test_an_unreachable_server_is_one_line(capsys: Capture) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        assert main(["hi", "--server", address]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"niyama: {address}: ")
    assert error.endswith("is the server running? (python -m server)\n")
    assert error.count("\n") == 1


def test_a_prompt_is_required(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


async def test_the_tenant_goes_with_every_call(address: str, servicer: LittleInference) -> None:
    """Beside the message: before the command, after it, or not at all."""
    assert await run("--tenant", "acme", "hi", "--server", address) == 0
    assert await run("explain", "known", "--server", address) == 0
    assert await run("hi", "--tenant", "zen", "--server", address) == 0
    assert servicer.tenants == ["acme", "", "zen"]
