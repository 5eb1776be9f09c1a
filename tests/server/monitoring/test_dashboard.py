"""The dashboard as a file: every panel can be read by somebody who has just woken up."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests.server.monitoring.dashboard import dashboard, expressions, metrics, panels
from tests.server.monitoring.prometheus import promtool

COLUMNS = 24
ROWS = ["Is anyone late?", "Why?", "Who?", "Machine", "Queue"]


def test_rows_are_the_questions_in_their_order() -> None:
    titles = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert titles == ROWS


def test_every_panel_says_what_it_shows() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles)) > 30
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)", target["expr"]))))
            if kept - {"le"} or "sum(" in target["expr"]:
                assert named == kept - {"le"}, f"{panel['title']}: legend and series differ"


def test_lines_that_are_drawn_otherwise_exist() -> None:
    for panel in panels():
        legends = [re.sub(r"{{\w+}}", "x", t["legendFormat"]) for t in panel["targets"]]
        for override in panel["fieldConfig"]["overrides"]:
            pattern = override["matcher"]["options"].strip("/")
            assert any(re.search(pattern, legend) for legend in legends), panel["title"]


def test_panels_lie_beside_each_other_on_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < COLUMNS for x, _ in cells), panel["title"]
        taken |= cells


def test_there_is_one_datasource_and_it_is_chosen_by_who_looks() -> None:
    variables = {v["name"]: v for v in dashboard()["templating"]["list"]}
    assert variables.keys() == {"datasource", "job", "instance", "tier"}
    assert variables["datasource"]["type"] == "datasource"
    found = re.findall(r'"datasource": ({[^}]*}[^}]*})', str(dashboard()).replace("'", '"'))
    assert set(found) == {'{"type": "prometheus", "uid": "${datasource}"}'}


def test_names_of_metrics_are_found_in_expressions() -> None:
    assert metrics('sum by (a) (rate(b_total{c="d_e{"}[5m])) / on (x) f:g:rate1h{h="i"} + j{}') == {
        "b_total",
        "f:g:rate1h",
        "j",
    }
    assert all(metrics(expression) for expression in expressions())


def test_expressions_are_what_prometheus_reads(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:expression:{i}", "expr": text} for i, text in enumerate(expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(path))
