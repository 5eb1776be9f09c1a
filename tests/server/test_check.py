"""`--check-config`: a good file is printed as one that says the same, a bad one by its line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import tiers_file, toml_file
from engine.config import SECTIONS
from engine.embedded import FOLDER
from server import check
from server.configuration import value_of
from server.identity import tokens
from server.settings import CONFIGURATION, FLAGS, Given, ask
from tests.server.identity.authority import DAY, Authority

ROOT = Path(__file__).parents[2]
PATH = f"{ROOT}:{ROOT / 'client'}"
GOOD = """\
default_tier = "chat"

[limits]
max_requests = 200

[scheduler]
longest_wait_s = inf

[logs]
decision_log = "decisions.jsonl"

[tiers.chat]
ttft_s = 0.5
tbt_s = 0.05

[tenants."acme & sons"]
weight = 2
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checked(
    capsys: pytest.CaptureFixture[str], *argv: str, **environment: str
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    code = check.main(ask([*argv, "--check-config"], environment))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_good_file_is_printed_with_who_states_each_value(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("n.toml").write_text(GOOD)
    code, out, err = checked(
        capsys, "--config", "n.toml", "--port", "0", NIYAMA_DRAIN_S="3", NIYAMA_DRAIN="4"
    )
    assert code == 0
    assert err == (
        "niyama-server: warning: NIYAMA_DRAIN is unknown (did you mean NIYAMA_DRAIN_S?)\n"
    )
    for line in (
        'default_tier = "chat"  # n.toml:1',
        "port = 0  # flag --port",
        "max_requests = 200  # n.toml:4",
        "drain_s = 3.0  # environment NIYAMA_DRAIN_S",
        "max_batch_size = 64  # default",
        "longest_wait_s = inf  # n.toml:7",
        f'decision_log = "{tmp_path}/decisions.jsonl"  # n.toml:10',
        "# save_profile is not set  # default",
        "[tiers.chat]",
        "tbt_s = 0.05  # n.toml:14",
        '[tenants."acme & sons"]',
        "weight = 2  # n.toml:17",
    ):
        assert line in out.splitlines()


def test_what_is_printed_can_be_saved_and_says_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In any folder: the names of files in it are whole."""
    Path("n.toml").write_text(GOOD)
    _, out, _ = checked(capsys, "--config", "n.toml", "--port", "7")
    saved = tmp_path / "elsewhere" / "saved.toml"
    saved.parent.mkdir()
    saved.write_text(out)
    code, again, _ = checked(capsys, "--config", str(saved))
    assert code == 0
    assert tomllib.loads(again) == tomllib.loads(out)
    first = Given({"port": 7}, {}).resolve(check.load(Path("n.toml"))).config
    second = Given({}, {}).resolve(check.load(saved)).config
    for name in FLAGS:
        value = value_of(first, name)
        if FLAGS[name].section != CONFIGURATION:
            same = value.absolute() if isinstance(value, Path) else value
            assert value_of(second, name) == same, name
    assert tiers_file.load(saved) == tiers_file.load(Path("n.toml"))


@settings(max_examples=40)
@given(st.text(max_size=8), st.floats(min_value=1e-6, max_value=1e6))
def test_whatever_a_text_holds_it_is_printed_as_toml(text: str, weight: float) -> None:
    """Or as a comment, where TOML cannot say it."""
    said = check._line("a", text, "n.toml:1\n2") + "\n" + check._line("b", weight, "x")
    wanted: dict[str, Any] = {"b": weight}
    if not any(0xD800 <= ord(each) < 0xE000 for each in text):
        wanted["a"] = text
    assert tomllib.loads(said) == wanted


def test_an_incomplete_file_is_told_by_the_table_that_lacks_something(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("n.toml").write_text("[limits]\n\n[tiers.chat]\nttft_s = 1\n")
    code, out, err = checked(capsys, "--config", "n.toml")
    assert (code, out) == (1, "")
    what = "tiers.chat.tbt_s is required: ttft_s and tbt_s go together"
    assert err == f"niyama-server: error: n.toml:3: {what}\n"


GONE = "cannot be served: no checkpoint folder or GGUF file"
MISSING = [
    ("[model]\nmodel = 'gone'", f"n.toml:2: model.model {GONE} gone"),
    ("[model]\nmodel = '.'", "n.toml:2: model.model cannot be served: no config.json in ."),
    ("[identity]\nadmin_token_file = 'gone'", "n.toml:2: identity.admin_token_file gone: No such"),
    ("[logs]\ndecision_log = 'gone/log'", "n.toml:2: logs.decision_log names a file in no folder"),
    ("[logs]\ndecision_log = '.'", "n.toml:2: logs.decision_log names a folder: ."),
    ("[calibration]\nsave_profile = 'a/b'", "n.toml:2: calibration.save_profile names a file in"),
    ("[limits]\nmax_requests = 0", "n.toml:2: limits.max_requests must be at least 1, got 0"),
    ("[limits]\nmax_request = 1", "n.toml:2: limits.max_request is unknown; known are "),
    ("[tiers.a]\nttlt_s = 'soon'", "n.toml:2: tiers.a.ttlt_s must be a number of seconds"),
    ("[tiers.a", "n.toml:1: Expected ']' at the end of a table declaration"),
]


@pytest.mark.parametrize(("text", "message"), MISSING)
def test_a_wrong_file_is_told_by_its_line(
    capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    Path("n.toml").write_text(text)
    code, out, err = checked(capsys, "--config", "n.toml")
    assert (code, out) == (1, "")
    assert err.startswith(f"niyama-server: error: {message}")
    assert err.count("\n") == 1
    code, out, err = checked(capsys, "--config", "n.toml", "--json")
    assert (code, err) == (1, "")
    error = json.loads(out)["error"]
    assert error["message"].startswith(message)
    assert (error["file"], error["line"]) == ("n.toml", 1 if text == "[tiers.a" else 2)


def test_what_a_flag_or_a_variable_names_must_be_there_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("token").write_text("secret")
    os.chmod("token", 0o644)
    for argv, environment, message in (
        (["--model", "gone"], {}, f"--model {GONE} gone"),
        ([], {"NIYAMA_MODEL": "gone"}, f"NIYAMA_MODEL {GONE} gone"),
        (["--admin-token-file", "token"], {}, "--admin-token-file token: others may read"),
        ([], {"NIYAMA_MAX_REQUESTS": "x"}, "NIYAMA_MAX_REQUESTS must be a whole number, got 'x'"),
        (["--config", "gone.toml"], {}, "gone.toml: No such file or directory"),
    ):
        code, _, err = checked(capsys, *argv, **environment)
        assert code == 1
        assert err.startswith(f"niyama-server: error: {message}")
        assert "secret" not in err


def test_as_json_every_value_has_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    Path("n.toml").write_text(GOOD)
    code, out, _ = checked(capsys, "--config", "n.toml", "--json")
    assert code == 0
    said = json.loads(out)
    assert said["settings"]["limits"]["max_requests"] == {"value": 200, "source": "n.toml:4"}
    assert said["settings"]["scheduler"]["longest_wait_s"]["value"] == "inf"
    assert said["settings"]["configuration"]["config"]["source"] == "flag --config"
    assert said["tiers"]["chat"]["ttft_s"] == 0.5
    flags = [name for of_section in said["settings"].values() for name in of_section]
    assert sorted(flags) == sorted(FLAGS)


def test_it_is_a_command_that_loads_no_model_and_leaves_nothing_behind(tmp_path: Path) -> None:
    Path("n.toml").write_text(GOOD)
    code = (
        "import sys; from server.__main__ import main;"
        "code = main(['--config', 'n.toml', '--check-config']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": PATH, "NIYAMA_MAX_REQUESTS": "7"}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert "max_requests = 7  # environment NIYAMA_MAX_REQUESTS\n" in said.stdout
    assert said.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["n.toml"]


@pytest.mark.parametrize(("sink", "message"), [("|", ""), ("/dev/full", "No space left")])
def test_output_that_is_not_taken_is_no_traceback(sink: str, message: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    target = writing if sink == "|" else os.open(sink, os.O_WRONLY)
    said = subprocess.run(
        [sys.executable, "-m", "server", "--check-config"],
        stdout=target,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PATH},
    )
    for each in {target, writing}:
        os.close(each)
    assert said.returncode == 1
    assert message in said.stderr
    assert said.stderr.count("\n") == bool(message)


def test_tokens_of_tenants_that_may_have_anything_for_want_of_a_table_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("tokens.toml").write_text(tokens.make("acme")[1])
    Path("tokens.toml").chmod(0o600)
    rights = '[identity]\ntokens_file = "tokens.toml"\n[tenants.acne]\nimportance = "low"\n'
    Path("niyama.toml").write_text(rights)
    code, _, err = checked(capsys, "--config", "niyama.toml")
    assert code == 0
    assert err.startswith("niyama-server: warning: tokens name tenants that have no table")
    Path("niyama.toml").write_text(rights + "[tenants.other]\n")
    assert checked(capsys, "--config", "niyama.toml")[2] == ""


def test_the_example_for_operators_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    """And has every section, and each kind of the rest."""
    text = (ROOT / "server/README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Configuration\n")[2].partition("\n## ")[0]
    example = section.partition("```toml\n")[2].partition("```")[0]
    said = tomllib.loads(example)
    assert said.keys() == {*SECTIONS, *tiers_file.KEYS}
    Path("niyama.toml").write_text(example)
    code, _, err = checked(capsys, "--config", "niyama.toml")
    assert code == 1
    assert err.endswith(f"model.model {GONE} {said['model']['model']}\n")
    Path("operator.token").write_text("secret")
    Path("operator.token").chmod(0o600)
    Path(said["model"]["model"]).mkdir(parents=True)
    shutil.copy(FOLDER / "config.json", said["model"]["model"])
    Path("log").mkdir()
    Path("tls").mkdir()
    Authority().issue().write(Path("tls"), "server")
    Path("tokens.toml").write_text(tokens.make("acme")[1])
    Path("tokens.toml").chmod(0o600)
    code, out, err = checked(capsys, "--config", "niyama.toml")
    assert code == 0
    assert err.startswith("niyama-server: note: the certificate holds until 20")
    assert len(err.splitlines()) == 1
    printed = tomllib.loads(out)
    for table in ("tiers", "applications", "tenants", "limits"):
        assert said[table].items() <= printed[table].items()
    place = example[: example.index("max_requests")].count("\n") + 1
    assert f"max_requests = 500  # niyama.toml:{place}\n" in out
    assert f"`max_requests = 500  # niyama.toml:{place}`" in section
    reloaded = [name for name, known in FLAGS.items() if known.flag.is_reloaded]
    told = section.partition("SIGHUP")[2]
    assert all(f"`{name}`" in told for name in reloaded)


def test_the_bound_of_a_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    Path("n.toml").write_bytes(b"#" * (toml_file.MOST_BYTES + 1))
    code, _, err = checked(capsys, "--config", "n.toml")
    assert code == 1
    assert err.startswith("niyama-server: error: n.toml: has more than ")


def test_identities_are_checked_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With the line that names the file; and what is exposed is told."""
    authority = Authority()
    certificate, key = authority.issue(ends=3 * DAY).write(tmp_path, "server")
    path = tmp_path / "niyama.toml"
    text = f'[identity]\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n'
    path.write_text(text + '[tenants.a]\ncertificates = ["CN=a", "b"]\n')
    code, out, err = checked(capsys, "--config", str(path))
    assert code == 0
    assert "warning: the certificate holds until" in err
    assert 'certificates = ["CN=a", "b"]  # ' in out
    host = ("--host", "0.0.0.0", "--config", str(path))
    code, _, err = checked(capsys, *host)
    assert code == 1
    assert "--host '0.0.0.0' can be reached from other machines" in err
    code, _, err = checked(capsys, *host, "--allow-anonymous")
    assert code == 0
    assert "warning: whoever reaches the port may call as any tenant" in err
    authority.issue().write(tmp_path, "server")
    certificate.write_bytes(authority.issue().certificate)
    code, _, err = checked(capsys, "--config", str(path))
    assert code == 1
    assert f"{path}:3: identity.tls_key {key}: is not the key of {certificate}" in err
