"""A server of a GGUF file, which is called by the file and says what its model says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers

from engine.checkpoint.tokenizer import Tokenizer
from engine.config import EngineConfig
from engine.embedded import FOLDER
from niyama.client import Client
from tests.engine.checkpoint.gguf.writing import packed, scores, shape, write
from tests.server.test_check import checked
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def model() -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype="float32")


@pytest.fixture(scope="module")
def file(model: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a GGUF file."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))
    stated = json.loads((FOLDER / "tokenizer_config.json").read_text())
    metadata = shape(model.config) | scores(pieces, {})
    metadata |= {"tokenizer.chat_template": stated["chat_template"], "general.name": "another"}
    path = tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf"
    return write(path, metadata, packed(model, "F32"))


def test_a_server_says_what_transformers_generates(
    model: transformers.PreTrainedModel, file: Path, tmp_path: Path
) -> None:
    """From the folder that the file was made of; by two front ends, of which each reads the file.
    Its name is the file's, whatever it calls itself.
    """
    tokenizer, chat = Tokenizer.load(FOLDER), [{"role": "user", "content": "Tell me a story."}]
    prompts = (("Once upon a time", tokenizer.encode), (chat, tokenizer.encode_chat))
    flags = ("--model", str(file), "--torch-threads", "1", "--dtype", "float32")
    with ServerProcess(tmp_path / "log", *flags, "--frontends", "2") as process:
        process.wait_ready()
        with Client(process.address) as client:
            assert client.server_info().model.name == "tiny.F32"
            for prompt, encode in prompts:
                ids = encode(prompt)
                made = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24)
                stream = client.generate(prompt, temperature=0.0, max_tokens=24)
                found = [i for tokens in stream for i in tokens.token_ids]
                assert found == made[0].tolist()[len(ids) :]


def test_a_file_of_the_hub_s_cache_is_called_as_its_repository(file: Path, tmp_path: Path) -> None:
    """There it is a link to a file that is called by its digest."""
    snapshot = tmp_path / "models--acme--tiny-GGUF" / "snapshots" / "8f2c1d0a"
    snapshot.mkdir(parents=True)
    (tmp_path / "blob").symlink_to(file)
    (snapshot / "tiny.Q8_0.gguf").symlink_to(tmp_path / "blob")
    served = EngineConfig(model=snapshot / "tiny.Q8_0.gguf").served_name
    assert served == "acme/tiny-GGUF/tiny.Q8_0"
    assert EngineConfig(model=file).served_name == "tiny.F32"


def test_a_configuration_is_checked_with_a_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = checked(capsys, "--model", str(file))
    assert (code, said) == (0, "")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-1])
    code, _, said = checked(capsys, "--model", str(cut))
    assert code == 1
    assert "--model cannot be served: cut.gguf ends too early: the tensor" in said
