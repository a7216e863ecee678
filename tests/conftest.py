"""Real parts for all tests: a PostgreSQL of our own, a server process, a client over the network."""

import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from gatekey.core.secrets import new_secret
from gatekey_server.store.embedded import EmbeddedPostgres

from tests.support.databases import Databases
from tests.support.fixtures import Fixtures, make_fixtures
from tests.support.orphans import OrphanCheck
from tests.support.server import PEPPERS, PRODUCTS, Client, ServerProcess, read_example

# Started by a shell in the background it would be ignored, also by the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest, mostly by waiting: begun first, they do not keep the others waiting at the end.
_LONG = ("test_chaos.py", "test_cache.py", "test_model.py", "test_failover.py", "test_cli.py", "test_durability.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first, each file's together."""
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL: the wheel's, or that of the directory GATEKEY_TEST_POSTGRES_BIN."""
    bin_dir = os.environ.get("GATEKEY_TEST_POSTGRES_BIN")
    postgres = EmbeddedPostgres(
        tmp_path_factory.mktemp("cluster"),
        bin_dir=Path(bin_dir) if bin_dir else None,
        # The data need not outlive the tests.
        settings={"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"},
    )
    with postgres:
        yield postgres


@pytest.fixture(scope="session")
async def databases(cluster: EmbeddedPostgres) -> Databases:
    """Makes fresh databases."""
    made = Databases(cluster)
    await made.prepare()
    return made


@pytest.fixture(scope="session", autouse=True)
async def no_server_left() -> AsyncIterator[None]:
    """Stops what a failed test has left running."""
    yield
    for process in ServerProcess.started:
        await process.kill()


@pytest.fixture(scope="session")
def root_token() -> str:
    """The token that may do everything."""
    return new_secret("gk_")


@pytest.fixture(scope="session")
async def orphan_check(databases: Databases) -> AsyncIterator[OrphanCheck]:
    """Looks for orphans in the shared database; once more at the very end, when its server has stopped."""
    async with OrphanCheck.open(await databases.create()) as check:
        yield check
        await check.assert_none()


@pytest.fixture(scope="session")
async def database_url(orphan_check: OrphanCheck) -> str:
    """The database of the shared server."""
    return orphan_check.url


@pytest.fixture
async def orphan_check_afterwards(orphan_check: OrphanCheck) -> AsyncIterator[None]:
    """No row of the shared database has lost its parent when the test is over."""
    yield
    await orphan_check.assert_none()


@pytest.fixture(autouse=True)
def no_orphans(request: pytest.FixtureRequest) -> None:
    """After every test that uses the shared database; the others pay nothing for it."""
    if "database_url" in request.fixturenames:
        request.getfixturevalue("orphan_check_afterwards")


@pytest.fixture(scope="session")
async def server(database_url: str, root_token: str) -> AsyncIterator[ServerProcess]:
    """A server that all tests share which neither stop it nor change the five products."""
    process = await ServerProcess.start(
        {"GATEKEY_DATABASE_URL": database_url, "GATEKEY_PEPPERS": PEPPERS, "GATEKEY_ROOT_TOKEN": root_token}
    )
    yield process
    assert await process.stop() == 0
    leaks = [line for line in process.output if root_token in line]
    assert not leaks, "the root token was logged"


@pytest.fixture(scope="session")
async def root(server: ServerProcess, root_token: str) -> AsyncIterator[Client]:
    """A client with the root token; the five products are applied."""
    client = Client(server.address, root_token)
    for product in PRODUCTS:
        await client.apply(read_example(product))
    yield client
    await client.close()


@pytest.fixture(scope="session")
async def fixtures(root: Client, database_url: str) -> AsyncIterator[Fixtures]:
    """The decision table, made true on the shared server."""
    async with make_fixtures(root, database_url) as made:
        yield made


@pytest.fixture
def fresh_id() -> str:
    """An id that no other test has, for tenants and products."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to the shared server's database, to look at rows and to run SQL by hand."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()
