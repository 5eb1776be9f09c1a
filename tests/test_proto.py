"""The wire: stubs are fresh, and twins are twins."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from niyama.v1 import inference_pb2
from tests.node.test_node_stream import NO_NETWORK

ROOT = Path(__file__).parents[1]
SOURCE = "niyama/v1/inference.proto"  # by this name every tool and language knows it
BUF = "@bufbuild/buf@1.75.0"
STUBS = ("inference_pb2.py", "inference_pb2.pyi", "inference_pb2_grpc.py")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", *outputs, SOURCE]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder / "niyama/v1"


@pytest.mark.parametrize("name", STUBS)
def test_committed_stubs_are_what_the_proto_generates(generated: Path, name: str) -> None:
    """`make proto` was run after the last change."""
    committed = (ROOT / "client/niyama/v1" / name).read_text()
    assert committed == (generated / name).read_text()


def test_the_file_is_registered_by_its_name() -> None:
    """Reflection serves it by this name, and other generated code that imports it asks for it."""
    assert inference_pb2.DESCRIPTOR.name == SOURCE


def test_both_generate_requests_have_the_same_fields() -> None:
    """The API promises it, and the server reads both with one function."""
    unary, streaming = (
        [(f.number, f.name, f.message_type and f.message_type.full_name) for f in m.fields]
        for m in (
            inference_pb2.GenerateRequest.DESCRIPTOR,
            inference_pb2.GenerateStreamRequest.DESCRIPTOR,
        )
    )
    assert unary == streaming


def test_every_enum_starts_unspecified() -> None:
    for enum in inference_pb2.DESCRIPTOR.enum_types_by_name.values():
        assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")


def test_buf_finds_nothing_to_lint() -> None:
    """The rules of proto/buf.yaml. npm keeps the linter in its cache after the first time."""
    npx = shutil.which("npx")
    if npx is None:
        pytest.skip("npx is not installed")
    ran = subprocess.run(
        [npx, "--yes", BUF, "lint", "proto"], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    if any(word in ran.stderr for word in NO_NETWORK):
        pytest.skip("npm cannot reach its registry")
    assert ran.returncode == 0, ran.stdout + ran.stderr
