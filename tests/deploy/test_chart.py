"""The chart of deploy/helm: Kubernetes, its operators and our own server take what it renders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from server import check
from server.ending import REST_S
from server.settings import ask, started
from tests.deploy.chart import CHART, VARIANTS, container_of, helm, of, pod_of, rendered
from tests.server.monitoring.prometheus import FOLDER, promtool

KUBERNETES = "1.34"  # whose schemas are asked
CRDS = {"PodMonitor", "PrometheusRule", "ScaledObject"}
IMAGE_USER = 10001  # deploy/Dockerfile


@pytest.mark.parametrize("values", ["cpu.yaml", "gpu.yaml"])
def test_helm_finds_no_fault(values: str) -> None:
    done = helm("lint", ".", "--strict", "--values", values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_knows_every_field(variant: str) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    manifests = [each for each in rendered(*VARIANTS[variant]) if each["kind"] not in CRDS]
    assert {"Deployment", "ConfigMap", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= {
        each["kind"] for each in manifests
    }
    for manifest in manifests:
        validate(manifest, KUBERNETES, strict=True)


def test_the_operators_know_every_field() -> None:
    """By models of their CRDs, which take seconds to import: CI does without them."""
    keda = pytest.importorskip("cloudcoil.models.keda.v1alpha1")
    operator = pytest.importorskip("cloudcoil.models.prometheus_operator.v1")
    models = (keda.ScaledObject, operator.PodMonitor, operator.PrometheusRule)
    for model in models:
        model.model_validate(of("cpu", model.__name__), extra="forbid")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("frontends=4", "4 front ends and an engine want 5 cores"),
        ("device=cuda:0", "a pod is one engine on one GPU"),
        ("identity.allowAnonymous=false", "name tokensSecret or clientCaSecret"),
        ("identity.allowPlaintext=false", "name tlsSecret, or say"),
        ("identity.clientCaSecret=ca", "clientCaSecret wants tlsSecret"),
        ("smg.enabled=true", "smg.image: say which"),
        ("smg.enabled=true,smg.image=i", "smg.controlPlaneSecret"),
        ("smg.enabled=true,smg.image=i,smg.controlPlaneSecret=c,identity.tlsSecret=t", "no token"),
        ("autoscaling.minReplicas=9", "minReplicas is above maxReplicas"),
        ("frontend=2", "additional properties 'frontend' not allowed"),
        ("model.path=llama", "/model/volume"),
    ],
)
def test_what_does_not_fit_together_is_told_before_anything_is_sent(said: str, why: str) -> None:
    done = helm("template", "niyama", ".", "--values=cpu.yaml", "--set", said)
    assert done.returncode != 0
    assert why in done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_takes_its_flags(variant: str) -> None:
    """And those of the chart are those of its numbers."""
    container, file = container_of(variant), CHART / "niyama.toml"
    flags = [
        each.replace("/etc/niyama/config/niyama.toml", str(file)) for each in container["args"]
    ]
    config = started(ask(flags, {}).given).config
    assert config.config == file
    assert config.follow_config
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert sorted(ports.values()) == sorted([*config.ports, config.metrics_port])
    assert ports["metrics"] == config.metrics_port
    served = {each["targetPort"]: each["port"] for each in of(variant, "Service")["spec"]["ports"]}
    assert served == {name: port for name, port in ports.items() if name != "metrics"}
    let_in = of(variant, "NetworkPolicy")["spec"]["ingress"]
    assert [[p["port"] for p in each["ports"]] for each in let_in] == [list(served), ["metrics"]]
    assert (config.host, config.metrics_host) == ("0.0.0.0", "0.0.0.0")
    cores = int(container["resources"]["requests"]["cpu"])
    if config.engine.device == "cpu" and config.frontends > 1:
        assert config.engine.torch_threads == cores - config.frontends
    assert cores > config.frontends
    if variant == "secrets":
        assert (config.allow_anonymous, config.allow_plaintext) == (False, False)
        stated = (config.tokens_file, config.tls_certificate, config.tls_key)
        names = {*stated, config.tls_client_ca, config.admin_token_file}
        (volume,) = (v for v in pod_of(variant)["spec"]["volumes"] if v["name"] == "identity")
        paths = [
            item["path"] for s in volume["projected"]["sources"] for item in s["secret"]["items"]
        ]
        assert {Path("/etc/niyama/identity", path) for path in paths} == names
        assert volume["projected"]["defaultMode"] == 0o440


def test_the_configuration_of_the_map_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "niyama.toml"
    path.write_text(of("cpu", "ConfigMap")["data"]["niyama.toml"])
    assert path.read_text().strip() == (CHART.parents[1] / "niyama.toml").read_text().strip()
    flags = [each for each in container_of("cpu")["args"] if not each.startswith("--config=")]
    assert check.main(ask([*flags, f"--config={path}", "--check-config"], {})) == 0
    capsys.readouterr()
    own = "[tiers.mine]\nttlt_s = 3\n"
    (given,) = (
        each
        for each in rendered("--values=cpu.yaml", f"--set-string=config={own}")
        if each["kind"] == "ConfigMap"
    )
    assert given["data"]["niyama.toml"].strip() == own.strip()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_grace_is_what_a_drain_takes_at_most(variant: str) -> None:
    container, spec = container_of(variant), pod_of(variant)["spec"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    drain_s = float(next(a for a in container["args"] if "drain" in a).partition("=")[2])
    assert spec["terminationGracePeriodSeconds"] >= float(command[1]) + drain_s + REST_S


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pod_may_do_nothing_but_serve(variant: str) -> None:
    spec = pod_of(variant)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False  # NIYAMA_PORT would be ours and theirs
    user = spec["securityContext"]
    assert user["runAsNonRoot"] is True
    assert user["runAsUser"] == user["fsGroup"] == IMAGE_USER
    assert f"USER {IMAGE_USER}:{IMAGE_USER}" in (CHART.parents[1] / "Dockerfile").read_text()
    for container in (*spec["initContainers"], *spec["containers"]):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
    mounts = {each["mountPath"]: each for each in spec["containers"][0]["volumeMounts"]}
    writable = {path for path, each in mounts.items() if not each.get("readOnly")}
    assert writable == {"/var/cache/niyama", "/var/lib/niyama", "/tmp"}
    (folders,) = (c for c in spec["initContainers"] if c["name"] == "folders")
    made = folders["command"][4:]  # each a folder of its own, of which the server sees no more
    assert made == [
        f"/cache/{mounts['/var/cache/niyama']['subPath']}",
        f"/decisions/{mounts['/var/lib/niyama']['subPathExpr']}",
    ]


def test_who_selects_pods_finds_them() -> None:
    labels = pod_of("cpu")["metadata"]["labels"]
    for selector in (
        of("cpu", "Deployment")["spec"]["selector"]["matchLabels"],
        of("cpu", "Service")["spec"]["selector"],
        of("cpu", "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of("cpu", "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        of("cpu", "PodMonitor")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    gateway = container_of("cpu", "niyama-smg")["args"]
    at = gateway.index("--selector")
    assert dict(pair.split("=") for pair in gateway[at + 1 : at + 3]).items() <= labels.items()
    assert "--service-discovery-port=50051" in gateway
    assert "--service-discovery-namespace=llm" in gateway
    ingress = of("cpu", "NetworkPolicy")["spec"]["ingress"]
    callers = [each["podSelector"]["matchLabels"] for each in ingress[0]["from"]]
    assert pod_of("cpu", "niyama-smg")["metadata"]["labels"] in callers
    assert of("cpu", "Service")["spec"]["clusterIP"] == "None"


def test_the_alerts_are_those_of_the_server_and_find_the_job() -> None:
    groups = [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((FOLDER / name).read_text())["groups"]
    ]
    assert of("cpu", "PrometheusRule")["spec"]["groups"] == groups
    monitor = of("cpu", "PodMonitor")["spec"]
    job = pod_of("cpu")["metadata"]["labels"][monitor["jobLabel"]]
    assert f'up{{job="{job}"}}' in (FOLDER / "alerts.yml").read_text()
    ports = {each["name"] for each in container_of("cpu")["ports"]}
    assert {each["port"] for each in monitor["podMetricsEndpoints"]} <= ports


def queries() -> dict[str, tuple[str, float]]:
    """What a replica is added for: each trigger's query, and its value for one replica."""
    triggers = of("cpu", "ScaledObject")["spec"]["triggers"]
    assert all(each["metricType"] == "AverageValue" for each in triggers)
    return {
        each["name"]: (each["metadata"]["query"], float(each["metadata"]["threshold"]))
        for each in triggers
    }


