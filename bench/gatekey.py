"""Gatekey as it is measured: a PostgreSQL, data by COPY, and `gatekey serve` on chosen cores."""

import asyncio
import base64
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import grpc
from gatekey.core.names import new_key_uid
from gatekey.core.secrets import Digest, Keyring, checksum, new_secret
from gatekey.v1 import (
    check_service_pb2,
    check_service_pb2_grpc,
    product_service_pb2,
    product_service_pb2_grpc,
    product_spec_pb2,
)
from gatekey_server.store.embedded import EmbeddedPostgres
from google.protobuf import json_format
from ruamel.yaml import YAML

from bench.load import Plan
from bench.processes import ALL_CORES, ROOT, process

CHECK = "/gatekey.v1.CheckService/Check"
BATCH_CHECK = "/gatekey.v1.CheckService/BatchCheck"
ALLOWED = check_service_pb2.CheckResponse(allowed=True).SerializeToString().hex()

_PRODUCT, _PREFIX = "heyoo", "heyoo_"
_RESOURCE, _ACTION = "campaigns/spring", "write"
_PEPPER = bytes(range(32))
_KEYRING = Keyring({1: _PEPPER})
KEYS_OF_A_TENANT = 1000
_HINT = _PREFIX + "0000"
_SETTINGS = {"shared_buffers": "2GB", "max_wal_size": "8GB", "max_connections": "200"}


@asynccontextmanager
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL of our own, with an empty database."""
    with tempfile.TemporaryDirectory(prefix="gatekey-bench-") as directory:
        Path(directory).chmod(0o711)
        with EmbeddedPostgres(Path(directory) / "data", settings=_SETTINGS) as cluster:
            yield cluster


@dataclass(frozen=True)
class Gatekey:
    """A server that answers."""

    address: str
    pid: int
    token: str
    start_s: float
    """How long it took from the start of the process to its first answer."""

    @property
    def metadata(self) -> dict[str, str]:
        """What goes with every call."""
        return {"authorization": f"Bearer {self.token}"}

    def plan(self, bodies: Path, **changes: object) -> Plan:
        """A load of checks that are all allowed."""
        defaults = {"path": CHECK, "expect": ALLOWED, "metadata": self.metadata}
        return Plan(address=self.address, bodies=str(bodies), **{**defaults, **changes})  # type: ignore[arg-type]

    def channel(self) -> grpc.aio.Channel:
        """A connection; every call needs `metadata`."""
        return grpc.aio.insecure_channel(self.address)


_TOKEN = new_secret("gk_")


@asynccontextmanager
async def gatekey(
    cluster: EmbeddedPostgres, *, cores: frozenset[int] = ALL_CORES, **variables: str
) -> AsyncIterator[Gatekey]:
    """Serve the database of a cluster. Variables are those of the configuration, without their prefix."""
    env = {
        "DATABASE_URL": cluster.dsn(),
        "LISTEN": "127.0.0.1:0",
        "PEPPERS": f"1:{base64.b64encode(_PEPPER).decode()}",
        "ROOT_TOKEN": _TOKEN,
        "LOG_LEVEL": "warning",
        **variables,
    }
    named = {f"GATEKEY_{name}": value for name, value in env.items()}
    command = (sys.executable, "-c", "from gatekey_command import main; main()")
    async with process(*command, "migrate", env=named) as migration:
        if await migration.wait():
            raise RuntimeError("the database could not be migrated")
    started_at = time.perf_counter()
    async with process(*command, "serve", env=named, cores=cores) as server:
        assert server.stdout is not None
        async for line in server.stdout:
            if line.startswith(b"Gatekey serves on "):
                address = line.decode().split()[-1]
                yield Gatekey(address, server.pid, _TOKEN, time.perf_counter() - started_at)
                return
        raise RuntimeError("the server did not start")


async def apply_product(server: Gatekey) -> None:
    """Create the product of the example `heyoo`."""
    document = YAML(typ="safe", pure=True).load(ROOT / "examples" / f"{_PRODUCT}.yaml")
    spec = json_format.ParseDict(document, product_spec_pb2.ProductSpec())
    async with server.channel() as channel:
        stub = product_service_pb2_grpc.ProductServiceStub(channel)
        request = product_service_pb2.ApplyProductRequest(spec=spec)
        await stub.ApplyProduct(request, metadata=tuple(server.metadata.items()))


async def fill(cluster: EmbeddedPostgres, keys: int, *, keys_of_a_tenant: int = KEYS_OF_A_TENANT) -> None:
    """Add keys up to so many, so many to a tenant, each tenant with one member. By COPY, without triggers.

    All of it is in memory afterwards, as far as there is enough.
    """
    connection = await asyncpg.connect(cluster.dsn())
    try:
        await connection.execute("set session_replication_role = replica")
        there = await connection.fetchval("select count(*) from secret where hint = $1", _HINT)
        tenants = range(there // keys_of_a_tenant, -(-keys // keys_of_a_tenant))

        async def copy(table: str, columns: str, rows: Iterable[tuple[object, ...]]) -> None:
            await connection.copy_records_to_table(table, records=rows, columns=columns.split())

        await copy("tenant", "product_id tenant_id display_name", ((_PRODUCT, f"t{t}", "Bench") for t in tenants))
        found = await connection.fetch("select tenant_id, tenant_uid from tenant where display_name = 'Bench'")
        uids = {int(row["tenant_id"][1:]): row["tenant_uid"] for row in found}
        members = ((uids[t], "MEMBER", "owner", "owner", "") for t in tenants)
        await copy("principal", "tenant_uid kind principal_id role display_name", members)
        found = await connection.fetch("select tenant_uid, principal_uid from principal where principal_id = 'owner'")
        owners = {row["tenant_uid"]: row["principal_uid"] for row in found}
        uid_of = [uids[t] for t in range(len(uids))]

        def made() -> Iterator[tuple[object, ...]]:
            for number in range(there, keys):
                uid = uid_of[number // keys_of_a_tenant]
                yield uid, key_uid(number), owners[uid], "Bench", "SECRET", "ALL"

        def sealed() -> Iterator[tuple[object, ...]]:
            for number in range(there, keys):
                yield uid_of[number // keys_of_a_tenant], key_uid(number), 1, digests(number)[0], 1, _HINT

        await copy("api_key", "tenant_uid key_uid principal_uid display_name kind mode", made())
        await copy("secret", "tenant_uid key_uid slot digest pepper_version hint", sealed())
        # Keys that were used before: the first use of one is written down at once.
        await connection.execute(
            "insert into key_usage select tenant_uid, key_uid, now() from api_key on conflict do nothing"
        )
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
        # Into memory, or else it would be the disk that is measured.
        await asyncio.to_thread(_read_through, Path(await connection.fetchval("show data_directory")) / "base")
    finally:
        await connection.close()


def _read_through(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


def tenant_of(number: int) -> str:
    """The name of the tenant that a key is in, with `KEYS_OF_A_TENANT`."""
    return f"products/{_PRODUCT}/tenants/t{number // KEYS_OF_A_TENANT}"


def secret(number: int) -> str:
    """The secret of a key."""
    body = f"{_PREFIX}{number:032d}"
    return body + checksum(body)


def digests(number: int) -> tuple[Digest, ...]:
    """The digests of a key's secret."""
    return _KEYRING.digests(secret(number))


