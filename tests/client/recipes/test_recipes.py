"""The recipes for other languages: each is built as its page says, streams, fails and tries again.

What is built is kept in artifacts/recipes, and built anew where a source has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google.rpc
import grpc
import pytest

from niyama.client import Client
from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from tests.server_process import ServerProcess

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "client" / "recipes"
PROTO = ROOT / "proto"
NAME = "niyama/v1/inference.proto"  # of the file, for every tool
GOOGLE_APIS = Path(next(iter(google.rpc.__path__))).parents[1]  # holds google/rpc/*.proto
NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")
GO_PATH = Path("/usr/share/gocode")  # where Debian's packages put Go's libraries
JARS = Path("/usr/share/java")
JAR_NAMES = (
    "grpc-api",
    "grpc-core",
    "grpc-context",
    "grpc-stub",
    "grpc-protobuf",
    "grpc-protobuf-lite",
    "grpc-netty",
    "guava",
    "protobuf",
    "gson",
    "perfmark-api",
    "perfmark-impl",
    "jsr305",
    "opencensus-api",
    "error_prone_annotations",
    "geronimo-annotation-1.3-spec",
    "netty-all",
    "netty-buffer",
    "netty-codec",
    "netty-codec-http",
    "netty-codec-http2",
    "netty-codec-socks",
    "netty-common",
    "netty-handler",
    "netty-handler-proxy",
    "netty-resolver",
    "netty-transport",
    "netty-transport-native-unix-common",
)
PROMPT = "And it came to pass"

Command = list[str]
Build = Callable[[Path], Command]  # in this folder; returns how the recipe is run


def run(command: Command, folder: Path, **variables: str) -> None:
    """Runs a step of a build; skips where it wants a registry and there is no way to one."""
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if any(word in ran.stderr for word in NO_NETWORK):
        pytest.skip(f"{command[0]} cannot reach its registry")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def needs_slow() -> None:
    if not os.environ.get("NIYAMA_SLOW_RECIPES"):
        pytest.skip("takes a minute: set NIYAMA_SLOW_RECIPES=1")


def build_go(folder: Path) -> Command:
    needs("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
    if not (GO_PATH / "src/google.golang.org/grpc").is_dir():
        pytest.skip("gRPC's Go library is not installed")
    source = folder / "src"
    (source / "stream").mkdir(parents=True)
    shutil.copy(RECIPES / "go/main.go", source / "stream")
    run(["protoc", "-I.", f"--go_out={source}", f"--go-grpc_out={source}", NAME], PROTO)
    run(
        ["go", "build", "-o", str(folder / "recipe"), "."],
        source / "stream",
        GO111MODULE="off",
        GOPATH=f"{folder}:{GO_PATH}",
    )
    return [str(folder / "recipe")]


def build_typescript(folder: Path) -> Command:
    needs("node", "npm")
    here = folder / "client/recipes/typescript"  # as in the project, whose proto/ it looks for
    shutil.copytree(
        RECIPES / "typescript",
        here,
        ignore=shutil.ignore_patterns("node_modules", "build", "generated"),
    )
    shutil.copytree(PROTO, folder / "proto")
    run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], here)
    run(["npm", "run", "build"], here)
    return ["node", str(here / "build/stream.js")]


def build_cpp(folder: Path) -> Command:
    needs_slow()
    needs("cmake", "g++", "protoc", "grpc_cpp_plugin")
    run(["cmake", f"-DGOOGLEAPIS={GOOGLE_APIS}", "-B", ".", str(RECIPES / "cpp")], folder)
    run(["cmake", "--build", "."], folder)
    return [str(folder / "stream")]


def build_java(folder: Path) -> Command:
    needs_slow()
    needs("javac", "protoc", "grpc_java_plugin")
    jars = [JARS / f"{name}.jar" for name in JAR_NAMES]
    if missing := [jar.name for jar in jars if not jar.exists()]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    made, classes = folder / "made", folder / "classes"
    made.mkdir()
    rpc = ["google/rpc/status.proto", "google/rpc/error_details.proto"]
    run(["protoc", "-I.", f"-I{GOOGLE_APIS}", f"--java_out={made}", *rpc, NAME], PROTO)
    plugin = f"--plugin=protoc-gen-grpc-java={shutil.which('grpc_java_plugin')}"
    run(["protoc", "-I.", plugin, f"--grpc-java_out={made}", NAME], PROTO)
    path = ":".join(map(str, [*jars, classes]))
    sources = [str(source) for source in made.rglob("*.java")]
    recipe = str(RECIPES / "java/Stream.java")
    run(["javac", "-nowarn", "-d", str(classes), "-cp", path, *sources, recipe], folder)
    return ["java", "-cp", path, "Stream"]


BUILDS: dict[str, Build] = {
    "go": build_go,
    "typescript": build_typescript,
    "cpp": build_cpp,
    "java": build_java,
}
SOURCES = {
    "go": "go/main.go",
    "typescript": "typescript/stream.ts",
    "cpp": "cpp/stream.cc",
    "java": "java/Stream.java",
}


@pytest.fixture(scope="module", params=BUILDS)
def recipe(request: pytest.FixtureRequest) -> Command:
    """How a language's recipe is run; skips where it cannot be built here."""
    language: str = request.param
    sources = sorted(path for path in (RECIPES / language).iterdir() if path.is_file())
    found = hashlib.sha256(b"".join(path.read_bytes() for path in [PROTO / NAME, *sources]))
    folder = ROOT / "artifacts" / "recipes" / f"{language}-{found.hexdigest()[:16]}"
    built = folder / "command.json"
    if not built.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        built.write_text(json.dumps(BUILDS[language](folder)))
    command: Command = json.loads(built.read_text())
    return command


