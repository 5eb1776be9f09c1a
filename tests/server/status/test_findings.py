"""The first lines of the status page: what is wrong, by what metrics say."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from server.status.document import document
from server.status.findings import Finding, Level, Parts, Phase, findings
from server.status.history import History, Sample, Window
from tests.server.status.night import window

SERVING = Parts(Phase.SERVING)
RESULTS = ("on_time", "late", "expired", "refused", "cancelled", "failed", "best_effort")


def after(*samples: Sample) -> Window:
    """A minute after a server began, of which this is known now."""
    history = History()
    history.add(0.0, [each._replace(value=0.0) for each in samples if "_total" in each.name])
    history.add(60.0, samples)
    return history.window()


def calls(tier: str, **results: float) -> list[Sample]:
    labels = {"tier": tier, "tenant": "other", "importance": "normal"}
    return [
        Sample("niyama_requests_total", labels | {"result": result}, n)
        for result, n in results.items()
    ]


def lines(found: list[Finding]) -> list[str]:
    return [each.line for each in found]


def test_a_server_that_nobody_calls_is_well() -> None:
    (found,) = findings(SERVING, after())
    assert (found.level, found.line) == (Level.OK, "all on time")


def test_a_calm_night_is_one_line_and_a_bad_one_tells_each_cause() -> None:
    assert lines(findings(SERVING, window(is_bad=False))) == ["all on time"]
    found = findings(SERVING, window(is_bad=True))
    assert lines(found) == [
        "machine slow: 43 % of its calibrated speed",
        "overloaded: 1.4 s of work arrive per second, 232 requests relegated, 24 refused in the"
        " last minute",
    ]
    assert "Tenant acme sent 70 % of the work" in found[1].detail
    assert "interactive 50 %" in found[1].detail


def test_a_burst_is_no_overload() -> None:
    relegated = Sample("niyama_sequences", {"state": "relegated", "tier": "chat"}, 1.0)
    (found,) = findings(SERVING, after(relegated, Sample("niyama_demand_ratio", {}, 0.6)))
    assert (found.level, found.line) == (Level.WARN, "behind, as in a burst: 1 request relegated")
    found, *_ = findings(SERVING, after(relegated, Sample("niyama_demand_ratio", {}, 1.6)))
    assert found.line == "overloaded: 1.6 s of work arrive per second, 1 request relegated"


def test_calls_that_are_late_though_nothing_is_wrong_are_told() -> None:
    some = after(*calls("chat", on_time=90, late=5), *calls("batch", on_time=5, cancelled=50))
    (found,) = findings(SERVING, some)
    assert (found.level, found.line) == (
        Level.WARN,
        "late: 5 of 100 calls in the last five minutes",
    )
    assert "chat 5 %" in found.detail
    assert "batch" not in found.detail
    (found,) = findings(SERVING, after(*calls("chat", on_time=1, expired=1)))
    assert (found.level, found.line) == (Level.BAD, "late: 1 of 2 calls in the last five minutes")


def test_an_overload_that_is_over_is_told_as_such() -> None:
    history = History()
    history.add(0.0, calls("chat", on_time=0, late=0))
    for at, late, demand in ((60.0, 0, 0.5), (120.0, 40, 1.9), (200.0, 40, 0.9)):
        told = calls("chat", on_time=at, late=late)
        history.add(at, [*told, Sample("niyama_demand_ratio", {}, demand)])
    (found,) = findings(SERVING, history.window())
    line = "late: 40 of 240 calls in the last five minutes, none in the last"
    assert (found.level, found.line) == (Level.WARN, line)
    assert found.detail.startswith("Up to 1.9 s of work arrived per second.")


def test_one_late_call_of_a_thousand_is_no_alarm() -> None:
    (found,) = findings(SERVING, after(*calls("chat", on_time=999, late=1)))
    assert found.line == "all on time"
    assert "999 of 1000 calls" in found.detail


def test_failed_calls_are_told_by_themselves() -> None:
    found = findings(SERVING, after(*calls("unknown", failed=3)))
    assert lines(found) == ["failing: 3 calls in the last five minutes"]


def test_tiers_that_cannot_be_kept_are_told_and_why() -> None:
    why = {"tiers.chat": "TBT of 0.1 ms cannot be kept: here it takes 3 ms even alone"}
    (found,) = findings(SERVING._replace(too_tight=why), after())
    assert found.level is Level.WARN
    assert found.line == "tiers.chat cannot be kept on this machine"
    assert why["tiers.chat"] in found.detail


def test_a_lost_front_end_is_told_and_what_drains_is_not_overloaded() -> None:
    found = findings(Parts(Phase.SERVING, front_ends=4, serving=3), after())
    assert lines(found) == ["1 of 4 front ends do not serve"]
    refused = Sample("niyama_refused_total", {"reason": "draining", "tier": "unknown"}, 5.0)
    found = findings(Parts(Phase.DRAINING, serving=0), after(refused))
    assert lines(found) == ["draining: no new calls are taken"]


@given(
    phase=st.sampled_from(Phase),
    serving=st.integers(0, 3),
    gauges=st.dictionaries(
        st.sampled_from(["niyama_demand_ratio", "niyama_speed_ratio", "niyama_kv_usage_ratio"]),
        st.floats(0.0, 100.0),
    ),
    counts=st.dictionaries(st.sampled_from(RESULTS), st.integers(0, 10_000)),
)
def test_there_is_always_a_first_line_and_the_worst_comes_first(
    phase: Phase, serving: int, gauges: dict[str, float], counts: dict[str, int]
) -> None:
    parts = Parts(phase, "", 3, serving)
    now = after(*(Sample(name, {}, value) for name, value in gauges.items()), *calls("t", **counts))
    found = findings(parts, now)
    assert found[0].line
    levels = [list(Level).index(each.level) for each in found]
    assert levels == sorted(levels, reverse=True)
    is_down = phase in (Phase.LOST, Phase.SILENT, Phase.STARTING) or (
        phase is Phase.SERVING and not serving
    )
    assert (found[0].level is Level.DOWN) == is_down
    json.dumps(document(now, parts, 0.0, 0.0), allow_nan=False)


def test_a_configuration_that_was_not_read_is_told() -> None:
    """Beside how calls fare, which it does not hide."""
    reload = Sample("niyama_config_last_reload_successful", {}, 0)
    found = findings(SERVING, after(reload, *calls("chat", on_time=9, late=9)))
    assert [each.level for each in found] == [Level.BAD, Level.WARN]
    assert found[1].line == "configuration not read: what was there before holds"
    assert lines(findings(SERVING, after(reload._replace(value=1)))) == ["all on time"]
