"""The Azure format as it is downloaded, and rows that are not in it."""

from pathlib import Path

import pytest

from loadgen.workload.traces import BadTrace, Row, load

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
FIRST = "2023-11-16 18:15:46.6805900,4808,10"
SECOND = "2023-11-16 18:15:50.9951690,374,44"
PUBLISHED = Path(__file__).parents[4] / "shared" / "traces"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_line_ends_of_every_system(tmp_path: Path, end: str) -> None:
    path = write(tmp_path, end.join([HEADER, FIRST, SECOND, ""]))
    rows = load(path)
    assert [(row.prompt_len, row.output_len) for row in rows] == [(4808, 10), (374, 44)]


def test_seven_fractional_digits_count(tmp_path: Path) -> None:
    rows = load(write(tmp_path, "\n".join([HEADER, FIRST, SECOND])))
    assert rows[0].at == 0.0
    assert rows[1].at == pytest.approx(4.314579, abs=1e-6)


def test_other_columns_and_orders_are_read_by_name(tmp_path: Path) -> None:
    text = "GeneratedTokens,TIMESTAMP,Model,ContextTokens\n5,2024-05-10 00:00:00+00:00,x,7\n"
    assert load(write(tmp_path, text)) == (Row(0.0, 7, 5),)


def test_a_byte_order_mark_and_blank_lines_are_no_matter(tmp_path: Path) -> None:
    text = f"\ufeff{HEADER}\n{FIRST}\n\n"
    assert len(load(write(tmp_path, text))) == 1


def test_an_empty_output_still_is_a_request(tmp_path: Path) -> None:
    rows = load(write(tmp_path, f"{HEADER}\n2023-11-16 18:15:46.6805900,0,0"))
    assert rows == (Row(0.0, 1, 1),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("a,b\n1,2", "line 1: no column"),
        (HEADER, "no requests"),
        (f"{HEADER}\n{FIRST}\nyesterday,1,2", "line 3: 'yesterday' is not a time stamp"),
        (f"{HEADER}\n{FIRST}\n2023-11-16 18:15:50,many,2", "line 3: 'many' is not a number"),
        (f"{HEADER}\n{FIRST}\n2023-11-16 18:15:50,5,-2", "line 3: '-2' is not a number"),
        (f"{HEADER}\n{FIRST}\n2023-11-16 18:15:50,5", "line 3: too few columns"),
        (f"{HEADER}\n{FIRST}\n2023-13-16 18:15:50,5,5", "line 3: month must be in 1..12"),
        (f"{HEADER}\n{SECOND}\n{FIRST}", "line 3: .* is before the row above"),
        (f'{HEADER}\n2023-11-16 18:15:46,"5,5\n' + f"{SECOND}\n" * 9, "line 2: unexpected end"),
        (f"{HEADER}\n2023-11-16 18:15:46,{'5' * 200_000},5\n", "line 2: field larger than"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadTrace, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_of_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(BadTrace, match="not a text file"):
        load(path)


@pytest.mark.parametrize(
    ("name", "num_rows", "p50"),
    [("azure-2023-conv.csv", 19_366, (1020, 129)), ("azure-2023-code.csv", 8_819, (1469, 13))],
)
def test_the_published_traces_are_read_whole(
    name: str, num_rows: int, p50: tuple[int, int]
) -> None:
    path = PUBLISHED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the project")
    rows = load(path)
    assert len(rows) == num_rows
    middle = num_rows // 2
    medians = tuple(sorted(row[column] for row in rows)[middle] for column in (1, 2))
    assert medians == p50
