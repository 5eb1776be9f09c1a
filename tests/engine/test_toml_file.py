"""Which line of a file says what."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import toml_file
from engine.toml_file import MOST_BYTES, BadFile, Keys, Misstated, lines_of, parse, read

PATH = Path("niyama.toml")
FILE = '''\
# a comment with [brackets] and = signs
top = """
[tiers.not]
x = 1
"""

[limits] # of all
max_requests = 200
[tiers."a.b"]
nested = {ttft_s = 1, deep = {er = 2}}
dotted.key = [
  1, # ]
  "[tiers.no]",
]
after = \'\'\'one line\'\'\'
[[many]]
x = 1
'''


def test_a_line_is_known_for_each_table_and_value() -> None:
    assert lines_of(FILE) == {
        ("top",): 2,
        ("limits",): 7,
        ("limits", "max_requests"): 8,
        ("tiers",): 9,
        ("tiers", "a.b"): 9,
        ("tiers", "a.b", "nested"): 10,
        ("tiers", "a.b", "nested", "ttft_s"): 10,
        ("tiers", "a.b", "nested", "deep"): 10,
        ("tiers", "a.b", "nested", "deep", "er"): 10,
        ("tiers", "a.b", "dotted"): 11,
        ("tiers", "a.b", "dotted", "key"): 11,
        ("tiers", "a.b", "after"): 15,
        ("many",): 16,
        ("many", "x"): 17,
    }


values = st.sampled_from(["1", "'[x]'", '"""\n[a]\nb = 1\n"""', "[\n 1,\n]", "{b = 1}", "true"])
keys = st.sampled_from(["a", "b", '"c.d"', "e.f"])
statements = st.one_of(
    st.tuples(keys, values).map(" = ".join), keys.map("[{}]".format), st.just("# [no] = 1")
)


@given(st.lists(statements, max_size=6))
def test_every_key_of_a_document_has_the_line_that_states_it(said: list[str]) -> None:
    """Whatever stands above it, and however long that is."""
    kept, text = [], ""
    for statement in said:  # those that TOML allows after the ones before
        try:
            tomllib.loads(text + statement)
        except tomllib.TOMLDecodeError:
            continue
        kept.append((text.count("\n") + 1, statement))
        text += statement + "\n"
    lines = lines_of(text)
    starts = {number for number, statement in kept if not statement.startswith("#")}
    assert set(lines.values()) <= starts

    def paths(table: dict[str, object], above: Keys = ()) -> set[Keys]:
        found = set()
        for key, value in table.items():
            found.add((*above, key))
            if isinstance(value, dict):
                found |= paths(value, (*above, key))
        return found

    assert lines.keys() == paths(tomllib.loads(text))


def test_the_nearest_table_is_to_blame_for_what_is_missing() -> None:
    document = parse(FILE, PATH)
    assert str(document.blame(Misstated(("limits", "gone"), "is required"))) == (
        "niyama.toml:7: limits.gone is required"
    )
    assert str(document.blame(Misstated(("gone",), "is required"))) == (
        "niyama.toml: gone is required"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a = 1\nb = [\n1,\n", "niyama.toml:3: Invalid value"),
        (b"a = 1\nb = = 2\n", "niyama.toml:2: Invalid value (column 5)"),
        (b"a = 1\n[t]\na = 1\na = 2\n", "niyama.toml:4: Cannot overwrite a value (column 6)"),
        (b"a = 1\n\n\xff = 2\n", "niyama.toml:3: is not UTF-8: invalid start byte"),
        (b"a = " + b"1" * 5000, "niyama.toml: Exceeds the limit"),
        (b"a = " + b"[" * 100_000, "niyama.toml: nested too deeply"),
        (b"#" * (MOST_BYTES + 1), f"niyama.toml: has more than {MOST_BYTES} bytes"),
    ],
)
def test_what_is_no_toml_is_told_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    PATH.write_bytes(text)
    with pytest.raises(BadFile) as caught:
        parse(read(PATH), PATH)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_looking_for_a_line_ends_though_a_statement_is_all_of_a_large_file() -> None:
    """Which is parsed once for each of its lines: beyond a bound no line is named."""
    text = "a = [\n" + "1,\n" * 3_000 + "]\nb = 1\n"
    assert parse(text, PATH).line_of(("b",)) == 0


def test_a_pipe_is_read_and_not_waited_for_where_nobody_writes_to_it(tmp_path: Path) -> None:
    end, other = os.pipe()
    try:
        os.write(other, b"a = 1")
        os.close(other)
        assert read(Path(f"/dev/fd/{end}")) == "a = 1"
    finally:
        os.close(end)
    left = tmp_path / "left.toml"
    os.mkfifo(left)
    with pytest.raises(BadFile, match=r"left\.toml: is a pipe that nobody writes to"):
        read(left)


def test_a_pipe_whose_writer_does_not_end_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload would hang without a word, and the server's end with it."""
    monkeypatch.setattr(toml_file, "PIPE_S", 0.05)
    pipe = tmp_path / "silent.toml"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    try:
        os.write(writer, b"a = 1")
        with pytest.raises(BadFile, match=r"silent\.toml: is a pipe whose writer did not end"):
            read(pipe)
    finally:
        os.close(writer)
