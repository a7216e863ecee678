"""How many statements a mutation sends: a revocation reads its key once, and its owner not at all."""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from gatekey.core.entities import ApiKey
from gatekey.core.key_rules import NewApiKey
from gatekey.core.names import MemberName, PrincipalName, ProductName, TenantName
from gatekey.core.secrets import Keyring, Mint, new_secret
from gatekey.core.specs import AccessMode
from gatekey.wire.specs import read_spec
from gatekey_server.authorization import callers
from gatekey_server.authorization.callers import Caller
from gatekey_server.commands import api_keys, bootstrap, principals, products, tenants
from gatekey_server.commands.mutations import Mutation
from gatekey_server.freshness.snapshot_source import VersionedSnapshot
from gatekey_server.store import snapshots
from gatekey_server.store.database import Connection, Database
from gatekey_server.store.products import CompiledSpecs

from tests.support.databases import Databases
from tests.support.server import read_example

PRODUCT = ProductName("heyoo")
TENANT = TenantName("heyoo", "acme")
OWNER = MemberName(TENANT, "owner")
KEYRING = Keyring({1: b"0" * 32})
NOW = datetime.now(UTC)


@dataclass
class Statements:
    """The statements that are sent while it listens, in order."""

    sent: list[str] = field(default_factory=list)

    def note(self, record: Any) -> None:
        """Take down one statement."""
        self.sent.append(re.sub(r"\s+", " ", record.query.strip()))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Forget what was sent before."""
        self.sent.clear()
        yield

    def reading(self, table: str) -> list[str]:
        """Those that select from a table or a view."""
        return [sql for sql in self.sent if re.search(rf"^select\b.* from {table}\b", sql)]


@dataclass(frozen=True)
class Deployment:
    """A database with a tenant in it, and whoever may change everything."""

    database: Database
    caller: Caller
    statements: Statements

    def mutation(self, actor: PrincipalName | None = None) -> Mutation[Any]:
        """A mutation by the root token, on behalf of an actor if any."""

        async def identify_again(_: Connection) -> Caller:
            return self.caller

        async def wait_until_visible(*_: object, **__: object) -> None:
            pass

        return Mutation(
            caller=self.caller,
            identify_again=identify_again,
            verb="Test",
            actor=actor,
            wait_until_visible=wait_until_visible,
        )

    async def key(self) -> ApiKey:
        """Create a key of the member."""
        new = NewApiKey(TENANT, "a key", owner=OWNER, mode=AccessMode.ALL)
        return (await api_keys.create_api_key(self.database, self.mutation(), Mint(KEYRING), new)).key


@pytest.fixture
async def deployment(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Deployment]:
    statements = Statements()
    connect: Callable[..., Any] = asyncpg.connect

    async def connect_and_listen(*args: Any, **options: Any) -> Any:
        connection = await connect(*args, **options)
        connection.add_query_logger(statements.note)
        return connection

    monkeypatch.setattr(asyncpg, "connect", connect_and_listen)
    url = await databases.create()
    async with Database.connect(url, max_connections=5, statement_timeout_s=5, acquire_timeout_s=5) as database:
        token = new_secret("gk_")
        await bootstrap.prepare(database, KEYRING)
        await bootstrap.add_root_token(database, lambda _: KEYRING.seal(token), NOW)
        digests = KEYRING.digests(token)
        found = await snapshots.load(database, CompiledSpecs(), digests)
        root = callers.identify(VersionedSnapshot(found.snapshots[digests[0]], found.revision), NOW)
        made = Deployment(database, root, statements)
        await products.apply_product(database, made.mutation(), read_spec(read_example("heyoo"), []), "", force=False)
        await tenants.create_tenant(database, made.mutation(), TENANT, "Acme")
        await principals.add_member(database, made.mutation(), OWNER, role="owner", display_name="")
        yield made


@pytest.mark.parametrize("actor", [None, OWNER])
async def test_a_revocation_reads_its_key_once(deployment: Deployment, actor: MemberName | None) -> None:
    key = await deployment.key()
    with deployment.statements.counted():
        after, _ = await api_keys.revoke_api_key(
            deployment.database, deployment.mutation(actor), key.name, key.etag, "leaked"
        )
    sent = deployment.statements.sent
    assert after.revoke_time is not None
    assert after.revoke_reason == "leaked"
    assert len(deployment.statements.reading("api_key_detail")) == 1, sent
    # The owner is read only where it is the actor.
    assert len(deployment.statements.reading("principal")) == (actor is not None), sent
    assert len(sent) == (9 if actor is None else 10), sent