def stream(
    recipe: Command, address: str, tier: str, prompt: str = PROMPT, **variables: str
) -> tuple[int, str, dict[str, Any]]:
    """Returns the exit status, the text that was printed, and what the last line told."""
    ran = subprocess.run(
        [*recipe, address, tier, prompt],
        # Before its version 1.40 gRPC for Go tried nothing again unless this was set.
        env={**os.environ, "GRPC_GO_RETRY": "on", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.stdout, ran.stderr
    text, _, told = ran.stdout.rstrip("\n").rpartition("\n")
    return ran.returncode, text, json.loads(told)


def test_a_recipe_streams_with_its_tier(recipe: Command, server: ServerProcess) -> None:
    status, text, told = stream(recipe, server.address, "batch")
    assert status == 0
    assert told["tier"] == "batch"
    assert told["expected_on_time"] is True
    assert told["targets_met"] == ["TARGET_NAME_TTLT"]
    with Client(server.address) as client:
        assert client.explain(told["request_id"]).targets.tier == "batch"
        same = client.complete(PROMPT, seed=7, max_tokens=16, tier="batch").completions[0]
    assert text == same.text
    assert told["output_tokens"] == len(same.token_ids)


def test_a_recipe_reads_which_field_is_wrong(recipe: Command, server: ServerProcess) -> None:
    status, _, told = stream(recipe, server.address, "nowhere")
    assert status == 1
    assert told["code"] in ("InvalidArgument", "INVALID_ARGUMENT", 3)  # as each gRPC names it
    assert told["fields"] == ["qos.tier"]
    assert told["reason"] == "INVALID_REQUEST"
    assert told["retry_after_s"] == 0


class Flaky(inference_pb2_grpc.InferenceServicer):
    """Answers the first attempts at a call with these statuses, and then with a token, as a server
    would that is full and then has room.
    """

    def __init__(self) -> None:
        self.failures: list[grpc.StatusCode] = []
        self.pushback = "1"  # in milliseconds
        self.attempts = 0

    def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateStreamResponse]:
        self.attempts += 1
        if self.failures:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", self.pushback),))
            context.abort(self.failures.pop(0), "not now")
        yield pb.GenerateStreamResponse(tokens=pb.Tokens(text="now"))
        yield pb.GenerateStreamResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP))


@pytest.fixture
def flaky() -> Iterator[tuple[Flaky, str]]:
    servicer = Flaky()
    server = grpc.server(ThreadPoolExecutor(2))
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    yield servicer, address
    server.stop(None).wait()


def test_a_recipe_tries_again_what_is_worth_it(recipe: Command, flaky: tuple[Flaky, str]) -> None:
    servicer, address = flaky
    servicer.failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    status, text, _ = stream(recipe, address, "batch")
    assert (status, text, servicer.attempts) == (0, "now", 3)


def test_a_recipe_does_not_try_again_where_the_server_says_so(
    recipe: Command, flaky: tuple[Flaky, str]
) -> None:
    servicer, address = flaky
    servicer.failures, servicer.pushback = [grpc.StatusCode.RESOURCE_EXHAUSTED], "-1"
    status, _, told = stream(recipe, address, "batch")
    assert (status, servicer.attempts, told["retry_after_s"]) == (1, 1, 0)


@pytest.mark.parametrize("language", SOURCES)
def test_the_service_config_in_a_recipe_is_the_clients(language: str) -> None:
    shipped = json.loads((ROOT / "client/niyama/client/service_config.json").read_text())
    source = (RECIPES / SOURCES[language]).read_text()
    start = source.index('{"methodConfig"')
    pasted, _ = json.JSONDecoder().raw_decode(source, start)
    assert pasted == shipped
