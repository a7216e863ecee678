"""Secrets of products that a caller may not check: in no answer are they different from ones that do not exist."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from gatekey.core import clock
from gatekey.core.changes import Poll, Position
from gatekey.core.decisions import KEY_UNKNOWN, RULES, Request
from gatekey.core.errors import Unreadable
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.names import parse_key_id
from gatekey.core.secrets import Keyring, new_secret
from gatekey.v1 import api_key_service_pb2, cache_service_pb2, check_service_pb2
from gatekey.v1.cache_service_pb2_grpc import CacheServiceStub
from gatekey_server.commands import checks
from gatekey_server.commands.checks import CheckResult, Question
from gatekey_server.freshness.lease import PrimaryLease
from gatekey_server.freshness.snapshot_source import SnapshotSource
from gatekey_server.runtime.config import parse_peppers
from gatekey_server.store.database import Database
from gatekey_server.store.queries import queries

from tests.support.server import PEPPERS, Client, problem_of, read_example


@dataclass
class Places:
    """Two products, a tenant in each, and a caller that has all rights in the first one, and none in the second."""

    root: Client
    caller: Client
    caches: Any
    sql: Any
    mine: str
    foreign: str

    async def key(self, tenant: str) -> api_key_service_pb2.CreateApiKeyResponse:
        """A new key."""
        return await self.root.create_key(tenant, f"{tenant}/members/owner", mode="RESTRICTED", grants=GRANTS)


GRANTS = {"campaigns": ["read"]}


@pytest.fixture
async def places(root: Client, sql: Any, fresh_id: str) -> AsyncIterator[Places]:
    tenants = []
    for product in (f"{fresh_id}a", f"{fresh_id}b"):
        spec = read_example("heyoo")
        spec.product, spec.secret_keys.prefix = product, f"{product}_"
        await root.apply(spec)
        tenants.append(await root.create_tenant(product, "acme"))
        await root.add_member(tenants[-1], "owner", "owner")
    caller = root.with_token(await root.create_token({f"products/{fresh_id}a": ["*"]}))
    yield Places(root, caller, CacheServiceStub(caller.channel), sql, *tenants)
    await caller.close()


async def said_of(places: Places, secret: str, min_revision: int) -> Mapping[str, object]:
    """All that the caller is told of a secret, without the names of its scopes."""
    caller = places.caller
    check = check_service_pb2.CheckRequest(key=secret, resource="campaigns", action="read")
    later = check_service_pb2.CheckRequest(
        key=secret, resource="campaigns", action="read", min_revision=min_revision, tenant="acme"
    )
    resolve = cache_service_pb2.ResolveRequest(keys=[secret], rules=RULES)
    resolved = await places.caches.Resolve(resolve)
    for result in resolved.results:
        result.secret_scopes[:] = [bytes(len(name)) for name in result.secret_scopes]
    resolved.ClearField("time")
    return {
        # More than once: what is asked again is answered from memory, in another way.
        "checks": [str(await caller.checks.Check(check)) for _ in range(3)],
        "at a revision": str(await caller.checks.Check(later)),
        "in a batch": str(await caller.checks.BatchCheck(check_service_pb2.BatchCheckRequest(checks=[check, later]))),
        "resolved": str(resolved),
        "identified": await refusal(
            caller.keys.IdentifySecret(api_key_service_pb2.IdentifySecretRequest(secret=secret)),
        ),
        "as a token": await refused_as_token(caller, secret),
    }


async def heard_of_all(places: Places) -> int:
    """Wait until the server has heard of what was done by hand; answers the revision."""
    reached = await places.sql.fetchval("select current from revision")
    async with asyncio.timeout(10):
        while (revision := (await places.caches.Sync(cache_service_pb2.SyncRequest())).revision) < reached:
            await asyncio.sleep(0.01)
    return int(revision)


async def refused_as_token(caller: Client, secret: str) -> object:
    client = caller.with_token(secret)
    try:
        return await refusal(client.check("x", "campaigns", "read"))
    finally:
        await client.close()


async def refusal(call: Any) -> object:
    with pytest.raises(grpc.RpcError) as raised:
        await call
    return problem_of(raised.value)


async def scopes_of(places: Places, *secrets: str) -> list[list[bytes]]:
    request = cache_service_pb2.ResolveRequest(keys=secrets, rules=RULES)
    return [list(result.secret_scopes) for result in (await places.caches.Resolve(request)).results]


async def test_foreign_secrets_are_like_unknown_ones(places: Places) -> None:
    prefix = places.foreign.split("/")[1]
    foreign = {name: await places.key(places.foreign) for name in ("live", "cold", "revoked", "broken")}
    await places.root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=foreign["revoked"].api_key.name))
    await places.sql.execute(
        """update api_key set grants = '{"no": 1}' where key_uid = $1""",
        parse_key_id(foreign["broken"].api_key.name.rsplit("/", 1)[1]),
    )
    live = foreign["live"].secret
    assert await places.root.verdict(live, "campaigns", "read") == "ALLOWED"
    assert (await refusal(places.root.check(foreign["broken"].secret, "campaigns", "read"))).reason == (  # type: ignore[attr-defined]
        "STORED_DATA_UNREADABLE"
    )
    revision = await heard_of_all(places)
    expected = await said_of(places, new_secret(f"{prefix}_"), revision)
    for name, key in foreign.items():
        assert await said_of(places, key.secret, revision) == expected, name

    # Whether something changes about it, or not.
    before = await scopes_of(places, live, unknown := new_secret(f"{prefix}_"))
    cursor = (await places.caches.Sync(cache_service_pb2.SyncRequest())).cursor
    await places.root.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=foreign["live"].api_key.name))
    await places.root.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=foreign["live"].api_key.name))
    synced = await places.caches.Sync(cache_service_pb2.SyncRequest(cursor=cursor))
    assert synced.changes
    assert not any(change.secret for change in synced.changes)
    assert await scopes_of(places, live, unknown) == before
    after = [await said_of(places, secret, synced.revision) for secret in (live, unknown)]
    assert after[0] == after[1]


async def test_a_secret_is_heard_of_where_it_may_be_checked(places: Places) -> None:
    """Of two that do not exist yet, the one that comes to be in another product stays unknown."""
    secrets = [new_secret("hey_") for _ in range(2)]
    mine, foreign = await scopes_of(places, *secrets)
    cursor = (await places.caches.Sync(cache_service_pb2.SyncRequest())).cursor
    keyring = Keyring(parse_peppers(PEPPERS))
    for secret, tenant in zip(secrets, (places.mine, places.foreign), strict=True):
        key = (await places.key(tenant)).api_key.name
        await places.sql.execute(
            """
            insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
            select tenant_uid, key_uid, 2, $2, 1, 'hint' from api_key where key_uid = $1
            """,
            parse_key_id(key.rsplit("/", 1)[1]),
            keyring.digests(secret)[0],
        )
    await heard_of_all(places)
    told = {
        change.secret for change in (await places.caches.Sync(cache_service_pb2.SyncRequest(cursor=cursor))).changes
    }
    assert set(mine) <= told
    assert not set(foreign) & told
    request = cache_service_pb2.ResolveRequest(keys=secrets, rules=RULES)
    first, second = (await places.caches.Resolve(request)).results
    assert first.HasField("key")
    assert list(second.secret_scopes) == foreign


class Blind(Database):
    """A database from which what is stored about some secrets cannot be read."""

    unreadable: frozenset[bytes] = frozenset()

    async def fetch(self, sql: str, *arguments: object) -> Any:
        if sql == queries.snapshots_by_digest.sql and self.unreadable & set(arguments[-1]):  # type: ignore[call-overload]
            raise ValueError("a value that the driver does not know")
        return await super().fetch(sql, *arguments)


async def test_revisions_tell_nothing_of_when_it_was_looked_up(places: Places, database_url: str) -> None:
    """A process that is behind the database, and remembers one of the secrets from before."""
    keyring, history, lease = Keyring(parse_peppers(PEPPERS)), InvalidationIndex(), PrimaryLease()
    async with Blind.connect(database_url, max_connections=2, statement_timeout_s=5, acquire_timeout_s=5) as database:
        source = SnapshotSource(database, history, lease, max_entries=100, max_bytes=10**6)
        at = await database.fetch("select current, stamp, pg_postmaster_start_time() as server from revision")
        server, position = at[0]["server"], Position(at[0]["current"], at[0]["stamp"])
        history.apply(Poll(position, True, [], server))
        lease.renew(clock.now(), server)
        foreign, unknown = (await places.key(places.foreign)).secret, new_secret("hey_")
        broken, torn = (await places.key(places.foreign)).secret, (await places.key(places.foreign)).secret
        await places.sql.execute(
            """
            update api_key set grants = '{"no": 1}' where key_uid = (select key_uid from secret where digest = $1)
            """,
            keyring.digests(broken)[0],
        )
        database.unreadable = frozenset(keyring.digests(torn))
        await source.get(keyring.digests(foreign))
        await places.key(places.foreign)
        questions = [
            Question(keyring.digests(secret), Request(("campaigns",), "read"), min_revision)
            for min_revision in (0, position.revision + 1)
            for secret in (foreign, unknown, broken, torn, foreign, unknown)
        ]
        token = keyring.digests(str(places.caller.token))
        _, results = await checks.check_each(source, token, questions, datetime.now(UTC))
        assert len(set(results[:6])) == len(set(results[6:])) == 1
        for result, question in zip(results, questions, strict=True):
            assert isinstance(result, CheckResult)
            assert (result.decision, result.snapshot) == (KEY_UNKNOWN, None)
            assert result.revision >= max(position.revision, question.min_revision)
        root = keyring.digests(str(places.root.token))
        _, results = await checks.check_each(source, root, questions, datetime.now(UTC))
        assert [isinstance(result, Unreadable) for result in results[:6]] == [False, False, True, True, False, False]
