"""Tokens: made once, known by their digests, and never told."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.identity import make_token, tokens
from server.identity.tokens import LEAST_CHARS, Token, Tokens, digest_of
from tests.server.identity.conftest import write

NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=128)


@given(tenant=NAMES)
def test_a_token_that_was_made_is_its_tenant_s(tmp_path_factory: object, tenant: str) -> None:
    token, line = tokens.make(tenant)
    assert isinstance(tmp_path_factory, pytest.TempPathFactory)
    path = write(tmp_path_factory.getbasetemp() / "made.toml", line + "\n")
    known = Tokens(tokens.read(path))
    assert known.tenant_of(token, time.time()) == tenant
    assert token not in line
    assert known.tenant_of(token[:-1], 0) is None
    assert known.tenant_of(token + "x", 0) is None


def test_a_tenant_may_have_several_and_one_that_is_over_is_nobody_s(tmp_path: Path) -> None:
    (first, one), (second, other) = tokens.make("acme"), tokens.make("acme")
    other = other.replace(" }", ", expires = 2027-06-30 }")
    known = Tokens(tokens.read(write(tmp_path / "tokens", f"# ours\n{one}\n{other}\n")))
    ends_at = 1_814_313_600  # 2027-06-30, midnight in UTC
    assert len(known) == 2
    for now, found in ((ends_at - 1, "acme"), (ends_at, None)):
        assert known.tenant_of(first, now) == "acme"
        assert known.tenant_of(second, now) == found


@pytest.mark.parametrize("weak", ["", "password", "a" * 100, "ab" * 40, "x" * (LEAST_CHARS - 1)])
def test_what_can_be_guessed_is_nobody_s_though_the_file_knows_it(weak: str) -> None:
    """Somebody may have put the digest of a password there."""
    known = Tokens([Token(digest_of(weak.encode()), "acme")])
    assert known.tenant_of(weak, 0) is None


def test_a_word_of_another_maker_is_as_good_if_it_is_long() -> None:
    word = "0123456789abcdef" * 4
    assert Tokens([Token(digest_of(word.encode()), "acme")]).tenant_of(word, 0) == "acme"


GOOD = "0" * 64


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("niyama_secret = { tenant = 'a' }", ":1: a line begins with a token's SHA-256"),
        (f"{'A' * 64} = {{ tenant = 'a' }}", "64 hexadecimal digits"),
        (f"{GOOD} = 'a'", ":1: a line is as in DIGEST"),
        (f"\n{GOOD} = {{ }}", ":2: tenant must be a name"),
        (f"{GOOD} = {{ tenant = 7 }}", "tenant must be a name"),
        (f"{GOOD} = {{ tenant = 'naïve' }}", "tenant must be printable ASCII"),
        (f"{GOOD} = {{ tenant = 'a', role = 'admin' }}", "tenant and expires, and nothing else"),
        (f"{GOOD} = {{ tenant = 'a', secret = 1 }}", "tenant and expires, and nothing else"),
        (f"{GOOD} = {{ tenant = 'a', expires = 'secret' }}", "expires must be a date"),
        ("secret = { tenant = 'a' }\nsecret.expires = 1", "is no TOML; a line is as in"),
        ("[secret]\ntenant = 'a'\n[secret]", "is no TOML; a line is as in"),
        (f"{GOOD} = {{ tenant = 'a', expires = 'soon' }}", "expires must be a date"),
        (f"{GOOD} = {{ tenant = 'a' }}\n{GOOD} = {{ tenant = 'b' }}", ":2: "),
        ("secret", ":1: "),
    ],
)
def test_a_bad_file_is_told_by_its_line_and_never_by_what_may_be_a_secret(
    tmp_path: Path, text: str, why: str
) -> None:
    path = write(tmp_path / "tokens.toml", text)
    with pytest.raises(ValueError) as caught:
        tokens.read(path)
    told = str(caught.value)
    assert told.startswith(f"--tokens-file {path}:")
    assert why in told
    assert "secret" not in told
    assert GOOD not in told


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens.toml", "")
    assert tokens.read(path) == ()
    path.chmod(0o604)
    with pytest.raises(ValueError, match="others may read or change it"):
        tokens.read(path)


def test_the_command_prints_what_goes_into_the_file_apart_from_the_token(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "server", "--make-token", "acme"],
        capture_output=True,
        text=True,
        check=True,
    )
    path = write(tmp_path / "tokens.toml", found.stdout)
    assert Tokens(tokens.read(path)).tenant_of(found.stderr.strip(), 0) == "acme"


def test_the_command_refuses_a_name_that_no_call_could_state(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert make_token.main("", as_json=True) == 2
    assert "a tenant's name is printable ASCII" in capsys.readouterr().err
    assert make_token.main("acme", as_json=True) == 0
    assert '"token": "niyama_' in capsys.readouterr().out
