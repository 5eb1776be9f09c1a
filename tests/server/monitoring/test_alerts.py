"""Each alert, by promtool's own clock: it fires when it should, with these labels and this text, is
silent when it should be, and ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from server.settings import parse
from tests.server.monitoring.prometheus import FOLDER, README, RULES, alerts, promtool

INSTANCE = {"instance": "a:9464", "job": "niyama"}
FILES = ("alerts.yml", "grafana-dashboard.json", "prometheus.yml", "recording.yml")


@dataclass(frozen=True)
class Firing:
    """An alert that fires: its labels but for its severity, and its value as its summary has it."""

    value: str = ""
    severity: str = "ticket"
    labels: Mapping[str, str] = field(default_factory=lambda: INSTANCE)


@dataclass(frozen=True)
class Scenario:
    """Series of the one instance, each a metric and its values as promtool writes them, and who
    fires at which minute.
    """

    alert: str
    series: Mapping[str, str]
    expected: Mapping[int, tuple[Firing, ...]]
    interval: int = 1  # minutes between two values, and between two looks at the rules


def requests(result: str, tier: str = "chat", importance: str = "normal") -> str:
    return (
        f'niyama_requests_total{{tier="{tier}", importance="{importance}", tenant="other",'
        f' result="{result}"}}'
    )


def of_tier(tier: str, value: str, severity: str) -> Firing:
    return Firing(value, severity, {"job": "niyama", "tier": tier})


def promises(result: str, tier: str = "chat") -> str:
    return f'niyama_forecasts_total{{tier="{tier}", promised="on_time", result="{result}"}}'


CHAT = {"job": "niyama", "tier": "chat"}
DAY = 24 * 60
SCENARIOS = (
    # A fifth of chat's requests miss for two hours, in four ways. The tier with targets of its own
    # wakes nobody; cancelled and best effort, low importance, nine calls, and a fault that ended
    # earlier do not count.
    Scenario(
        "NiyamaObjectiveBurnsFast",
        {
            requests("on_time"): "0+80x300",
            requests("late"): "0+5x120 600x180",
            requests("expired"): "0+5x120 600x180",
            requests("refused"): "0+5x120 600x180",
            requests("failed"): "0+5x120 600x180",
            requests("on_time", "explicit"): "0+80x300",
            requests("late", "explicit"): "0+20x120 2400x180",
            requests("on_time", "batch", "low"): "0+1x300",
            requests("refused", "batch", "low"): "0+9x300",
            requests("on_time", "report"): "0+9x300",
            requests("cancelled", "report"): "0+9x300",
            requests("best_effort", "report"): "0+9x300",
            requests("late", "report"): "0+0x300",
            requests("late", "rare"): "0+1x9 9x300",
            requests("failed", "unknown", "unknown"): "0+9x300",
        },
        {
            0: (),
            1: (),
            9: (of_tier("chat", "20%", "page"), of_tier("explicit", "20%", "ticket")),
            120: (of_tier("chat", "20%", "page"), of_tier("explicit", "20%", "ticket")),
            155: (),
        },
    ),
    # After six good hours a fifth of chat's requests miss for an hour: the last hour tells, not all
    # six. Of report's 8 % have missed all the time: the six hours tell, not the last one.
    Scenario(
        "NiyamaObjectiveBurnsFast",
        {
            requests("on_time"): "0+160x180 28800+128x60",
            requests("late"): "0x180 0+32x60",
            requests("on_time", "report"): "0+184x240",
            requests("late", "report"): "0+16x240",
        },
        {
            360: (of_tier("report", "8%", "page"),),
            422: (of_tier("chat", "20%", "page"), of_tier("report", "8%", "page")),
        },
        interval=2,
    ),
    # Of chat's requests 5 % miss: not enough for the fast one.
    Scenario(
        "NiyamaObjectiveBurnsFast",
        {requests("on_time"): "0+95x300", requests("late"): "0+5x300"},
        {60: (), 300: ()},
    ),
    Scenario(
        "NiyamaObjectiveBurnsSlowly",
        {
            requests("on_time"): "0+960x200",
            requests("late"): "0+40x72 2880x100",
            requests("on_time", "batch"): "0+9950x200",
            requests("late", "batch"): "0+50x200",
            requests("late", "rare"): "0+1x9 9x200",
            requests("on_time", "report"): "0+980x200",
            requests("late", "report"): "0+20x72 1440x100",
        },
        {
            10: (),
            60: (of_tier("chat", "4%", "ticket"), of_tier("report", "2%", "ticket")),
            720: (of_tier("chat", "4%", "ticket"), of_tier("report", "2%", "ticket")),
            1100: (),
        },
        interval=10,
    ),
    Scenario(
        "NiyamaPromisesBroken",
        {
            promises("on_time"): "0+80x200",
            promises("late"): "0x60 0+10x60 600x80",
            promises("expired"): "0x60 0+10x60 600x80",
            promises("cancelled"): "0+50x200",
            promises("on_time", "report"): "0+95x200",
            promises("late", "report"): "0+5x200",
            promises("late", "rare"): "0+1x9 9x200",
        },
        {25: (), 60: (), 75: (), 115: (Firing("20%", labels=CHAT),), 160: ()},
    ),
    Scenario(
        "NiyamaOverloaded",
        {"niyama_demand_ratio": "0.8x20 1.5x30 0.5x30"},
        {20: (), 26: (), 45: (Firing("1.5"),), 70: ()},
    ),
    Scenario(
        "NiyamaNoHeadroom",
        {
            'niyama_headroom_seconds{tier="chat"}': "2x20 0x30 1x30",
            'niyama_headroom_seconds{tier="batch"}': "900x20 3x60",
        },
        {20: (), 33: (), 45: (Firing(labels={**INSTANCE, "tier": "chat"}),), 52: ()},
    ),
    Scenario(
        "NiyamaQueueNearLimit",
        {
            'niyama_queue_requests{importance="low"}': "10x10 50x10 10x40",
            'niyama_queue_requests{importance="normal"}': "10x10 40x10 10x40",
            "niyama_limit_requests": "100x60",
            'niyama_queue_tokens{importance="low"}': "1x30 95x10 1x20",
            "niyama_limit_queued_tokens": "100x60",
        },
        {10: (), 12: (), 15: (Firing("90%"),), 25: (), 38: (Firing("95%"),), 45: ()},
    ),
    Scenario(
        "NiyamaRefused",
        {
            requests("on_time"): "0+80x80",
            requests("refused"): "0+0x20 0+20x20 400x40",
            requests("refused", importance="low"): "0+80x80",
        },
        {20: (), 24: (), 38: (Firing("20%", labels={"job": "niyama"}),), 55: ()},
    ),
    # One in a hundred, and nine in all.
    Scenario(
        "NiyamaRefused",
        {requests("on_time"): "0+99x60", requests("refused"): "0+1x60"},
        {30: (), 60: ()},
    ),
    Scenario("NiyamaRefused", {requests("refused"): "0+1x9 9x20"}, {8: (), 9: (), 20: ()}),
    Scenario(
        "NiyamaMemoryShort",
        {
            "niyama_kv_usage_ratio": "0.98x60 0.5x20",
            "niyama_preemptions_total": "0x20 0+5x40 200x20",
        },
        {20: (), 26: (), 40: (Firing("98%"),), 75: ()},
    ),
    Scenario(
        "NiyamaMemoryShort",
        {"niyama_kv_usage_ratio": "0.9x60", "niyama_preemptions_total": "0+5x60"},
        {40: (), 60: ()},
    ),
    Scenario(
        "NiyamaMachineSlow",
        {
            "niyama_speed_ratio": "0.95x20 0.5x30 1x30 0.5x30",
            "niyama_engine_busy_seconds_total": "0+30x80 2400x40",
        },
        {20: (), 29: (), 45: (Firing("50%"),), 70: (), 105: ()},
    ),
    Scenario(
        "NiyamaEngineLost",
        {"niyama_engine_losses_total": "0x20 1x60"},
        {20: (), 25: (Firing(),), 40: ()},
    ),
    Scenario(
        "NiyamaEngineKeepsDying",
        {"niyama_engine_losses_total": "0x20 1x5 2x5 3x80"},
        {20: (), 31: (), 36: (Firing("3", "page"),), 90: ()},
    ),
    Scenario(
        "NiyamaEngineAway",
        {"niyama_engine_up": "1x20 0x10 1x10"},
        {20: (), 22: (), 28: (Firing(severity="page"),), 35: ()},
    ),
    Scenario(
        "NiyamaFrontEndLost",
        {"niyama_frontend_losses_total": "0x20 1x60"},
        {20: (), 25: (Firing(),), 40: ()},
    ),
    Scenario(
        "NiyamaTargetDown",
        {"up": "1x20 0x10 1x10"},
        {20: (), 21: (), 25: (Firing(severity="page"),), 35: ()},
    ),
    Scenario(
        "NiyamaRestarts",
        {
            'process_start_time_seconds{process="server"}': "100x20 200x5 300x60",
            'process_start_time_seconds{process="engine"}': "1+60x80",
        },
        {20: (), 25: (), 30: (Firing("2", labels={**INSTANCE, "process": "server"}),), 70: ()},
    ),
    Scenario(
        "NiyamaNoTargets",
        {"up": "1x20 _x20 1x10"},
        {20: (), 28: (), 39: (Firing(severity="page", labels={"job": "niyama"}),), 45: ()},
    ),
    Scenario(
        "NiyamaNotFinite",
        {"niyama_sequences_failed_total": "0x20 2x60"},
        {20: (), 25: (Firing("2"),), 40: ()},
    ),
    Scenario(
        "NiyamaLogLinesDropped",
        {"niyama_log_lines_dropped_total": "0x20 70x60"},
        {20: (), 25: (Firing("70"),), 40: ()},
    ),
    Scenario(
        "NiyamaConfigurationNotRead",
        {"niyama_config_last_reload_successful": "1x20 0x20 1x20"},
        {20: (), 25: (), 30: (Firing(),), 45: ()},
    ),
    Scenario(
        "NiyamaCompiledWhileServing",
        {"niyama_engine_compilations_total": "0x20 1x90"},
        {20: (), 25: (Firing(),), 90: ()},
    ),
)


def test_help_says_where_the_files_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    named = re.search(r"Grafana are in\s+(\S+)\.\n", capsys.readouterr().out)
    assert named
    assert Path(named[1]) == FOLDER
    assert {path.name for path in FOLDER.iterdir()} == set(FILES)


def test_prometheus_takes_the_example() -> None:
    promtool("check", "config", str(FOLDER / "prometheus.yml"))


def read(path: Path) -> dict:
    return dict(yaml.safe_load(path.read_text()))


def test_rules_are_as_prometheus_wants_them() -> None:
    promtool("check", "rules", *map(str, RULES))


def test_each_alert_says_what_to_do() -> None:
    anchors = set(re.findall(r'<a id="([^"]+)"></a>`Niyama', README.read_text()))
    rows = {a: row for row in README.read_text().splitlines() for a in anchors if f'"{a}"' in row}
    linked = set()
    for name, rule in alerts().items():
        texts = rule["annotations"]
        assert texts.keys() == {"summary", "description", "runbook_url"}, name
        assert "Look first" in texts["description"] or "Report it" in texts["description"], name
        page, _, anchor = texts["runbook_url"].partition("#")
        assert page == "server/README.md"
        assert f"`{name}`" in rows[anchor], f"{name} is not in the row of its runbook"
        linked.add(anchor)
    assert linked == anchors, "a row that no alert links to"


def test_what_counts_as_missed_is_stated_once() -> None:
    """The same results, importance and tiers in every window, of both files."""
    text = "".join(rule.read_text() for rule in RULES)
    blank = re.sub(r"\s+", " ", text)
    missed = set(re.findall(r"niyama_requests_total{([^}]*failed[^}]*)}", blank))
    assert missed == {
        ' result=~"late|expired|refused|failed", importance!="low", tier!="unknown"',
        ' result=~"on_time|late|expired|refused|failed", importance!="low", tier!="unknown"',
    }


def test_a_tier_may_have_an_objective_of_its_own(tmp_path: Path) -> None:
    """By the line that the file holds as a comment."""
    rules = RULES[0].read_text()
    line = '# label_replace(vector(0.999), "tier", "chat", "", "")'
    assert line in rules
    own = tmp_path / "recording.yml"
    own.write_text(rules.replace(line, line[2:]))
    expected = [
        {"labels": f'tier:niyama_objective:ratio{{tier="{tier}"}}', "value": value}
        for tier, value in (("chat", 0.999), ("report", 0.99))
    ]
    group = {
        "interval": "1m",
        "input_series": [
            {"series": requests("on_time", tier), "values": "1x5"} for tier in ("chat", "report")
        ],
        "promql_expr_test": [
            {"expr": "tier:niyama_objective:ratio", "eval_time": "5m", "exp_samples": expected}
        ],
    }
    path = tmp_path / "objective_test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(own)], "tests": [group]}))
    promtool("test", "rules", str(path))


def test_each_alert_fires_and_ends(tmp_path: Path) -> None:
    assert {scenario.alert for scenario in SCENARIOS} == alerts().keys()
    paths = []
    for interval in sorted({scenario.interval for scenario in SCENARIOS}):
        paths.append(tmp_path / f"alerts_test_{interval}.yml")
        content = {
            "rule_files": [str(rule) for rule in RULES],
            "evaluation_interval": f"{interval}m",
            # What is recorded is known for five minutes, which may end before the next look.
            "group_eval_order": [g["name"] for path in RULES for g in read(path)["groups"]],
            "tests": [_group(scenario) for scenario in SCENARIOS if scenario.interval == interval],
        }
        paths[-1].write_text(yaml.safe_dump(content))
    promtool("test", "rules", *map(str, paths))


def _group(scenario: Scenario) -> dict:
    """The scenario as promtool has it."""
    series = []
    for name, values in scenario.series.items():
        metric, _, labels = name.partition("{")
        own = [f'{key}="{value}"' for key, value in INSTANCE.items()]
        labels = ", ".join([*own, *filter(None, [labels.rstrip("}")])])
        series.append({"series": f"{metric}{{{labels}}}", "values": values})
    tests = [
        {
            "eval_time": f"{minute}m",
            "alertname": scenario.alert,
            "exp_alerts": [_expected(scenario.alert, firing) for firing in firings],
        }
        for minute, firings in scenario.expected.items()
    ]
    return {
        "name": scenario.alert,
        "interval": f"{scenario.interval}m",
        "input_series": series,
        "alert_rule_test": tests,
    }


def _expected(alert: str, firing: Firing) -> dict:
    def filled(template: str) -> str:
        for name, value in firing.labels.items():
            template = template.replace(f"{{{{ $labels.{name} }}}}", value)
        return re.sub(r"{{ \$value[^}]*}}", firing.value, template)

    return {
        "exp_labels": {"severity": firing.severity, **firing.labels},
        "exp_annotations": {k: filled(v) for k, v in alerts()[alert]["annotations"].items()},
    }
