"""What a model is called where nobody says so."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.driving import null
from engine.embedded import FOLDER

HASH = "8f2c1d0a" * 5


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("tiny", "tiny"),
        (f"hub/models--acme--tiny-1.5B/snapshots/{HASH}", "acme/tiny-1.5B"),
        (f"hub/models--gpt2/snapshots/{HASH}", "gpt2"),
        (f"hub/models--acme--tiny/snapshots/{HASH}/merged", "acme/tiny/merged"),
        (f"models--acme--tiny/{HASH}", HASH),
        (f"snapshots/{HASH}", HASH),
        (os.fsdecode(b"caf\xe9"), "caf?"),
    ],
)
def test_a_folder_of_the_hub_is_called_as_its_repository_any_other_by_its_own_name(
    tmp_path: Path, folder: str, name: str
) -> None:
    shutil.copytree(FOLDER, tmp_path / folder)
    assert null.build(EngineConfig(model=tmp_path / folder)).info.model_name == name
    (tmp_path / "link").symlink_to(tmp_path / folder)
    assert null.build(EngineConfig(model=tmp_path / "link")).info.model_name == name
    named = EngineConfig(model=tmp_path / folder, model_name="mine")
    assert null.build(named).info.model_name == "mine"


@pytest.mark.parametrize("name", ["a\nb", "\udcff"])
def test_a_name_that_cannot_be_printed_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="model_name must be printable"):
        EngineConfig(model_name=name)
