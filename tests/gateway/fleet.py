"""Two replicas and the gateway SMG before them, as docs/openai.md starts them, all on loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from niyama.client import Client, NotFound
from niyama.client.load import TierLoad
from niyama.client.values import Explanation
from tests.server.frontends.test_frontends import free_port
from tests.server_process import ServerProcess

WAIT_S = 120.0
BATCH = 4  # sequences in an iteration: few, so that a queue is easily had
MODEL = "embedded"
BATCH_MODEL = f"{MODEL}:batch"  # at the port of that tier
TIERS = """
default_tier = "standard"
[tiers.interactive]
ttft_s = 20
tbt_s = 5
[tiers.standard]
ttlt_s = 300
[tiers.batch]
ttlt_s = 3600
importance = "low"
[tenants.acme]
"""


def smg() -> str | None:
    """Returns where the gateway's program is, None where it is not installed."""
    beside = Path(sys.executable).with_name("smg")
    return str(beside) if beside.exists() else shutil.which("smg")


def until(is_true: Callable[[], bool], what: str) -> None:
    """Looks again and again: what happens in other processes nobody here is told of."""
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"not in {WAIT_S} s: {what}"
        time.sleep(0.05)


class Replica:
    """A server at ports of its own, which it keeps when it is started again."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number, self._starts = folder, number, 0
        self.port, self.batch_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns before it is ready."""
        self._starts += 1
        self.process = ServerProcess(
            self._folder / f"replica-{self._number}-{self._starts}.log",
            *("--port", str(self.port), "--tier-port", f"batch={self.batch_port}"),
            *("--config", str(self._folder / "tiers.toml"), "--torch-threads", "1"),
            *("--max-batch-size", str(BATCH), "--log-format", "json"),
        )

    def kill(self) -> None:
        """Ends it at once."""
        self.process.child.kill()
        self.process.__exit__()

    def story(self, request_id: str) -> Explanation | None:
        """Returns what its decision record has of a request, None where it did not come here."""
        with Client(self.address) as client:
            try:
                return client.explain(request_id)
            except NotFound:
                return None

    def num_waiting(self, tier: str) -> int:
        """Returns how many of a tier's requests wait here."""
        load = self._load(tier)
        return sum(each.sequences for each in (load.waiting, load.relegated, load.best_effort))

    def num_running(self, tier: str) -> int:
        """Returns how many of a tier's requests decode here."""
        return self._load(tier).running.sequences

    def _load(self, tier: str) -> TierLoad:
        with Client(self.address) as client:
            return client.load().tiers[tier]


class Fleet:
    """The gateway at `url`, and the replicas behind it."""

    def __init__(self, folder: Path) -> None:
        (folder / "tiers.toml").write_text(TIERS)
        self.replicas = [Replica(folder, number) for number in range(2)]
        self._port, self._log = free_port(), folder / "smg.log"
        self.url = f"http://127.0.0.1:{self._port}/v1"

    @contextlib.contextmanager
    def running(self, program: str) -> Iterator[None]:
        """Runs all of it for the length of the block."""
        with contextlib.ExitStack() as stack:
            for replica in self.replicas:
                replica.start()
                stack.callback(lambda replica=replica: replica.process.__exit__())
            for replica in self.replicas:
                replica.process.wait_ready()
            with self._log.open("wb") as log:
                gateway = subprocess.Popen(
                    self._command(program),
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "HF_HUB_OFFLINE": "1", "RUST_LOG": "info"},
                )
            stack.callback(gateway.wait)
            stack.callback(gateway.kill)  # SIGTERM would take it some seconds, and it keeps nothing
            until(self.is_ready, f"the gateway is ready: {self._log.read_text()[-2000:]}")
            yield

    def _command(self, program: str) -> list[str]:
        ports = [replica.port for replica in self.replicas]
        ports += [replica.batch_port for replica in self.replicas]
        return [
            *(program, "launch", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--worker-urls", *(f"grpc://127.0.0.1:{port}" for port in ports)),
            *("--policy", "round_robin"),  # so that a test knows that both have work
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
            *("--worker-startup-check-interval", "1", "--health-check-interval-secs", "1"),
            *("--health-check-timeout-secs", "1", "--health-failure-threshold", "2"),
            *("--health-success-threshold", "1", "--log-level", "info"),
            *("--enable-trace", "--request-id-headers", "x-qos", "x-request-id"),
        ]

    def is_ready(self) -> bool:
        """Says whether the gateway has both models, and the tokenizer of each."""
        return all(self._serves(model) for model in (MODEL, BATCH_MODEL))

    def _serves(self, model: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        body = json.dumps({"model": model, "prompt": "Once", "max_tokens": 1})
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/completions", body, headers)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def story(self, request_id: str) -> tuple[Replica, Explanation]:
        """Returns which replica served a request, and what its decision record has of it."""
        stories = [(replica, replica.story(request_id)) for replica in self.replicas]
        ((replica, story),) = [(r, s) for r, s in stories if s is not None]
        return replica, story
