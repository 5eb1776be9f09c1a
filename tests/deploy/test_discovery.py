"""SMG as the chart starts it, before an API of Kubernetes that has one pod: what it asks for is
what its Role lets it, and its probes are where the chart has them. It skips without SMG.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from tests.deploy.chart import Manifest, container_of, of, pod_of
from tests.server.frontends.test_frontends import free_port
from tests.server.monitoring.prometheus import until

KEY = "a key of the control plane"


class Api(ThreadingHTTPServer):
    """The part of Kubernetes' API that knows pods: it lists `pod`, and what is watched stays as it
    is. `asked` has the requests: verb, namespace and resource, and their queries.
    """

    daemon_threads = True

    def __init__(self, pod: Manifest) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.pod = pod
        self.asked: list[tuple[str, str, str, dict[str, list[str]]]] = []
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever)

    def __enter__(self) -> Api:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


class Answering(BaseHTTPRequestHandler):
    """One connection of such an API."""

    server: Api

    def log_message(self, *about: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        *_, namespace, resource = url.path.split("/")
        verb = "watch" if query.get("watch") == ["true"] else "list"
        self.server.asked.append((verb, namespace, resource, query))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if verb == "watch":
            self.server.closing.wait(60)
        else:
            pods = {"metadata": {"resourceVersion": "1"}, "items": [self.server.pod]}
            self.wfile.write(json.dumps({"kind": "PodList", "apiVersion": "v1", **pods}).encode())


def status_of(url: str) -> int:
    """What GET is answered with; 0 where nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture
def smg() -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if found := shutil.which("smg", path=path):
        return found
    pytest.skip("no smg here (pip install smg)")


@pytest.fixture
def api() -> Iterator[Api]:
    labels = pod_of("cpu")["metadata"]["labels"]
    meta = {"name": "niyama-1", "namespace": "llm", "uid": "1", "labels": labels}
    status = {"phase": "Running", "podIP": "127.0.0.1"}
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    spec = {"containers": [{"name": "niyama"}]}
    pod = {"metadata": meta, "spec": spec, "status": {**status, **ready}}
    with Api({"apiVersion": "v1", "kind": "Pod", **pod}) as api:
        yield api


def test_the_gateway_asks_for_what_its_role_lets_it(smg: str, api: Api, tmp_path: Path) -> None:
    container = container_of("cpu", "niyama-smg")
    assert container["command"] == ["smg"]
    ports = {each["containerPort"]: free_port() for each in container["ports"]}
    flags = "\n".join(container["args"]).replace("0.0.0.0", "127.0.0.1")
    for there, here in ports.items():
        assert f"={there}" in flags
        flags = flags.replace(f"={there}", f"={here}")
    flags = flags.replace("$(SMG_CONTROL_PLANE_KEY)", KEY)
    cluster = {"server": f"http://127.0.0.1:{api.server_port}"}
    config = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    environment = {each["name"]: each.get("value", "") for each in container["env"]}
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", smg, *flags.split("\n")],
            env={**os.environ, **environment, "KUBECONFIG": str(tmp_path / "kubeconfig")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        number = {each["name"]: ports[each["containerPort"]] for each in container["ports"]}
        at = f"http://127.0.0.1:{number['http']}"
        until(lambda: status_of(at + container["livenessProbe"]["httpGet"]["path"]) == 200)
        assert status_of(at + container["readinessProbe"]["httpGet"]["path"]) == 503  # nobody yet
        assert status_of(f"{at}/workers") == 401
        until(lambda: "Registering worker 127.0.0.1:50051" in (tmp_path / "log").read_text())
        assert status_of(f"http://127.0.0.1:{number['metrics']}/metrics") == 200
    finally:
        child.kill()
        child.wait()
    (rule,) = of("cpu", "Role", "niyama-smg")["rules"]
    assert {verb for verb, *_ in api.asked} == set(rule["verbs"])
    for _, namespace, resource, query in api.asked:
        assert (namespace, resource) == ("llm", *rule["resources"])
        selected = dict(pair.split("=") for pair in query["labelSelector"][0].split(","))
        assert selected == pod_of("cpu")["metadata"]["labels"]
