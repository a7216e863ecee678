"""What the clients in other languages are tested with."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from tests.support import conformance
from tests.support.certificates import LOCALHOST, Authority
from tests.support.databases import Databases
from tests.support.server import PEPPERS, Client, ServerProcess

SYSTEM = "products/gatekey/tenants/system"


@dataclass(frozen=True)
class Mutual:
    """A server that asks for certificates, and a client certificate that stands for a token."""

    address: str
    files: Mapping[str, str]


@pytest.fixture(scope="session")
async def mutual(root: Client, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mutual]:
    """A server with mutual TLS."""
    created = await root.create_key(
        SYSTEM, name="api", mode="RESTRICTED", grants={"products/heyoo/checks": ["create"]}, new_machine_user=True
    )
    directory = tmp_path_factory.mktemp("tls")
    servers, clients = Authority.make("servers", "clients")
    (directory / "servers.pem").write_bytes(servers.pem)
    (directory / "clients.pem").write_bytes(clients.pem)
    certificate, key = servers.issue(LOCALHOST).write(directory)
    own = clients.issue(x509.DNSName("api.example.com")).write(directory, "api")
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": database_url,
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_TLS_CERTIFICATE": str(certificate),
            "GATEKEY_TLS_KEY": str(key),
            "GATEKEY_TLS_CLIENT_CA": str(directory / "clients.pem"),
            "GATEKEY_TLS_CALLERS": f"api.example.com={created.api_key.name}",
        }
    )
    files = {"ca": str(directory / "servers.pem"), "certificate": str(own[0]), "key": str(own[1])}
    yield Mutual(server.address, files)
    assert await server.stop() == 0


@dataclass
class Pair:
    """Two servers of one database, one of which can be replaced."""

    token: str
    variables: Mapping[str, str]
    servers: list[ServerProcess]

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.servers]

    async def replace_one(self) -> None:
        """Stop the first, and start another one in its place."""
        address = self.servers[0].address
        assert await self.servers[0].stop() == 0
        self.servers[0] = await ServerProcess.start({**self.variables, "GATEKEY_LISTEN": address})


@pytest.fixture(scope="session")
async def pair(databases: Databases, root_token: str) -> AsyncIterator[Pair]:
    """Two servers."""
    variables = {
        "GATEKEY_DATABASE_URL": await databases.create(),
        "GATEKEY_PEPPERS": PEPPERS,
        "GATEKEY_ROOT_TOKEN": root_token,
    }
    servers = await asyncio.gather(*(ServerProcess.start(variables) for _ in range(2)))
    made = Pair(root_token, variables, servers)
    yield made
    for server in made.servers:
        await server.stop()


async def failures_while_one_is_replaced(pair: Pair, program: Sequence[str | Path], directory: Path) -> list[str]:
    """How calls of a program fail that are made while one of two servers is replaced."""
    over = directory / "over"
    calls = asyncio.create_task(conformance.load(program, pair.addresses, pair.token, over))
    await asyncio.sleep(1.5)
    await pair.replace_one()
    await asyncio.sleep(1)
    over.touch()
    done, failures = await calls
    assert done > 500, failures
    return failures
