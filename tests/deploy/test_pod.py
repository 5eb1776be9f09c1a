"""A pod of the chart, lived through without a cluster: its server with the manifest's flags, asked
by its probes, and ended as a kubelet ends it, with the manifest's command, signal and grace.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from tests.deploy.chart import Manifest, container_of, of, pod_of, rendered
from tests.deploy.test_chart import queries
from tests.server.conftest import Stubs, until, within
from tests.server.frontends.test_frontends import free_port
from tests.server.test_lifetime import asked, finish, started, status_of
from tests.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
STREAMS, TOKENS, LONG = 3, 100, 300
BRIEF = ("--values=cpu.yaml", "--set=drain.preStopSeconds=1")


class Pod(NamedTuple):
    """Its server, its container's manifest, and where its metrics port is on this machine."""

    process: ServerProcess
    container: Manifest
    grace_s: float
    metrics_port: int
    config: Path  # the link that a kubelet exchanges

    def probe(self, name: str) -> int:
        """The status that a probe of the manifest gets; 0 where nobody listens yet."""
        probe = self.container[name]
        assert probe["httpGet"]["port"] == "metrics"
        return self.get(probe["httpGet"]["path"])[0]

    def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.metrics_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""
        except urllib.error.URLError:
            return 0, ""


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    """Only addresses and paths are other than in a cluster, and the model is not compiled."""
    (deployment,) = (each for each in rendered(*BRIEF) if each["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    data = tmp_path / "..data"
    for name, text in (("old", ""), ("new", "\n[tiers.another]\nttlt_s = 9\n")):
        (tmp_path / name).mkdir()
        config = of("cpu", "ConfigMap")["data"]["niyama.toml"] + text
        (tmp_path / name / "niyama.toml").write_text(config)
    data.symlink_to("old")
    port = free_port()
    here = {
        "--config=/etc/niyama/config": f"--config={data}",
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=50051": "--port=0",
        "--metrics-host=0.0.0.0": "--metrics-host=127.0.0.1",
        "--metrics-port=9464": f"--metrics-port={port}",
    }
    flags = "\n".join(container["args"])
    for there, ours in here.items():
        assert flags.count(there) == 1
        flags = flags.replace(there, ours)
    grace_s = spec["terminationGracePeriodSeconds"]
    with ServerProcess(tmp_path / "log", *flags.split("\n"), "--torch-threads=1") as process:
        yield Pod(process, container, grace_s, port, data)


async def test_no_stream_is_lost_when_a_pod_ends(pod: Pod) -> None:
    """And its probes, its metrics and its configuration are what the chart says."""
    await until(lambda: pod.probe("livenessProbe") != 0)  # it is about to listen
    assert pod.probe("livenessProbe") == 200
    assert pod.probe("startupProbe") in (200, 503)  # not yet, or just now
    (pod.config.parent / "next").symlink_to("new")
    (pod.config.parent / "next").replace(pod.config)
    await asyncio.to_thread(pod.process.wait_ready)
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod.probe(name) == 200

    async with grpc.aio.insecure_channel(pod.process.address) as channel:
        stubs = Stubs(channel)
        request = asked(1)
        request.qos.tier = "chat"
        await within(_read(stubs, request))
        await asyncio.to_thread(_all_there, pod)
        read = await asyncio.to_thread(
            pod.process.wait_line, lambda line: "configuration read" in line
        )
        assert "tiers.another" in read

        running = [await started(stubs, TOKENS + number) for number in range(STREAMS)]
        began_at = time.monotonic()
        command = pod.container["lifecycle"]["preStop"]["exec"]["command"]
        stopping = await asyncio.create_subprocess_exec(*command)
        assert await stopping.wait() == 0
        late = await started(stubs, LONG)  # of who has not heard yet that the pod is about to end
        pod.process.signal(signal.SIGTERM)
        await until(lambda: pod.probe("readinessProbe") == 503)
        assert pod.probe("livenessProbe") == 200
        new = stubs.inference.GenerateStream(asked(5))
        assert await status_of(new) is grpc.StatusCode.UNAVAILABLE  # to be tried elsewhere
        ends = await asyncio.gather(*map(finish, [*running, late]))
        assert [end.usage.output_tokens for end in ends] == [*range(TOKENS, TOKENS + STREAMS), LONG]
    left_s = pod.grace_s - (time.monotonic() - began_at)
    assert await asyncio.to_thread(pod.process.child.wait, left_s) == 0  # else: SIGKILL


async def _read(stubs: Stubs, request: object) -> None:
    async for _ in stubs.inference.GenerateStream(request):
        pass


def _all_there(pod: Pod) -> None:
    """Whatever a query of the ScaledObject asks for is told, by the labels that it selects."""
    wanted = {
        (name, label)
        for query, _ in queries().values()
        for name, selected in re.findall(r"(niyama_\w+)\{([^}]*)\}", query)
        for label in re.findall(r"\b(tier|state)=~", selected)
    }
    assert len({name for name, _ in wanted}) == 4
    until = time.monotonic() + 60
    while wanted:
        _, text = pod.get("/metrics")
        lines = text.splitlines()
        wanted = {
            (name, label)
            for name, label in wanted
            if not any(
                re.match(rf'{name}{{.*\b{label}="', line) and "chat" in line for line in lines
            )
        }
        assert time.monotonic() < until, wanted
        time.sleep(0.05)


MOUNTS = """
mount -t tmpfs -o mode=0755 tmpfs {parent}
mount -t tmpfs -o mode=2777,gid={group} tmpfs /mnt
mkdir {parent}/{name} {parent}/volume
setpriv --reuid {user} --regid {group} --clear-groups {command}
mount --bind /mnt/{sub_path} {parent}/{name}
mount --bind /mnt {parent}/volume
exec "$@"
"""
ASK = """
import os, sys
from pathlib import Path
from engine.private import private_folder
os.setgroups([]), os.setgid(int(sys.argv[1])), os.setuid(int(sys.argv[1]))
for path in sys.argv[2:]:
    try:
        print("believed", private_folder(Path(path)))
    except ValueError as error:
        print("refused", error)
"""


def test_what_is_compiled_is_believed_in_the_folder_that_the_chart_makes() -> None:
    """In a volume as a kubelet makes it for `fsGroup`: root's, and everybody's to write to."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("no mounts of one's own here (it takes root)")
    spec = pod_of("cpu")["spec"]
    (mount,) = (m for m in container_of("cpu")["volumeMounts"] if m["name"] == "cache")
    (folders,) = (c for c in spec["initContainers"] if c["name"] == "folders")
    path, user = Path(mount["mountPath"]), spec["securityContext"]["runAsUser"]
    *command, cache, _ = folders["command"]
    script = MOUNTS.format(
        parent=path.parent,
        name=path.name,
        sub_path=mount["subPath"],
        user=user,
        group=spec["securityContext"]["fsGroup"],
        command=shlex.join([*command, cache.replace("/cache/", "/mnt/")]),
    )
    asks = [sys.executable, "-c", ASK, str(user), str(path), str(path.parent / "volume")]
    done = subprocess.run(
        ["unshare", "-m", "bash", "-e", "-c", script, "pod", *asks],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    believed, refused = done.stdout.splitlines()
    assert believed == f"believed {path}"
    assert refused.startswith("refused ")