def key_uid(number: int) -> uuid.UUID:
    """The id of a key, as ids are made: by time, then random."""
    return new_key_uid(1_700_000_000_000 + number, hash((number, "key")) & (1 << 62) - 1)


def check(number: int, place: int | str = "") -> check_service_pb2.CheckRequest:
    """A check of a key that is allowed, of a resource of its own in each place."""
    return check_service_pb2.CheckRequest(key=secret(number), resource=f"{_RESOURCE}{place}", action=_ACTION)


def batch(numbers: Iterable[int]) -> check_service_pb2.BatchCheckRequest:
    """Many checks at once, each of another resource."""
    checks = [check(number, place) for place, number in enumerate(numbers)]
    return check_service_pb2.BatchCheckRequest(checks=checks)


def write_bodies(path: Path, messages: Iterable[bytes]) -> Path:
    """Write down what a load is to send."""
    with path.open("wb") as file:
        for message in messages:
            file.write(len(message).to_bytes(4, "big") + message)
    return path


async def assert_right(server: Gatekey, numbers: Iterable[int]) -> None:
    """Check keys with the generated client, and compare every field that tells whom the answer is about."""
    async with server.channel() as channel:
        stub = check_service_pb2_grpc.CheckServiceStub(channel)
        for number in numbers:
            answer = await stub.Check(check(number), metadata=tuple(server.metadata.items()))
            tenant = tenant_of(number).rpartition("/")[2]
            told = (answer.allowed, answer.reason, answer.tenant, answer.role)
            assert told == (True, answer.REASON_ALLOWED, tenant, "owner"), answer
            assert answer.principal == f"products/{_PRODUCT}/tenants/{tenant}/members/owner", answer
            denied = check(number)
            denied.key = denied.key[:-1] + ("0" if denied.key[-1] != "0" else "1")
            answer = await stub.Check(denied, metadata=tuple(server.metadata.items()))
            assert answer.reason == answer.REASON_KEY_UNKNOWN, answer


async def time_get_product(server: Gatekey) -> float:
    """How long an admin call takes, in seconds."""
    async with server.channel() as channel:
        stub = product_service_pb2_grpc.ProductServiceStub(channel)
        request = product_service_pb2.GetProductRequest(name=f"products/{_PRODUCT}")
        await channel.channel_ready()
        started_at = time.perf_counter()
        await stub.GetProduct(request, metadata=tuple(server.metadata.items()))
        return time.perf_counter() - started_at
