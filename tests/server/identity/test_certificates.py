"""The server's certificate: what is no good is told before anybody connects."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives import serialization

from server.config import ServerConfig
from server.identity import files
from server.identity.certificates import Tls
from server.identity.watching import NEAR_S, TOLD_AGAIN_S, Expiry
from tests.server.identity.authority import DAY, Authority, Issued


def config_of(folder: Path, issued: Issued, client_ca: bytes | None = None) -> ServerConfig:
    certificate, key = issued.write(folder, "server")
    path = None if client_ca is None else folder / "ca.pem"
    if path is not None and client_ca is not None:
        path.write_bytes(client_ca)
    return ServerConfig(tls_certificate=certificate, tls_key=key, tls_client_ca=path)


def said(config: ServerConfig) -> str:
    with pytest.raises(ValueError) as caught:
        files.read(config)
    return str(caught.value)


def test_what_is_good_is_taken_and_holds_until_it_ends(
    tmp_path: Path, authority: Authority
) -> None:
    config = config_of(tmp_path, authority.issue(ends=40 * DAY), authority.certificate)
    tls = files.read(config).tls
    assert tls is not None
    assert abs(tls.expires_at - time.time() - 40 * 86400) < 60
    assert tls.client_ca == authority.certificate
    assert b"PRIVATE" not in repr(tls).encode()


def test_a_chain_holds_until_its_first_certificate_ends(
    tmp_path: Path, authority: Authority
) -> None:
    issued = authority.issue(ends=40 * DAY)
    chain = Issued(b"of this machine\n" + issued.certificate + authority.certificate, issued.key)
    tls = files.read(config_of(tmp_path, chain)).tls
    assert tls is not None
    assert tls.expires_at < time.time() + 41 * 86400


def test_dates_beyond_2049_are_read(tmp_path: Path, authority: Authority) -> None:
    """They are written otherwise (RFC 5280, 4.1.2.5)."""
    tls = files.read(config_of(tmp_path, authority.issue(ends=20_000 * DAY))).tls
    assert tls is not None
    assert abs(tls.expires_at - time.time() - 20_000 * 86400) < 60


def test_where_descriptors_run_out_that_is_told_like_all_else(
    tmp_path: Path, authority: Authority
) -> None:
    """Who watches the files then goes on to watch them: a flood of connections passes."""
    config = config_of(tmp_path, authority.issue(), authority.certificate)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = []
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest + 8)]
        stack.callback(lambda: [os.close(each) for each in held])
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1, hard))
        while held:
            try:
                files.read(config)
            except ValueError as error:
                told.append(str(error))
            else:
                break
            os.close(held.pop())
    assert len(told) > 1
    assert all(each.startswith("--tls-") for each in told)


def test_what_is_no_good_is_told_by_flag_and_file(tmp_path: Path, authority: Authority) -> None:
    good, other = authority.issue(), authority.issue()
    swapped = config_of(tmp_path, Issued(good.certificate, other.key))
    assert "--tls-key" in said(swapped)
    assert "is not the key of" in said(swapped)
    assert "has expired, on 20" in said(config_of(tmp_path, authority.issue(ends=-DAY / 2)))
    early = authority.issue(begins=DAY / 2)
    assert "does not hold before" in said(config_of(tmp_path, early))
    for bad in (b"", b"no PEM", good.key, good.certificate[:200]):
        told = said(config_of(tmp_path, Issued(bad, good.key)))
        assert told.startswith(f"--tls-certificate {tmp_path}"), bad
    assert "cannot be used" in said(config_of(tmp_path, Issued(good.certificate, b"no key")))
    for ca, why in ((b"none", "holds no certificates"), (good.certificate, "of an authority")):
        told = said(config_of(tmp_path, good, ca))
        assert "--tls-client-ca" in told
        assert why in told


def test_a_key_that_others_can_read_or_that_is_locked_is_refused(
    tmp_path: Path, authority: Authority
) -> None:
    issued = authority.issue()
    config = config_of(tmp_path, issued)
    assert config.tls_key is not None
    config.tls_key.chmod(0o640)
    assert files.read(config).tls is not None  # its group may read it: Kubernetes mounts it so
    config.tls_key.chmod(0o644)
    assert "others may read or change it (mode 0644)" in said(config)
    key = serialization.load_pem_private_key(issued.key, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    told = said(config_of(tmp_path, Issued(issued.certificate, locked)))
    assert "locked by a passphrase" in told


def test_one_of_the_files_wants_the_others(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert "wants --tls-key" in said(ServerConfig(tls_certificate=path))
    assert "wants --tls-certificate" in said(ServerConfig(tls_key=path))
    assert "wants --tls-certificate" in said(ServerConfig(tls_client_ca=path))
    assert "No such file" in said(ServerConfig(tls_certificate=path, tls_key=path))


def test_the_operator_is_told_once_a_day_that_a_certificate_ends() -> None:
    tls, now = Tls(b"", b"", None, 1000 * 86400.0), 1000 * 86400.0
    expiry = Expiry()
    with structlog.testing.capture_logs() as lines:
        expiry.tell(None, now)
        expiry.tell(tls, now - NEAR_S - 5)
        for later in (0, 5, TOLD_AGAIN_S, TOLD_AGAIN_S + 5, NEAR_S, NEAR_S + TOLD_AGAIN_S):
            expiry.tell(tls, now - NEAR_S + TOLD_AGAIN_S + later)
    events = [(line["log_level"], line["event"]) for line in lines]
    soon, over = ("warning", "certificate expires soon"), ("error", "certificate has expired")
    assert events == [soon, soon, over, over]
