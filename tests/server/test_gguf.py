"""A server of a GGUF file answers as one of the folder that the file was made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
import transformers

from engine.config import EngineConfig
from engine.embedded import FOLDER
from niyama.client import Client
from tests.engine.checkpoint.gguf.writing import packed, scores, shape, write
from tests.server.test_check import checked
from tests.server_process import ServerProcess

FLAGS = ("--torch-threads", "1", "--dtype", "float32")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a GGUF file."""
    model = transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype="float32")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))
    stated = json.loads((FOLDER / "tokenizer_config.json").read_text())
    metadata = shape(model.config) | scores(pieces, {})
    metadata |= {"tokenizer.chat_template": stated["chat_template"], "general.name": "another"}
    path = tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf"
    return write(path, metadata, packed(model, "F32"))


def answers(model: Path, log: Path, *flags: str) -> Iterator[object]:
    """The name of a model, and what it says to a prompt and in a chat."""
    with ServerProcess(log, "--model", str(model), *FLAGS, *flags) as process:
        process.wait_ready()
        with Client(process.address) as client:
            yield client.server_info().model.name
            chat = [{"role": "user", "content": "Tell me a story."}]
            for prompt in ("Once upon a time", chat):
                stream = client.generate(prompt, temperature=0.0, max_tokens=24)
                yield "".join(token.text for token in stream)


def test_a_file_is_served_as_the_folder_it_was_made_of(file: Path, tmp_path: Path) -> None:
    """Its name is the file's, whatever it calls itself; by two front ends, of which each reads
    it.
    """
    name, *said = answers(file, tmp_path / "file", "--frontends", "2")
    assert name == "tiny.F32"
    _, *expected = answers(FOLDER, tmp_path / "folder")
    assert said == expected
    assert all(said)


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
