"""What the clients in other languages are tested with."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import pytest
from cryptography import x509

from tests.support.certificates import LOCALHOST, Authority
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
