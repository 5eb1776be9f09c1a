"""A little real server and a client of it, for each test."""

from collections.abc import AsyncIterator

import pytest

from niyama.client import AsyncClient
from tests.client.little_server import LittleInference, serving


@pytest.fixture
def servicer() -> LittleInference:
    return LittleInference()


@pytest.fixture
async def address(servicer: LittleInference) -> AsyncIterator[str]:
    async with serving(servicer) as address:
        yield address


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address) as client:
        yield client
