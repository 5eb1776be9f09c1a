from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.engine.computing.parts import CHECKPOINTS, Saved, make_saved


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices: a second thread costs more than it computes, most of all on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """A checkpoint of CHECKPOINTS by name, made once."""
    made: dict[str, Saved] = {}

    def get(name: str) -> Saved:
        if name not in made:
            family, changes = CHECKPOINTS[name]
            made[name] = make_saved(family, changes, tmp_path_factory.mktemp(name))
        return made[name]

    return get