def pod(number: int, **labels: str) -> str:
    """The labels of a series that the PodMonitor finds at a pod of the Deployment."""
    own = {"namespace": "llm", "pod": f"niyama-6d5f8-{number}", "job": "niyama", **labels}
    return "{" + ",".join(f'{name}="{value}"' for name, value in own.items()) + "}"


def triggered(series: Mapping[str, str], wanted: Mapping[str, float | None]) -> dict[str, Any]:
    """A test of promtool's: what the triggers' queries come to after nine minutes."""
    samples = {
        name: [] if value is None else [{"labels": "{}", "value": value}]
        for name, value in wanted.items()
    }
    return {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": queries()[name][0], "eval_time": "9m", "exp_samples": expected}
            for name, expected in samples.items()
        ],
    }


def test_a_fleet_grows_by_what_people_wait_for_and_not_by_a_batch(tmp_path: Path) -> None:
    """Two pods for ten minutes: 0.9 s of work for people arrives per second, 1 s waits, and one of
    them has no headroom; and there is a batch of hours, for which no replica is added.
    """
    work, queued = "niyama_work_seconds_total", "niyama_queued_work_seconds"
    none = "0x40"
    series = {
        work + pod(1, tier="chat", tenant="other"): "0+6x40",
        work + pod(2, tier="completion", tenant="editor"): "0+7.5x40",
        work + pod(1, tier="nightly", tenant="nightly"): "0+600x40",
        queued + pod(1, tier="chat", state="waiting"): "0.5+0x40",
        queued + pod(2, tier="chat", state="relegated"): "0.5+0x40",
        queued + pod(2, tier="chat", state="running"): "3+0x40",
        queued + pod(2, tier="nightly", state="waiting"): "14400+0x40",
        "niyama_headroom_seconds" + pod(1, tier="chat"): none,
        "niyama_requests_total" + pod(1, tier="chat", result="late"): "0+1x40",
        # Where nobody asks for it, it is missed by nobody.
        "niyama_headroom_seconds" + pod(2, tier="completion"): none,
        "niyama_requests_total" + pod(2, tier="completion", result="late"): "7+0x40",
        "niyama_headroom_seconds" + pod(1, tier="completion"): "0.4+0x40",
        "niyama_headroom_seconds" + pod(2, tier="chat"): "0.6+0x40",
        "niyama_headroom_seconds" + pod(2, tier="nightly"): none,
        # Another release's, in the same namespace.
        work + pod(1, tier="chat", pod="other-niyama-6d5f8-1"): "0+600x40",
        work + pod(1, tier="chat", namespace="else"): "0+600x40",
    }
    wanted = {"arriving": 0.9, "queued": 1.0, "without-headroom": 1.0}
    idle = {"niyama_engine_up" + pod(1): "1x40"}  # one that has just been started
    groups = [
        triggered(series, dict(wanted)),
        triggered(idle, dict.fromkeys(wanted, 0.0)),
        triggered({}, dict.fromkeys(wanted)),  # Prometheus sees nobody: no data is not no load
    ]
    path = tmp_path / "scaling_test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "tests": groups}))
    promtool("test", "rules", str(path))
    replicas = {name: value / queries()[name][1] for name, value in wanted.items()}
    assert replicas == pytest.approx({"arriving": 1.5, "queued": 2, "without-headroom": 10})


def test_no_answer_of_prometheus_changes_nothing() -> None:
    scaled = of("cpu", "ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == of("cpu", "Deployment")["metadata"]["name"]
    assert "replicas" not in of("cpu", "Deployment")["spec"]
    assert all(each["metadata"]["ignoreNullValues"] == "false" for each in scaled["triggers"])
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    grace = pod_of("cpu")["spec"]["terminationGracePeriodSeconds"]
    (down,) = behavior["scaleDown"]["policies"]
    assert down["value"] == 1
    assert down["periodSeconds"] >= grace


def test_its_tiers_are_those_of_the_configuration() -> None:
    tiers = {
        tier for query, _ in queries().values() for tier in re.findall(r'tier=~"([^"]+)"', query)
    }
    (names,) = tiers
    stated = re.findall(r"^\[tiers\.(\w+)\]", of("cpu", "ConfigMap")["data"]["niyama.toml"], re.M)
    assert set(names.split("|")) == set(stated) - {"nightly"}
