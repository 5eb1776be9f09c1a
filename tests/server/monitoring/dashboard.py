"""The dashboard's file, read as Grafana reads it."""

from __future__ import annotations

import json
import re

from tests.server.monitoring.prometheus import FOLDER

NAME = "grafana-dashboard.json"
VARIABLES = {"$__rate_interval": "10s", "$job": ".*", "$instance": ".*", "$tier": ".*"}


def dashboard() -> dict:
    return dict(json.loads((FOLDER / NAME).read_text()))


def panels() -> list[dict]:
    """Those that show something, so not the rows' titles."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Of all panels, with values for the variables."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [filled(expression) for expression in found]


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"an unknown variable in {expression}"
    return expression


def metrics(expression: str) -> set[str]:
    """The names of what an expression reads, of the service and as it is recorded."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\b(by|on|group_left|group_right|ignoring|without) \([^)]*\)", "", bare)
    return set(re.findall(r"[a-z][a-z_:0-9]*(?=[{\[])|\b[a-z_]+:[a-z_:0-9]+", bare))
