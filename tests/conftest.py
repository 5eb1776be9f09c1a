"""One real server for the whole session: `python -m server`, as a user starts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.server_process import ServerProcess

# Nothing is timed: a property takes longer on a busy machine, and so does making up its values.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines remember their latency profiles for one run of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves the embedded model; `server.address` is host:port. Leave it as you found it."""
    log: Path = tmp_path_factory.mktemp("server") / "log"
    with ServerProcess(log, "--torch-threads", "1") as process:
        process.wait_ready()
        yield process
