"""`--tier-port TIER=PORT`: more ports of the same server, whose calls get a tier that they need not
state.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from smg_grpc_proto import vllm_engine_pb2 as vllm

from engine import toml_file
from engine.toml_file import BadFile
from niyama.client import Client
from niyama.v1 import inference_pb2 as pb
from server.config import ServerConfig
from server.settings import BadSetting, ask, parse
from server.tier_port import TierPort
from server.tier_port import parse as parse_one
from tests.server.conftest import Stubs, within
from tests.server.identity.authority import Authority
from tests.server.identity.conftest import Walled, walled
from tests.server.smg.asking import stub_of
from tests.server_process import ServerProcess

FILE = Path("/srv/niyama.toml")


@given(st.text(min_size=1).filter(lambda text: text.strip() == text), st.integers(0, 65535))
def test_a_tier_may_have_any_name(tier: str, port: int) -> None:
    assert parse_one(f"{tier}={port}") == TierPort(tier, port)
    assert str(TierPort(tier, port)) == f"{tier}={port}"


@pytest.mark.parametrize(
    "text", ["", "50052", "=50052", "batch=", "batch=x", "batch=65536", "b=-1"]
)
def test_what_is_no_tier_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be TIER=PORT, such as interactive=50052"):
        parse_one(text)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--tier-port", "batch=50051"], "--tier-port batch must be another than port, got 50051"),
        (
            ["--tier-port", "batch=7", "--metrics-port", "7"],
            "--tier-port batch must be another than metrics_port, got 7 for both",
        ),
        (
            ["--tier-port", "batch=7", "--tier-port", "standard=7"],
            "--tier-port standard must be another than tier_port batch, got 7 for both",
        ),
        (["--tier-port", "bach=7"], "--tier-port names no tier: 'bach' (did you mean batch?)"),
        (
            ["--tier-port", "gold=7"],
            "--tier-port names no tier: 'gold'; there are interactive, standard, batch",
        ),
    ],
)
def test_what_contradicts_itself_ends_the_start_by_its_name(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv, {})
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"niyama-server: error: {said}")


def test_any_free_port_may_be_taken_by_several() -> None:
    flags = parse(["--port", "0", "--tier-port", "batch=0", "--tier-port", "standard=0"], {})
    assert flags.tier_port == (TierPort("batch", 0), TierPort("standard", 0))
    assert flags.at([5, 6, 7]).ports == (5, 6, 7)
    assert flags == parse(["--port", "0"], {"NIYAMA_TIER_PORT": "batch=0, standard=0"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tier_port = 'batch=7'", "2: listen.tier_port must be a list, got 'batch=7'"),
        ("tier_port = [7]", "2: listen.tier_port must be a text, got 7"),
        ("tier_port = ['batch']", "2: listen.tier_port must be TIER=PORT"),
        ("tier_port = ['batch=7']\n[tiers.chat]\nttlt_s = 1", "2: listen.tier_port names no tier"),
    ],
)
def test_a_file_is_told_by_its_line(text: str, said: str) -> None:
    document = toml_file.parse(f"[listen]\n{text}\n", FILE)
    with pytest.raises((BadFile, BadSetting), match=re.escape(f"{FILE}:{said}")):
        ask([], {}).given.resolve(document)


# On real servers, before an engine that computes nothing


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Walled]:
    """It speaks TLS, asks for tokens, and has a port for silver calls and one for gold ones."""
    ports = (TierPort("silver", 0), TierPort("gold", 0))
    folder = tmp_path_factory.mktemp("tier-port")
    async with walled(folder, Authority(), tier_port=ports, gateway_metadata=True) as server:
        yield server


async def served(
    server: Walled, port: str, who: str = "acme", *metadata: tuple[str, str], **qos: str
) -> pb.ResolvedTargets:
    """The targets of a call at the port of that tier, "" the main one."""
    ports = {each.tier: each.port for each in server.server.tier_ports}
    server.address = f"localhost:{ports.get(port, server.server.port)}"
    request = pb.GenerateRequest(
        input=pb.Input(text="Once"),
        sampling=pb.Sampling(max_tokens=1),
        qos=pb.QualityOfService(**qos),
    )
    shown = server.shows(who) if who else ()
    async with server.channel() as channel:
        answered = Stubs(channel).inference.Generate(request, metadata=(*shown, *metadata))
        return (await within(answered)).targets


@pytest.mark.asyncio(loop_scope="session")
async def test_calls_that_state_nothing_get_the_tier_of_their_port(server: Walled) -> None:
    silver = await served(server, "silver")
    assert (silver.tier, silver.source) == ("silver", pb.TARGET_SOURCE_GATEWAY)
    assert silver.reason == "tier port"
    assert (await served(server, "gold")).importance == pb.IMPORTANCE_HIGH
    main = await served(server, "")
    assert (main.tier, main.source) == ("gold", pb.TARGET_SOURCE_DEFAULT)


@pytest.mark.asyncio(loop_scope="session")
async def test_what_says_more_of_a_call_counts_before_its_port(server: Walled) -> None:
    assert (await served(server, "silver", tier="bronze")).tier == "bronze"
    traced = await served(server, "silver", "acme", ("tracestate", "niyama=tier:bronze"))
    assert (traced.tier, traced.reason) == ("bronze", "tracestate")
    important = await served(server, "silver", "acme", ("tracestate", "niyama=importance:low"))
    assert (important.tier, important.importance) == ("silver", pb.IMPORTANCE_LOW)
    unknown = await served(server, "silver", "acme", ("tracestate", "niyama=tier:platinum"))
    assert unknown.tier == "silver"


@pytest.mark.asyncio(loop_scope="session")
async def test_a_gateway_s_clients_choose_a_port_by_the_name_of_its_model(server: Walled) -> None:
    """Two models of the gateway's, and one engine's."""
    names = []
    for port in (server.server.port, *(each.port for each in server.server.tier_ports)):
        server.address = f"localhost:{port}"
        async with server.channel() as channel:
            request = vllm.GetModelInfoRequest()
            asked = stub_of(channel).GetModelInfo(request, metadata=server.shows("edge"))
            info = await within(asked)
            names.append(info.served_model_name)
    assert names == [names[0], f"{names[0]}:silver", f"{names[0]}:gold"]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_port_gives_nobody_what_is_not_his(server: Walled) -> None:
    """Neither a call of nobody nor a tier that its tenant may not have."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served(server, "gold", who="")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert (await served(server, "gold", who="free")).tier == "bronze"
    assert (await served(server, "silver", who="free")).tier == "silver"


def test_several_front_ends_share_every_port_and_a_bound_tier_stays(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    chat, bulk = "[tiers.chat]\nttlt_s = 3\n", "[tiers.bulk]\nttlt_s = 9\n"
    path.write_text(f"{chat}{bulk}[listen]\ntier_port = ['bulk=0']\n")
    flags = ("--config", str(path), "--frontends", "2")
    with ServerProcess(tmp_path / "log", *flags, module="tests.null_server") as process:
        told = re.search(r", tier port bulk=(\d+)$", process.wait_ready().rstrip())
        assert told is not None
        path.write_text(chat)
        process.signal(signal.SIGHUP)
        refused = json.loads(process.wait_line(lambda line: "configuration not read" in line))
        assert "the tier_port that is served names no tier: 'bulk'" in refused["reason"]
        for address, tier in ((process.address, "chat"), (f"127.0.0.1:{told[1]}", "bulk")):
            with Client(address) as client:
                answer = client.generate("Once", max_tokens=1)
                answer.read()
                assert answer.accepted is not None
                assert answer.accepted.targets.tier == tier


def test_a_default_server_has_one_port() -> None:
    assert ServerConfig().ports == (50051,)
