"""What crosses the pipe comes back as it was."""

from __future__ import annotations

from dataclasses import fields, replace

from engine.deciding.plan import Accepted, Finished, Relegated, Sampled, Timings, Token
from engine.deciding.prefix_journal import CacheBatch, Cached, Dropped
from engine.deciding.questions import Explain
from engine.deciding.request import BEST_EFFORT, Importance, Request, Sampling, Share, Targets
from engine.deciding.sequence import FinishReason
from engine.messages import Ask, Cancel, Reply, Report, Submit, Watch, token_of
from engine.processes.frames import Unpacker, pack

REQUEST = Request("a", (1, 2, 3), Sampling(seed=5), arrived_at=1.5)
FINISHED = Finished(
    "a", FinishReason.STOP, 3, 0, 2, BEST_EFFORT, False, 0, Timings(*([None] * 5), *([None] * 3))
)


def test_commands_come_back_equal() -> None:
    commands = [
        Submit(REQUEST),
        Cancel("a", FinishReason.TIMEOUT),
        Ask(7, Explain("a")),
        Watch(True),
    ]
    assert list(Unpacker().feed(pack(commands))) == [commands]


def test_a_request_comes_back_whole() -> None:
    """No field of it has its default, so none was forgotten."""
    sampling = Sampling(0.5, 7, 0.9, 0.1, 1.1, 0.2, 0.3, 5, 99, 2, frozenset({4}), 3)
    targets = Targets(ttlt_s=9.0)
    names = ("tier", "application", "tenant", "target_source")
    share = Share("acme", 2.0)
    request = Request(
        *("a", [1, 2], sampling, 1.5, targets, Importance.HIGH, *names, share, 2, 3.5, "ff", "why"),
        *(True, 1),
    )
    for record in (request, sampling):
        for each in fields(record):
            assert getattr(record, each.name) != each.default
    paced = Targets(0.5, 0.05, None, 1.5)
    ((again,),) = Unpacker().feed(pack([Submit(replace(request, targets=paced))]))
    assert again.request.targets == paced
    ((back,),) = Unpacker().feed(pack([Submit(request)]))
    assert back == Submit(request)
    assert type(back.request.importance) is Importance


def test_a_report_sorts_events_so_that_each_request_ends_last() -> None:
    report = Report()
    top = ((9, -0.5), (8, -1.0))
    relegated = Relegated("a", "late", 3.0)
    report.add(
        [
            Accepted("a", True, 0.1, 0.2),
            Sampled("a", Token(4)),
            relegated,
            Sampled("a", Token(9, -0.5, top)),
            FINISHED,
        ]
    )
    report.replies.append(Reply(1, {"x": 2}))
    page = Cached(1, "acme", b"h" * 16, None, 0, 5, b"\0" * 16)
    report.cache = CacheBatch(9, (page, Dropped("acme", b"h" * 16, 0, 5)))
    (back,) = Unpacker().feed(pack(report))
    assert back == report
    assert back.news == [Accepted("a", True, 0.1, 0.2), relegated]
    assert [token_of(s) for s in back.sampled] == [Token(4), Token(9, -0.5, top)]
    assert back.finished == [FINISHED]


def test_a_report_without_anything_to_tell_is_false() -> None:
    assert not Report()
    assert Report(replies=[Reply(1, None)])
    assert Report(cache=CacheBatch(1, ()))
