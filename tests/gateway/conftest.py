"""One fleet for all tests of the gateway: to start it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.fleet import Fleet, smg


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    program = smg()
    if program is None:
        pytest.skip("no smg: pip install smg")
    fleet = Fleet(tmp_path_factory.mktemp("gateway"))
    with fleet.running(program):
        yield fleet
