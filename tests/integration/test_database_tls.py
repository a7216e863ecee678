"""TLS to PostgreSQL: one of the system's, for the embedded one is built without it."""

import asyncio
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from cryptography import x509
from gatekey.core.secrets import new_secret
from gatekey.v1 import product_service_pb2

from tests.support.certificates import LOCALHOST, Authority
from tests.support.cli import Cli
from tests.support.ports import free_ports
from tests.support.server import PEPPERS, Client, ServerProcess

PROGRAMS = next(
    (path for path in sorted(Path("/usr/lib/postgresql").glob("*/bin")) if (path / "initdb").exists()), None
)
pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(PROGRAMS is None, reason="there is no PostgreSQL of the system: apt-get install postgresql"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become the user of PostgreSQL"),
]


@dataclass(frozen=True)
class Secured:
    """A PostgreSQL that is reached by TLS only."""

    port: int
    files: Path

    def url(self, **parameters: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"postgresql://gatekey@127.0.0.1:{self.port}/postgres?{query}"


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    assert PROGRAMS is not None
    # The user of PostgreSQL has to get there.
    directory = Path(tempfile.mkdtemp(prefix="gatekey-tls-", dir="/tmp"))
    data, port = directory / "data", free_ports(1)
    shutil.chown(directory, "postgres")
    ours, foreign = Authority.make("ours", "foreign")
    (directory / "ours.pem").write_bytes(ours.pem)
    (directory / "foreign.pem").write_bytes(foreign.pem)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [PROGRAMS / program, "-D", data, *arguments],
            user="postgres",
            check=True,
            cwd=directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    run("initdb", "--auth=trust", "--username=gatekey", "--no-sync")
    for path in ours.issue(LOCALHOST, x509.DNSName("db.example")).write(data):
        shutil.chown(path, "postgres")
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
    options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1,127.0.0.2 -c fsync=off"
    tls = "-c ssl=on -c ssl_cert_file=server.pem -c ssl_key_file=server.key"
    run("pg_ctl", "-o", f"{options} {tls}", "-w", "start")
    try:
        yield Secured(port, directory)
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("host", "parameters", "problem"),
    [
        ("127.0.0.1", "sslmode=verify-full&sslrootcert={files}/foreign.pem", "unable to get local issuer certificate"),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert={files}/foreign.pem", "unable to get local issuer certificate"),
        ("127.0.0.2", "sslmode=verify-full&sslrootcert={files}/ours.pem", "IP address mismatch"),
        ("127.0.0.1", "sslmode=disable", "no pg_hba.conf entry"),
    ],
)
def test_a_database_that_cannot_be_trusted_is_told_by_what_is_wrong(
    secured: Secured, tmp_path: Path, host: str, parameters: str, problem: str
) -> None:
    url = f"postgresql://gatekey@{host}:{secured.port}/postgres?{parameters.format(files=secured.files)}"
    refused = Cli(tmp_path)("migrate", code=1, GATEKEY_DATABASE_URL=url, GATEKEY_PEPPERS=PEPPERS).err
    assert refused.startswith("error: the database cannot be used: ")
    assert problem in refused
    assert len(refused.splitlines()) == 1


async def test_a_database_that_can_be_trusted_is_used_by_tls_alone(secured: Secured, tmp_path: Path) -> None:
    url = secured.url(sslmode="verify-full", sslrootcert=secured.files / "ours.pem")
    token = new_secret("gk_")
    variables = {"GATEKEY_DATABASE_URL": url, "GATEKEY_PEPPERS": PEPPERS, "GATEKEY_ROOT_TOKEN": token}
    await asyncio.to_thread(Cli(tmp_path, variables), "migrate")
    server = await ServerProcess.start(variables)
    client = Client(server.address, token)
    try:
        await client.products.ListProducts(product_service_pb2.ListProductsRequest())
        context = ssl.create_default_context(cafile=secured.files / "ours.pem")
        connection = await asyncpg.connect(secured.url(), ssl=context)
        try:
            encrypted = await connection.fetchval(
                "select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid)"
                " where application_name like 'gatekey%'"
            )
        finally:
            await connection.close()
        assert encrypted
    finally:
        await client.close()
        assert await server.stop() == 0
