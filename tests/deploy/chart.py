"""The chart of deploy/helm as Helm renders it; tests of it skip without Helm."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "niyama"
LIMIT_S = 120.0
ALL = (
    "--namespace=llm",
    "--set=monitoring.enabled=true,autoscaling.enabled=true",
    "--set=smg.enabled=true,smg.image=smg:1,smg.controlPlaneSecret=control",
)
SECRETS = (  # callers are asked who they are, at three ports, and two front ends share four cores
    "--set=identity.allowAnonymous=false,identity.allowPlaintext=false,frontends=2",
    "--set=identity.tokensSecret=tokens,identity.tlsSecret=tls,identity.clientCaSecret=ca",
    "--set=identity.operatorSecret=operator,tierPorts.completion=50052,tierPorts.nightly=50053",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "cpu": ("--values=cpu.yaml", *ALL),
    "gpu": ("--values=gpu.yaml", *ALL),
    "secrets": ("--values=cpu.yaml", *SECRETS),
}
Manifest = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Helm in the chart's folder; skips the test where there is none."""
    program = shutil.which("helm")
    if program is None:
        pytest.skip("no helm here (.ci/tools installs it)")
    return subprocess.run(
        [program, *arguments], cwd=CHART, capture_output=True, text=True, timeout=LIMIT_S
    )


@functools.cache
def rendered(*flags: str) -> tuple[Manifest, ...]:
    """The manifests of a release called `niyama`."""
    done = helm("template", "niyama", ".", *flags)
    assert done.returncode == 0, done.stderr
    return tuple(each for each in yaml.safe_load_all(done.stdout) if each)


def of(variant: str, kind: str, name: str = "niyama") -> Manifest:
    """The one manifest of that kind and name."""
    found = [
        each
        for each in rendered(*VARIANTS[variant])
        if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    assert len(found) == 1, (kind, name)
    return found[0]


def pod_of(variant: str, name: str = "niyama") -> Manifest:
    """What the Deployment of that name makes pods of."""
    template: Manifest = of(variant, "Deployment", name)["spec"]["template"]
    return template


def container_of(variant: str, name: str = "niyama") -> Manifest:
    """The one container of such a pod that lasts."""
    (container,) = pod_of(variant, name)["spec"]["containers"]
    found: Manifest = container
    return found
