"""A checkpoint's own sampling, as a caller meets it: what generation_config.json states holds for
whatever a request leaves out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.embedded import FOLDER
from niyama.client import AsyncClient
from niyama.client.values import SamplingDefaults
from server.app import Server
from server.config import ServerConfig, StartError
from tests.server.conftest import within

KEYS = {"temperature": 0.25, "top_k": 1, "repetition_penalty": 1.125, "max_new_tokens": 21}
PROMPTS = ("And it came to pass", [{"role": "user", "content": "Who was Emma?"}])
NEUTRAL = SamplingDefaults(1.0, 0, 1.0, 0.0, 1.0, 128)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(FOLDER, tmp_path / "model"))
    (copy / "generation_config.json").write_text(json.dumps(KEYS | {"eos_token_id": 2}))
    return copy


@asynccontextmanager
async def serving(
    folder: Path, generation_config: str, factory: str = EngineConfig().factory
) -> AsyncIterator[AsyncClient]:
    engine = EngineConfig(
        model=folder,
        compile="off",
        calibration_s=0,
        torch_threads=1,
        dtype="float32",
        factory=factory,
    )
    server = Server(ServerConfig(port=0, generation_config=generation_config, engine=engine))
    try:
        await within(server.start())
        async with AsyncClient(f"127.0.0.1:{server.port}") as client:
            yield client
    finally:
        await within(server.stop())


async def test_a_request_without_sampling_is_sampled_as_the_checkpoint_says(folder: Path) -> None:
    """With top_k 1 whatever the seed; and what a request states holds instead."""
    async with serving(folder, "auto") as client:
        info = await client.server_info()
        assert info.sampling == SamplingDefaults(0.25, 1, 1.0, 0.0, 1.125, 21)
        stated = {"temperature": 0.25, "top_k": 1, "repetition_penalty": 1.125, "max_tokens": 21}
        for prompt in PROMPTS:
            left_out, said, greedy, noise = [
                (await client.complete(prompt, **options)).completions[0].token_ids
                for options in (
                    {"seed": 5, "ignore_eos": True},
                    {"seed": 6, "ignore_eos": True, **stated},
                    {"ignore_eos": True, "temperature": 0, "repetition_penalty": 1, "n": 1},
                    {"seed": 5, "ignore_eos": True, "temperature": 1, "top_k": 0},
                )
            ]
            assert len(left_out) == 21
            assert left_out == said
            assert left_out != noise
            assert left_out != greedy  # of which the repetition penalty makes something else


async def test_the_operator_may_have_the_engine_s_own_defaults(folder: Path) -> None:
    async with serving(folder, "none", "engine.driving.null:build") as client:
        assert (await client.server_info()).sampling == NEUTRAL


@pytest.mark.parametrize("keys", [{"temperature": "x"}, {"top_p": 7}, {"do_sample": 1}])
async def test_a_value_that_is_no_default_is_one_line_before_anything_is_started(
    folder: Path, keys: dict[str, object]
) -> None:
    (folder / "generation_config.json").write_text(json.dumps(keys))
    (key,) = keys

    with pytest.raises(StartError, match=rf"^generation_config\.json: {key} must be [^\n]+$"):
        Server(ServerConfig(port=0, engine=EngineConfig(model=folder)))
