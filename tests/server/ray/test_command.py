"""What a fleet is told, before anything of Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.ray.fleet import Fleet, of_arguments

OF_RAY = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that it imports


def test_arguments_are_texts_or_values() -> None:
    assert of_arguments({"replicas": "2", "cpus": 0.5}) == Fleet(replicas=2, cpus=0.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"replicas": "0"}, "replicas must be at least 1, got 0"),
        ({"replicas": "two"}, "replicas must be a whole number, got 'two'"),
        ({"gpus": -1}, "gpus must not be negative, got -1.0"),
        ({"cpus": "nan"}, "cpus must not be negative, got nan"),
        ({"replica": 1}, "replica is unknown; there are flags, replicas, "),
    ],
)
def test_what_is_wrong_is_told_by_its_name(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match="^" + said):
        of_arguments(arguments)


@OF_RAY
def test_what_a_proxy_of_rays_cannot_keep_does_not_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from server.config import ServerConfig, StartError
    from server.ray.__main__ import read
    from server.ray.app import check

    with pytest.raises(StartError, match=r"^Ray's proxy listens on all addresses: "):
        check(ServerConfig())
    check(ServerConfig(allow_anonymous=True))
    with pytest.raises(StartError, match="Ray's proxy speaks no TLS"):
        check(ServerConfig(allow_plaintext=True, tls_certificate=Path("a"), tls_key=Path("b")))
    with pytest.raises(SystemExit):
        read(["--replicas", "0"])
    assert "--replicas must be at least 1, got 0" in capsys.readouterr().err


@OF_RAY
def test_what_the_environment_says_reaches_every_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from server.ray.__main__ import read

    monkeypatch.setenv("NIYAMA_MAX_REQUESTS", "7")
    monkeypatch.setenv("NIYAMA_ALLOW_ANONYMOUS", "no")
    monkeypatch.setenv("NIYAMA_DRAIN_S", "3")
    command = read(["--drain-s", "5", "--cpus", "2"])
    assert command.flags[:2] == ["--drain-s", "5"]
    assert set(command.flags[2:]) == {"--max-requests=7", "--no-allow-anonymous"}
    assert (command.config.max_requests, command.config.drain_s) == (7, 5.0)
