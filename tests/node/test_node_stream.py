"""A client in another language reads the same stream: Node with the packages Node people use.

The packages are installed once into artifacts/node, at the exact versions of package-lock.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.tokenizer import Tokenizer
from engine.embedded import FOLDER
from niyama.client import Client
from tests.server_process import ServerProcess

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROMPT = "And it came to pass"
NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The folder of the installed packages; skips where they cannot be had."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = ROOT / "artifacts" / "node"
    lock, installed = HERE / "package-lock.json", folder / "package-lock.json"
    packages = folder / "node_modules"
    if packages.is_dir() and installed.read_bytes() == lock.read_bytes():
        return packages
    folder.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "package.json", lock):
        shutil.copy(source, folder)
    install = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
    )
    if any(word in install.stderr for word in NO_NETWORK):
        pytest.skip("npm cannot reach its registry")
    assert install.returncode == 0, install.stderr
    return packages


def stream_by_node(
    server: ServerProcess, node_modules: Path, request: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", HERE / "stream.js", server.address, ROOT, json.dumps(request)],
        env={**os.environ, "NODE_PATH": str(node_modules)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_node_and_python_read_the_same_seeded_stream(
    server: ServerProcess, node_modules: Path
) -> None:
    sampling = {"seed": 42, "max_tokens": 32, "temperature": 0.9}
    request = {
        "input": {"text": PROMPT},
        "sampling": sampling,
        "qos": {"tier": "interactive"},
        "request_id": "from-node",
    }
    ran = stream_by_node(server, node_modules, request)
    assert ran.returncode == 0, ran.stderr
    heard = json.loads(ran.stdout)

    with Client(server.address) as client:
        stream = client.generate(
            PROMPT, tier="interactive", seed=42, max_tokens=32, temperature=0.9
        )
        token_ids = [token_id for tokens in stream for token_id in tokens.token_ids]
    assert heard["token_ids"] == token_ids
    assert heard["text"] == stream.text
    assert len(token_ids) == 32 or heard["reason"] == "FINISH_REASON_STOP"
    assert heard["request_id"] == "from-node"
    assert heard["events"][0] == "accepted"
    assert heard["events"][-1] == "finished"
    assert set(heard["events"][1:-1]) <= {"tokens", "relegated"}


def test_node_hears_which_field_was_wrong(server: ServerProcess, node_modules: Path) -> None:
    request = {"input": {"text": PROMPT}, "qos": {"tier": "nowhere"}}
    ran = stream_by_node(server, node_modules, request)
    assert ran.returncode == 1
    assert "INVALID_ARGUMENT" in ran.stderr
    assert "qos.tier" in ran.stderr


def test_node_s_balancers_read_the_load(node_modules: Path, tmp_path: Path) -> None:
    """grpc-js has ORCA's messages whole, and reads them by itself."""
    with ServerProcess(tmp_path / "log", "--load-reports", module="tests.null_server") as server:
        server.wait_ready()
        ran = subprocess.run(
            ["node", HERE / "orca.js", server.address, ROOT / "proto"],
            env={**os.environ, "NODE_PATH": str(node_modules)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ran.returncode == 0, ran.stderr
    out_of_band, of_the_call = map(json.loads, ran.stdout.splitlines())
    for report in (out_of_band, of_the_call):
        assert report["named_metrics"]["num_requests_waiting"] == 0
        assert report["named_metrics"]["kv_cache_usage_perc"] == 0
    assert out_of_band["request_cost"] == {}
    prompt_tokens = len(Tokenizer.load(FOLDER).encode("Once"))
    assert of_the_call["request_cost"] == {"prompt_tokens": prompt_tokens, "output_tokens": 3}
