"""A decision log, read: what was written comes back, what was cut short is left out, and what is
none is told by file and line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import past
from engine.deciding.entries import Unserved
from engine.deciding.latency import A100_LLAMA3_8B
from engine.deciding.outcome import Fate
from engine.deciding.record import Record
from engine.deciding.request import Importance, Request, Sampling, Share, Targets, key_of
from engine.deciding.scheduler import Scheduler
from engine.decision_header import Service
from engine.decision_lines import BadLog, Logged, computed
from engine.decision_log import MOST_LINE_BYTES, DecisionLogReader, files_of
from engine.driving.decision_file import DecisionFile
from engine.tiers import BUILT_IN, Tier
from tests.engine.deciding.parts import Driver, deadline, interactive, make_request, make_scheduler

ENGINE = {
    "version": "1",
    "model": "small",
    "policy": "niyama",
    "kv_tokens": 1000,
    "page_size": 10,
    "context_len": 100,
    "max_batch_size": 8,
    "profile": A100_LLAMA3_8B.to_dict(),
    **Service(BUILT_IN, "interactive", {"acme": 2.0}, 100).described(),
}


def written(path: Path, most_bytes: int = 1 << 20) -> DecisionFile:
    return DecisionFile(path, 1e9, ENGINE, most_bytes, 1000)


def noted(decisions: DecisionFile) -> Scheduler:
    base = make_scheduler()
    return Scheduler(base.config, base.latency, decisions.write)


def served(decisions: DecisionFile) -> None:
    """Two requests of two tenants, one that leaves, and one that is refused elsewhere."""
    driver = Driver(noted(decisions))
    driver.submit(make_request("a", 100, 3, targets=interactive(10.0, 1.0), tier="chat"))
    acme = key_of("acme", "a")
    driver.submit(
        make_request(acme, 50, 2, targets=deadline(1e-3), tenant="acme", share=Share("acme", 2.0))
    )
    driver.submit(make_request("gone", 10, 20))
    driver.step()
    driver.cancel("gone")
    driver.drain()
    refused = make_request("full", 7, 9, targets=deadline(5.0), timeout_s=6.0)
    driver.scheduler.unserved(Unserved(refused, Fate.REFUSED, "queue_full", "it is full", 2.0))
    flood = make_request("", 8, 10, at=1.0)
    driver.scheduler.unserved(Unserved(flood, Fate.REFUSED, "queue_full", "", 2.0, 50))
    decisions.flush()


def test_a_log_says_what_was_asked_for_and_what_came_of_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    served(written(path))
    reader = DecisionLogReader([path])
    by_key = {each.key: each for each in reader.requests(keeps_entries=True)}
    mine, acme = by_key["", "a"], by_key["acme", "a"]
    assert (mine.prompt_tokens, mine.max_tokens, mine.output_tokens) == (100, 3, 3)
    assert (mine.tier, mine.targets, mine.fate) == ("chat", interactive(10.0, 1.0), Fate.ON_TIME)
    assert (mine.unix_s, mine.promised, mine.was_seen) == (1e9, True, True)
    assert mine.ttft_s is not None
    assert mine.ttlt_s is not None
    assert 0 < mine.ttft_s < mine.ttlt_s
    kinds = [entry.kind for entry in mine.entries]
    assert kinds[:3] == ["arrived", "admitted", "chunk"]
    assert kinds[-1] == "finished"
    assert [str(e.place) for e in mine.entries][:2] == [f"{path}, line 2", f"{path}, line 3"]
    assert (acme.share, acme.fate, acme.relegated) == ("acme", Fate.LATE, True)
    assert by_key["", "gone"].fate is Fate.CANCELLED
    full, flood = by_key["", "full"], by_key["", ""]
    assert (full.fate, full.reason, full.timeout_s) == (Fate.REFUSED, "queue_full", 6.0)
    assert not full.was_seen
    assert (flood.count, flood.unix_s, flood.until_unix_s) == (50, 1e9 + 1, 1e9 + 2)
    assert flood.prompt_tokens == 8
    header = reader.header
    assert header is not None
    assert header.profile == A100_LLAMA3_8B
    assert header.service == Service(BUILT_IN, "interactive", {"acme": 2.0}, 100)
    assert (header.kv_tokens, header.max_batch_size) == (1000, 8)


class WrittenAtOnce(DecisionFile):
    def write(self, entry: Mapping[str, Any]) -> None:
        super().write(entry)
        self.flush()


@pytest.mark.parametrize("most_bytes", [2500, 3000])
def test_requests_go_on_from_one_file_to_the_next(tmp_path: Path, most_bytes: int) -> None:
    served(written(tmp_path / "one"))
    served(WrittenAtOnce(tmp_path / "several", 1e9, ENGINE, most_bytes, 1000))
    assert len(files_of(tmp_path / "several")) > 2

    def read(path: Path) -> list[Logged]:
        requests = list(DecisionLogReader(files_of(path)).requests())
        for each in requests:
            each.place = each.place._replace(path=Path(), line=0)
        return requests

    assert read(tmp_path / "several") == read(tmp_path / "one")


def test_a_log_that_was_cut_anywhere_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path, cut = tmp_path / "log", tmp_path / "cut"
    served(written(path))
    whole = path.read_bytes()
    ends = {each.key for each in DecisionLogReader([path]).requests()}
    header_end = whole.index(b"\n") + 1
    for size in [*range(0, header_end, 97), *range(header_end, len(whole))]:
        cut.write_bytes(whole[:size])
        reader = DecisionLogReader([cut])
        assert {each.key for each in reader.requests()} <= ends
        is_torn = not whole[:size].endswith((b"\n", b"}")) and size > 0
        assert reader.num_torn == is_torn
    cut.write_bytes(whole[: header_end + 20] + b"\n" + whole[header_end:])  # and the log went on
    reader = DecisionLogReader([cut])
    assert {each.key for each in reader.requests()} == ends
    assert reader.num_torn == 1


def test_an_engine_that_was_lost_leaves_requests_without_an_end_or_begun_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    for attempt in (1, 2):
        decisions = written(path)
        driver = Driver(noted(decisions))
        driver.submit(make_request("again", 100, 3, attempt=attempt))
        if attempt == 1:
            driver.submit(make_request("lost", 100, 3))
            driver.step()
        else:
            driver.drain()
        decisions.flush()
    again, lost = DecisionLogReader([path]).requests()
    assert (again.request_id, again.fate, again.attempt) == ("again", Fate.BEST_EFFORT, 2)
    assert again.place.line == 2
    assert (lost.request_id, lost.fate) == ("lost", None)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
POSITIVE = st.floats(1e-3, 1e6)
TARGETS = st.one_of(
    st.just(Targets()),
    st.builds(Targets, ttlt_s=POSITIVE),
    st.builds(
        Targets,
        ttft_s=POSITIVE,
        tbt_s=POSITIVE,
        max_gap=st.one_of(st.none(), st.just(math.inf), st.floats(1, 100)),
    ),
)
REQUESTS = st.builds(
    Request,
    id=st.builds(key_of, NAMES, NAMES.filter(bool)),
    prompt=st.integers(1, 10**6).map(range),
    sampling=st.integers(1, 10**6).map(lambda n: Sampling(max_tokens=n)),
    arrived_at=st.floats(0, 1e7),
    targets=TARGETS,
    importance=st.sampled_from(Importance),
    tier=NAMES,
    application=NAMES,
    share=st.builds(Share, NAMES),
    timeout_s=st.one_of(st.none(), POSITIVE),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(REQUESTS, max_size=5))
def test_whatever_is_asked_for_and_however_it_is_called_comes_back(
    tmp_path: Path, requests: list[Request]
) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    decisions = written(path)
    record = Record(0, decisions.write)
    for request in requests:
        record.unserved(Unserved(request, Fate.FAILED, "unavailable", "", request.arrived_at))
    decisions.flush()
    read = list(DecisionLogReader([path]).requests())
    for request, logged in zip(requests, read, strict=True):
        assert key_of(logged.tenant, logged.request_id) == request.id
        assert logged.unix_s == pytest.approx(1e9 + request.arrived_at, abs=2e-6)
        said = (logged.tier, logged.application, logged.importance, logged.share, logged.targets)
        asked = (request.tier, request.application, request.importance, request.share.name)
        assert said == (*asked, request.targets)
        lengths = (logged.prompt_tokens, logged.max_tokens, logged.timeout_s)
        assert lengths == (len(request.prompt), request.sampling.max_tokens, request.timeout_s)
        assert logged.fate is Fate.FAILED


def test_an_empty_log_has_no_requests(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    assert list(DecisionLogReader([tmp_path / "log"]).requests()) == []


HEADER = json.dumps({"kind": "engine", "at": 0.0, "unix_s": 0.0, **ENGINE})
ARRIVED = {
    **{"kind": "arrived", "request_id": "a", "tenant": "", "at": 1.0, "unix_s": 1.0},
    **{"detail": "", "tier": "", "importance": "low", "prompt_tokens": 5, "max_tokens": 5},
}


def changed_header(**changed: object) -> str:
    return json.dumps(json.loads(HEADER) | changed)


def line(**changed: object) -> str:
    return json.dumps(ARRIVED | changed)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["TIMESTAMP,ContextTokens"], "line 1: not JSON"),
        (['{"a": 1}'], "line 1: not a line of a decision log"),
        (["[1, 2]"], "line 1: not a line of a decision log"),
        ([line()], 'line 1: no line of the kind "engine" is before it'),
        ([HEADER, line(), "", "\x00\x01"], "line 4: not JSON"),
        ([HEADER, line(prompt_tokens=-1)], "line 2: prompt_tokens is to be a count"),
        ([HEADER, line(prompt_tokens=True)], "line 2: prompt_tokens is to be a count"),
        ([HEADER, line(prompt_tokens=10**400)], "line 2: prompt_tokens is to be a count"),
        ([HEADER, line(at="soon")], "line 2: at is to be a number"),
        ([HEADER, line(unix_s=1e300)], "line 2: unix_s is to be a number"),
        ([HEADER, line(unix_s=-1.0)], "line 2: unix_s is to be Unix time"),
        ([HEADER, line(unix_s=4e11)], "line 2: unix_s is to be Unix time"),
        ([HEADER, line(kind="refused", count=2, since=-2.0)], "line 2: since is to be after 1970"),
        ([HEADER, line(at=math.nan)], "line 2: not JSON: NaN is no number of JSON"),
        ([HEADER, line(importance="vast")], "line 2: importance is to be one of low, normal, high"),
        ([HEADER, line(tenant=5)], "line 2: tenant is to be a text"),
        ([HEADER, line(ttft_s=1.0)], "line 2: tbt_s is required"),
        ([HEADER, line(detail=None)], "line 2: detail is to be a text"),
        ([HEADER, line(), line(kind="finished", result="odd", reason="")], "line 3: 'odd'"),
        ([HEADER, '{"kind": ' + 100_000 * "["], "line 2: not JSON"),
        ([HEADER, line(tier=MOST_LINE_BYTES * "x")], "line 2: longer than"),
        ([HEADER.replace('"segments"', '"parts"')], "line 1: what it says of the engine"),
        ([HEADER.replace('"kv_tokens": 1000', '"kv_tokens": 0')], "line 1: kv_tokens"),
        ([changed_header(kv_tokens=2**53, page_size=1)], "line 1: kv_tokens is to be at most"),
        (
            [changed_header(tenants={"acme": "nan"})],
            "line 1: what it says of the engine: a tenant's",
        ),
        ([changed_header(tenants={"acme": -1})], "line 1: what it says of the engine: a tenant's"),
    ],
)
def test_what_is_no_decision_log_is_told_by_file_and_line(
    tmp_path: Path, lines: Iterable[str], said: str
) -> None:
    path = tmp_path / "log"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadLog) as error:
        list(DecisionLogReader(files_of(path)).requests())
    assert f"{path}, {said}" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_an_escape_of_what_is_no_character_reads_as_a_question_mark(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("\n".join([HEADER, line(tenant="\ud800\u00e9", request_id="\udfff")]) + "\n")
    (request,) = DecisionLogReader(files_of(path)).requests()
    assert (request.tenant, request.request_id) == ("?\u00e9", "?")


def test_a_tier_without_a_bound_on_gaps_comes_back(tmp_path: Path) -> None:
    tiers = (Tier("chat", Targets(1.0, 0.1, max_gap=math.inf), Importance.HIGH),)
    described = ENGINE | Service(tiers, "chat").described()
    DecisionFile(tmp_path / "log", 0.0, described).describe({"model": "other"}, 0.0)
    decisions = DecisionFile(tmp_path / "log", 0.0, described)
    decisions.describe({}, 0.0)
    decisions.flush()
    reader = DecisionLogReader([tmp_path / "log"])
    assert list(reader.entries()) == []
    assert reader.header is not None
    assert reader.header.service == Service(tiers, "chat")


def test_every_line_comes_in_order_with_its_request_and_what_was_computed(tmp_path: Path) -> None:
    """A reader of lines and one of requests see the same requests; chunks add up to the prompt."""
    path = tmp_path / "log"
    served(written(path))
    steps = list(DecisionLogReader([path]).steps())
    entries = [step.entry for step in steps if step.entry is not None]
    assert [entry.place.line for entry in entries] == list(range(2, len(entries) + 2))
    over = [step.request for step in steps if step.is_over]
    assert over == list(DecisionLogReader([path]).requests())
    chunks = [computed(e) for e in entries if e.kind == "chunk" and e.key == ("", "a")]
    assert [chunk.start for chunk in chunks] == [0, *(c.start + c.length for c in chunks[:-1])]
    assert chunks[-1].start + chunks[-1].length == 100 == chunks[-1].known
    assert all(chunk.length <= chunk.batch_tokens for chunk in chunks)
    assert all(0 < chunk.took_s < entries[-1].unix_s - 1e9 for chunk in chunks)


@pytest.mark.parametrize("changed", [{"tokens": 0}, {"start": "1"}, {"batch_tokens": 1}])
def test_a_chunk_that_cannot_be_is_told_by_its_line(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    path = tmp_path / "log"
    served(written(path))
    chunk = next(e for e in DecisionLogReader([path]).entries() if e.kind == "chunk")
    with pytest.raises(BadLog, match=rf"{path}, line {chunk.place.line}: "):
        computed(replace(chunk, values={**chunk.values, **changed}))


def test_who_left_early_with_an_id_in_flight_ends_nobody_else_s_request(tmp_path: Path) -> None:
    path = tmp_path / "log"
    decisions = written(path)
    driver = Driver(noted(decisions))
    driver.submit(make_request("same", 100, 3, targets=interactive(10.0, 1.0), tier="chat"))
    driver.step()
    again = make_request("same", 7, 9)
    driver.scheduler.unserved(Unserved(again, Fate.CANCELLED, "cancelled", "", driver.now))
    driver.drain()
    decisions.flush()
    reader = DecisionLogReader([path])
    left, served_ = reader.requests(keeps_entries=True)
    assert (left.fate, left.count, left.prompt_tokens) == (Fate.CANCELLED, 1, 7)
    assert (served_.fate, served_.prompt_tokens) == (Fate.ON_TIME, 100)
    assert served_.entries[-1].kind == "finished"
    assert reader.num_unknown == 0
    assert past.find(path, "same").end is not None
