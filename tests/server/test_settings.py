"""Every flag may be stated by the command line, the environment and the file, in this order."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine import toml_file
from engine.toml_file import BadFile, Document
from loadgen.arguments import parse as loadgen
from niyama.client.__main__ import main as client
from server.config import ServerConfig
from server.configuration import value_of
from server.settings import (
    CONFIGURATION,
    FLAGS,
    OTHERS,
    BadSetting,
    Given,
    Known,
    ask,
    from_environment,
    parse,
    unknown_variables,
    variable_of,
)
from server.tier_port import TierPort

FILE = Path("/srv/niyama.toml")
ROOT = Path(__file__).parents[2]
# But for what wants another flag beside it.
IN_FILES = [
    name
    for name, known in FLAGS.items()
    if known.section != CONFIGURATION and name != "follow_config"
]


def another(known: Known) -> Any:
    """A value that differs from the default, and is allowed."""
    if known.kind is bool:
        return not known.default
    if known.kind is TierPort:
        return (TierPort("batch", 7), TierPort("standard", 0))
    if known.flag.choices:
        return next(each for each in known.flag.choices if each != known.default)
    if known.kind in (int, float):
        if known.default in (0.0, 0.02):  # a share
            return known.kind(1) if known.kind is int else 0.5
        return known.kind(known.default + 1)
    return known.kind("cpu")  # the only text that is checked is a device


def document(text: str) -> Document:
    return toml_file.parse(text, FILE)


def stated(name: str, value: Any) -> Document:
    """A file that states the value of one flag."""
    known = FLAGS[name]
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    shown = str([str(each) for each in value]) if isinstance(value, tuple) else shown
    shown = f"'{value}'" if isinstance(value, str | Path) else shown
    return document(f"[{known.section}]\n{name} = {shown}\n")


def typed(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option] if value else [f"--no-{option[2:]}"]
    if isinstance(value, tuple):
        return [word for each in value for word in (option, str(each))]
    return [option, str(value)]


def in_environment(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("name", IN_FILES)
def test_a_flag_is_the_same_whoever_states_it(name: str) -> None:
    value = another(FLAGS[name])
    by_flag = ask(typed(name, value), {}).given.resolve()
    by_variable = ask([], {variable_of(name): in_environment(value)}).given.resolve()
    by_file = ask([], {}).given.resolve(stated(name, value))
    expected = {"flag": value, "environment": value, "file": value}
    if FLAGS[name].kind is Path:
        expected["file"] = FILE.parent / value  # relative to the file, wherever one stands
    for resolved, (kind, wanted) in zip(
        (by_flag, by_variable, by_file), expected.items(), strict=True
    ):
        assert value_of(resolved.config, name) == wanted
        assert type(value_of(resolved.config, name)) is type(wanted)
        assert resolved.settings[name].source.kind == kind
        others = {n: s for n, s in resolved.settings.items() if n != name}
        assert {s.source.kind for s in others.values()} == {"default"}
    assert by_flag.config == by_variable.config
    assert str(by_file.settings[name].source) == f"{FILE}:2"


@settings(max_examples=50)  # a parser is made for each
@given(
    name=st.sampled_from(IN_FILES),
    sources=st.sets(st.sampled_from(["flag", "environment", "file"])),
)
def test_the_nearest_source_wins(name: str, sources: set[str]) -> None:
    """Whichever others state a value too; a value of the same kind from each."""
    known = FLAGS[name]
    values = {"flag": another(known), "environment": known.default, "file": another(known)}
    if known.default in (None, "") or known.kind is Path:
        values = {"flag": "one", "environment": "cpu", "file": "three"}
    if known.kind is TierPort:  # nothing is as if it were not set
        values["environment"] = (TierPort("interactive", 9),)
    argv = typed(name, values["flag"]) if "flag" in sources else []
    texts = {variable_of(name): in_environment(values["environment"])}
    environment = texts if "environment" in sources else {}
    file = stated(name, values["file"]) if "file" in sources else None
    setting = ask(argv, environment).given.resolve(file).settings[name]
    nearest = next((s for s in ("flag", "environment", "file") if s in sources), "default")
    assert setting.source.kind == nearest
    wanted = values.get(nearest, known.default)
    if known.kind is Path and nearest != "default":
        wanted = (FILE.parent if nearest == "file" else Path()) / str(wanted)
    assert setting.value == wanted


def test_an_empty_variable_is_as_if_it_were_not_set() -> None:
    assert from_environment({variable_of(name): "" for name in FLAGS}) == {}
    assert parse([], {"NIYAMA_MAX_REQUESTS": "", "NIYAMA_CONFIG": ""}) == ServerConfig()


def test_kubernetes_own_variables_are_not_ours() -> None:
    """In a pod beside a Service that is named niyama; NIYAMA_PORT would be no number."""
    environment = {
        "NIYAMA_PORT": "tcp://10.0.0.7:50051",
        "NIYAMA_PORT_50051_TCP_ADDR": "10.0.0.7",
        "NIYAMA_SERVICE_HOST": "10.0.0.7",
    }
    assert parse([], environment) == ServerConfig()
    assert unknown_variables(environment) == []


def test_a_misspelt_variable_is_told() -> None:
    notes = unknown_variables({"NIYAMA_MAX_REQUEST": "3", "NIYAMA_QQQ": "", "PATH": "x"})
    assert notes == [
        "NIYAMA_MAX_REQUEST is unknown (did you mean NIYAMA_MAX_REQUESTS?)",
        "NIYAMA_QQQ is unknown",
    ]


def test_the_client_s_variables_are_known() -> None:
    """A shell may have both."""
    files = [*(ROOT / "client").rglob("*.py"), *(ROOT / "loadgen").rglob("*.py")]
    named = {name for file in files for name in re.findall(r'"(NIYAMA_\w+)"', file.read_text())}
    assert named == OTHERS
    assert unknown_variables(dict.fromkeys(named, "x")) == []


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "niyama.toml"
    path.write_text("[limits]\nmax_requests = 7\n[logs]\ndecision_log = 'log/decisions'\n")
    config = parse([], {"NIYAMA_CONFIG": str(path)})
    assert (config.config, config.max_requests) == (path, 7)
    assert config.engine.decision_log == tmp_path / "log" / "decisions"
    assert parse(["--config", str(path)], {"NIYAMA_CONFIG": "gone.toml"}) == config


def test_what_a_file_turns_on_a_flag_turns_off() -> None:
    file = document("[lifetime]\nuntil_eof = true\n")
    assert ask([], {}).given.resolve(file).config.until_eof
    assert not ask(["--no-until-eof"], {}).given.resolve(file).config.until_eof
    assert not ask([], {"NIYAMA_UNTIL_EOF": "no"}).given.resolve(file).config.until_eof


BAD_FILES = [
    ("[limits]\nmax_request = 1\n", "2: limits.max_request is unknown; known are"),
    ("[limits]\nmax_request = 1\n", "(did you mean max_requests?)"),
    ("[limit]\nmax_requests = 1\n", "1: limit is unknown; known are"),
    ("[limit]\nmax_requests = 1\n", "(did you mean limits?)"),
    ("max_requests = 1\n", "1: max_requests belongs into [limits]"),
    ("[listen]\n\nmax_requests = 1\n", "3: listen.max_requests belongs into [limits]"),
    ("[listen]\nconfig = 'x'\n", "2: listen.config cannot stand in a file"),
    ("[configuration]\nconfig = 'x'\n", "1: configuration is unknown"),
    ("limits = 3\n", "1: limits must be a table: [limits]"),
    ("[limits]\nmax_requests = '1'\n", "2: limits.max_requests must be a whole number, got '1'"),
    ("[limits]\nmax_requests = 1.0\n", "2: limits.max_requests must be a whole number, got 1.0"),
    ("[limits]\nmax_requests = true\n", "2: limits.max_requests must be a whole number, got True"),
    ("[limits]\nmax_requests = 0\n", "2: limits.max_requests must be at least 1, got 0"),
    ("[limits]\nread_s = nan\n", "2: limits.read_s must be above 0"),
    ("[limits]\nread_s = 1" + "0" * 400, "2: limits.read_s is too large a number"),
    ("[scheduler]\nmax_gap = 0.5\n", "2: scheduler.max_gap must be at least 1"),
    ("[scheduler]\npolicy = 'magic'\n", "2: scheduler.policy must be one of"),
    ("[scheduler]\nrelegation_allowance = 1\n", "2: scheduler.relegation_allowance must be in"),
    ("[compute]\ndevice = 'tpu'\n", "2: compute.device must be auto, cpu, cuda or cuda:N"),
    ("[model]\nmodel = ''\n", "2: model.model must not be empty"),
    ("[model]\nmodel = ['m']\n", "2: model.model must be a text, got ['m']"),
    ("[lifetime]\nuntil_eof = 1\n", "2: lifetime.until_eof must be true or false, got 1"),
    ("[limits]\nmax_requests = 3\nmax_requests = 4\n", "3: Cannot overwrite a value"),
    ("[limits]\nread_s = 1h\n", "2: Expected newline or end of document after a statement"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_what_is_wrong_in_a_file_is_told_by_its_line(text: str, message: str) -> None:
    with pytest.raises((BadFile, BadSetting)) as caught:
        ask([], {}).given.resolve(document(text))
    said = str(caught.value)
    assert said.startswith(f"{FILE}:")
    assert message in said
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("NIYAMA_MAX_REQUESTS", "many", "must be a whole number, got 'many'"),
        ("NIYAMA_MAX_REQUESTS", "0", "must be at least 1, got 0"),
        ("NIYAMA_READ_S", "soon", "must be a number, got 'soon'"),
        ("NIYAMA_UNTIL_EOF", "maybe", "must be true or false, got 'maybe'"),
        ("NIYAMA_POLICY", "magic", "must be one of "),
        ("NIYAMA_RESERVE", "-1", "must "),
    ],
)
def test_a_bad_variable_ends_the_start_with_its_name(
    capsys: pytest.CaptureFixture[str], variable: str, text: str, message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([], {variable: text})
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(f"niyama-server: error: {variable} {message}")


names = st.sampled_from([*IN_FILES, "config", "nonsense", ""])
toml_values = st.sampled_from(
    ["1", "0", "-1", "1.5", "inf", "nan", "true", "'cpu'", "''", "[1]", "{a = 1}", "1" + "0" * 400]
)


@given(st.dictionaries(names, toml_values, max_size=4))
@example({"relegation_allowance": "nan"})
def test_any_file_is_taken_or_refused_by_its_line(values: dict[str, str]) -> None:
    """With a message of one line; never by a mistake of ours."""
    lines = []
    for name, value in values.items():
        section = FLAGS[name].section if name in FLAGS else "limits"
        lines.append(f"{section}.{name or repr('')} = {value}")
    file = document("\n".join(lines))
    said = ""
    try:
        resolved = Given({}, {}).resolve(file)
    except (BadFile, BadSetting) as error:
        said = str(error)
    if said:
        assert re.match(rf"{FILE}:[1-4]: [^\n]*\Z", said)
        return
    for name in values:
        assert resolved.settings[name].source.kind == "file"
        assert value_of(resolved.config, name) == resolved.settings[name].value


def test_nothing_of_a_given_configuration_is_lost() -> None:
    asked = Given({"max_requests": 3}, {"drain_s": "4"})
    assert asked.resolve().config == ServerConfig(max_requests=3, drain_s=4.0)


@pytest.mark.parametrize(
    ("program", "main"),
    [("niyama-server", parse), ("niyama", client), ("niyama-loadgen", loadgen)],
)
def test_a_command_says_its_version(
    capsys: pytest.CaptureFixture[str], program: str, main: Callable[[list[str]], object]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{program} {version('niyama')}\n"


def test_help_tells_the_default_of_every_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # nothing is wrapped
    with pytest.raises(SystemExit):
        parse(["--help"])
    options = re.split(r"\n  (?=--)", capsys.readouterr().out)
    told = {option.split()[0].rstrip(","): option for option in options}
    for name, known in FLAGS.items():
        said = told[f"--{name.replace('_', '-')}"]
        assert re.search(r"\bdefault\b", said), said
        if known.default is False:
            assert "(default: no)" in said
