"""Fixtures of the Python client's tests."""

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client_python.support import KINDS, Shop, open_shop, opened
from tests.support.server import Client


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have Gatekey's variables set."""
    for name in [name for name in os.environ if name.startswith("GATEKEY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
async def shop(root: Client, fresh_id: str) -> Shop:
    """A tenant with two keys."""
    return await open_shop(root, fresh_id)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of client."""
    return str(request.param)


@pytest.fixture
async def client(kind: str, root: Client, root_token: str) -> AsyncIterator[Any]:
    """A client of each kind, with the root token."""
    async with opened(kind, root.address, token=root_token) as client:
        yield client


@pytest.fixture(params=KINDS[:2])
async def admin(request: pytest.FixtureRequest, root: Client, root_token: str) -> AsyncIterator[Any]:
    """A client for threads and one for an event loop, for what has nothing to do with batches."""
    async with opened(request.param, root.address, token=root_token) as client:
        yield client
