"""The revision and the changes behind it, against a real PostgreSQL: whoever makes a change, it is recorded."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from gatekey.core.changes import NOWHERE, Commit, Poll, Position, ScopeChange
from gatekey.core.errors import Unavailable
from gatekey.core.lease import MAX_REMOTE_LEASE_S
from gatekey_server.store import changes, schema
from gatekey_server.store.changes import FORK_WAIT_S, ChangeConnection
from gatekey_server.store.database import Database
from gatekey_server.store.queries import queries

from tests.support.databases import Databases, Sql

# Read with the snapshots, and of no weight for a decision.
NO_MATTER = {"revision", "key_usage"}


@pytest.fixture
async def url(databases: Databases) -> str:
    """A database with a product, two tenants, a member with two keys in each, and a publishable key."""
    url = await databases.create()
    connection = await asyncpg.connect(url)
    await connection.execute(
        """
        insert into pepper values (1, decode(repeat('00', 16), 'hex'));
        insert into product (product_id, spec, spec_digest, spec_version, built_in)
            values ('p', '{}', decode(repeat('00', 32), 'hex'), 1, false);
        insert into tenant (product_id, tenant_id, display_name) values ('p', 'a', ''), ('p', 'b', '');
        insert into principal (tenant_uid, kind, principal_id, role, display_name)
            select tenant_uid, 'MEMBER', 'm', 'r', '' from tenant;
        insert into api_key (tenant_uid, key_uid, principal_uid, display_name, kind, mode)
            select tenant_uid, gen_random_uuid(), principal_uid, 'k', 'SECRET', 'ALL'
            from principal, generate_series(1, 2);
        insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
            select tenant_uid, key_uid, 1, sha256(key_uid::text::bytea), 1, 'h' from api_key;
        """
    )
    await connection.close()
    return url


@pytest.fixture
async def sql(url: str) -> AsyncIterator[Sql]:
    """A connection for SQL by hand."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


class Follower:
    """A process that follows the changes."""

    def __init__(self, link: ChangeConnection) -> None:
        self.link = link
        self.at = NOWHERE

    async def poll(self) -> Poll:
        poll = await self.link.poll(self.at)
        self.at = poll.head
        return poll

    async def news(self) -> list[ScopeChange]:
        """What has changed since the last time."""
        poll = await self.poll()
        assert poll.changes is not None
        return list(poll.changes)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """A pool, as the server has it."""
    async with Database.connect(url, max_connections=4, statement_timeout_s=5, acquire_timeout_s=5) as database:
        yield database


@pytest.fixture
async def follower(database: Database) -> AsyncIterator[Follower]:
    """A registered process that has seen everything so far."""
    async with ChangeConnection.open(database, uuid.uuid4(), 5) as link:
        follower = Follower(link)
        await link.register(NOWHERE)
        await follower.poll()
        yield follower


def scopes(news: list[ScopeChange]) -> set[str]:
    """Of which kinds the changed scopes are."""
    kinds = set()
    for change in news:
        if change.digest is not None:
            kinds.add("secret")
        elif change.key_uid is not None:
            kinds.add("key")
        elif change.principal_uid is not None:
            kinds.add("principal")
        elif change.tenant_uid is not None:
            kinds.add("tenant")
        elif change.product is not None:
            kinds.add("product")
        else:
            kinds.add("everything")
    return kinds


# ---------------------------------------------------------------- what is recorded


async def test_every_table_that_a_decision_reads_records_its_changes(sql: Sql) -> None:
    statement = queries.snapshots_by_digest.sql
    plan = json.loads(await sql.fetchval(f"explain (format json, verbose) {statement}", [], []))
    read = set()

    def walk(node: dict[str, Any]) -> None:
        if "Relation Name" in node:
            read.add(node["Relation Name"])
        for child in node.get("Plans", ()):
            walk(child)

    walk(plan[0]["Plan"])
    assert {"secret", "api_key", "tenant", "principal", "product"} <= read
    rows = await sql.fetch(
        """
        select relname, array_agg(tgname order by tgname) as triggers from pg_trigger
        join pg_class on pg_class.oid = tgrelid where not tgisinternal and tgenabled = 'O' group by relname
        """
    )
    triggers = {row["relname"]: set(row["triggers"]) for row in rows}
    wanted = {"record_insert", "record_update", "record_delete", "record_truncate"}
    assert {table for table in read - NO_MATTER if not wanted <= triggers.get(table, set())} == set()


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("update product set spec_version = 2", {"product"}),
        ("update tenant set suspend_time = now() where tenant_id = 'a'", {"tenant"}),
        ("update principal set role = 'x' where tenant_uid = (select min(tenant_uid) from tenant)", {"principal"}),
        ("update api_key set revoke_time = now()", {"key"}),
        ("update secret set expire_time = now()", {"secret"}),
        ("delete from secret", {"secret"}),
        ("delete from api_key", {"key", "secret"}),
        ("delete from principal", {"principal", "key", "secret"}),
        ("delete from tenant", {"tenant", "principal", "key", "secret"}),
        ("truncate secret", {"everything"}),
        ("truncate product cascade", {"everything"}),
        (
            (
                "insert into product (product_id, spec, spec_digest, spec_version, built_in)"
                " values ('q', '{}', decode(repeat('01', 32), 'hex'), 1, false)"
            ),
            {"product"},
        ),
        ("insert into tenant (product_id, tenant_id, display_name) values ('p', 'c', '')", {"tenant"}),
        (
            (
                "insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)"
                " select tenant_uid, key_uid, 2, sha256('x' || key_uid::text::bytea), 1, 'h' from api_key"
            ),
            {"secret"},
        ),
        ("merge into tenant using (select 1) as one on tenant_id = 'a' when matched then delete", None),
        ("update tenant set suspend_time = now() where tenant_id = 'nobody'", set()),
        ("insert into key_usage select tenant_uid, key_uid, now() from api_key", set()),
    ],
)
async def test_what_is_changed_by_hand_is_recorded(
    sql: Sql, follower: Follower, statement: str, expected: set[str] | None
) -> None:
    before = follower.at.revision
    await sql.execute(statement)
    news = await follower.news()
    assert scopes(news) == ({"tenant", "principal", "key", "secret"} if expected is None else expected)
    assert follower.at.revision == before + bool(news)
    assert {change.revision for change in news} <= {follower.at.revision}


async def test_a_cascade_names_all_that_it_took(sql: Sql, follower: Follower) -> None:
    rows = await sql.fetch(
        "select tenant_uid, key_uid, principal_uid from api_key join tenant using (tenant_uid) where tenant_id = 'a'"
    )
    await sql.execute("delete from tenant where tenant_id = 'a'")
    news = await follower.news()
    assert {change.key_uid for change in news if change.key_uid} == {row["key_uid"] for row in rows}
    assert {change.principal_uid for change in news if change.principal_uid} == {row["principal_uid"] for row in rows}
    assert {change.tenant_uid for change in news} == {rows[0]["tenant_uid"]}


async def test_a_move_is_recorded_where_it_came_from_and_where_it_went(sql: Sql, follower: Follower) -> None:
    await sql.execute(
        "insert into principal (tenant_uid, kind, principal_id, role, display_name)"
        " select tenant_uid, 'MEMBER', 'n', 'r', '' from tenant"
    )
    await follower.news()
    await sql.execute("update principal set principal_uid = default where principal_id = 'n'")
    news = await follower.news()
    assert len({change.principal_uid for change in news}) == 4


async def test_a_large_statement_is_recorded_by_its_tenants_or_as_everything(sql: Sql, follower: Follower) -> None:
    add = """
        insert into api_key (tenant_uid, key_uid, display_name, kind)
        select tenant_uid, gen_random_uuid(), 'many', 'PUBLISHABLE' from tenant, generate_series(1, $1)
    """
    await sql.execute(add, 50)
    assert (scopes(news := await follower.news()), len(news)) == ({"key"}, 100)
    await sql.execute(add, 51)
    assert (scopes(news := await follower.news()), len(news)) == ({"tenant"}, 2)
    await sql.execute(
        "insert into tenant (product_id, tenant_id, display_name)"
        " select 'p', number::text, '' from generate_series(1, 101) as number"
    )
    assert (scopes(news := await follower.news()), len(news)) == ({"everything"}, 1)


async def test_what_is_rolled_back_never_was(sql: Sql, follower: Follower) -> None:
    before = follower.at.revision
    transaction = sql.transaction()
    await transaction.start()
    await sql.execute("delete from tenant")
    await transaction.rollback()
    async with sql.transaction():
        inner = sql.transaction()
        await inner.start()
        await sql.execute("delete from tenant")
        await inner.rollback()
    assert await follower.news() == []
    assert follower.at.revision == before


async def test_a_transaction_has_one_revision_and_takes_another_for_what_comes_after_it(
    sql: Sql, follower: Follower
) -> None:
    before = follower.at.revision
    async with sql.transaction():
        await sql.execute("update tenant set suspend_time = now()")
        await sql.execute("update principal set role = 'x'")
        for _ in range(2):
            commit = await changes.take_position(sql)
            assert commit.position.revision == before + 1
        await sql.execute("update product set spec_version = 9")
    news = await follower.news()
    assert {(change.revision - before, kind) for change in news for kind in scopes([change])} == {
        (1, "tenant"),
        (1, "principal"),
        (2, "product"),
    }


# ---------------------------------------------------------------- order


async def test_revisions_become_visible_in_their_order_and_without_gaps(url: str, follower: Follower) -> None:
    """However the transactions are interleaved: a poll that has seen a revision has seen all before it."""
    first = follower.at.revision

    async def change(number: int) -> None:
        connection = await asyncpg.connect(url)
        for turn in range(30):
            async with connection.transaction():
                await connection.execute(
                    "update tenant set version = version + 1 where tenant_id = $1", "ab"[number % 2]
                )
                await connection.execute("select pg_sleep(random() * 0.003)")
                if turn % 2:
                    await changes.take_position(connection)
        await connection.close()

    seen: list[int] = []
    writing = asyncio.gather(*(change(number) for number in range(6)))
    while not writing.done() or not seen or seen[-1] < first + 180:
        seen += sorted({change.revision for change in await follower.news()})
        await asyncio.sleep(0)
    await writing
    assert seen == list(range(first + 1, first + 181))


# ---------------------------------------------------------------- polls


async def test_a_process_that_is_not_registered_is_told(database: Database) -> None:
    async with ChangeConnection.open(database, uuid.uuid4(), 5) as link:
        assert not (await link.poll(NOWHERE)).registered
        await link.register(NOWHERE)
        assert (await link.poll(NOWHERE)).registered
        (process,) = await link.processes()
        assert process.applied_revision == -1
        await link.poll(NOWHERE)
        await link.remove(process)
        assert (await link.poll(NOWHERE)).registered, "it had polled since"
        (process,) = await link.processes()
        await link.remove(process)
        assert not (await link.poll(NOWHERE)).registered


async def test_a_process_that_came_back_is_not_taken_for_the_one_that_was_seen_before(database: Database) -> None:
    uid = uuid.uuid4()
    async with ChangeConnection.open(database, uid, 5) as link:
        seen = []
        for _ in range(2):
            await link.register(NOWHERE)
            await link.poll(NOWHERE)
            seen += await link.processes()
            await link.remove(seen[-1])
            assert not await link.processes()
        await link.register(NOWHERE)
        await link.poll(NOWHERE)
        for before in seen:
            await link.remove(before)
        (process,) = await link.processes()
    assert process.uid == uid
    assert len({process.last_poll, *(before.last_poll for before in seen)}) == 3


async def test_a_poll_acknowledges_what_was_applied(sql: Sql, database: Database, follower: Follower) -> None:
    await sql.execute("update tenant set suspend_time = now()")
    await follower.poll()
    (behind,) = await changes.processes(database)
    assert behind.applied_revision < follower.at.revision
    await follower.poll()
    (level,) = await changes.processes(database)
    assert level.applied_revision == follower.at.revision


async def test_another_history_is_not_continued(sql: Sql, database: Database, follower: Follower) -> None:
    await sql.execute("update tenant set suspend_time = now()")
    await follower.news()
    here = follower.at
    assert (await follower.link.poll(here)).changes == []
    # As after a failover that lost a commit, and another that took its number.
    await sql.execute("update tenant set suspend_time = null")
    await sql.execute("update change set stamp = gen_random_uuid() where revision = $1", here.revision)
    assert (await follower.link.poll(here)).changes is None
    assert (await follower.link.poll(Position(here.revision + 5, here.stamp))).changes is None
    (process,) = await changes.processes(database)
    assert process.applied_revision == -1, "another change will get that revision, and it has not applied that one"


async def test_a_process_that_is_too_far_behind_starts_anew(
    sql: Sql, database: Database, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = follower.at
    for _ in range(20):
        await sql.execute("update tenant set version = version + 1")
    assert len((await follower.link.poll(behind)).changes or ()) == 40
    monkeypatch.setattr(changes, "MAX_CHANGES", 30)
    assert (await follower.link.poll(behind)).changes is None
    monkeypatch.undo()
    monkeypatch.setattr(changes, "KEPT_REVISIONS", 5)
    assert await changes.purge(database) >= 30
    assert (await follower.link.poll(behind)).changes is None
    await follower.poll()
    assert (await follower.link.poll(follower.at)).changes == [], "the newest is never forgotten"


async def test_a_notification_wakes_and_silence_does_not(sql: Sql, follower: Follower) -> None:
    waiting = asyncio.create_task(follower.link.wait(20))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await sql.execute("update tenant set suspend_time = now()")
    async with asyncio.timeout(5):
        await waiting
    await follower.poll()
    async with asyncio.timeout(5):
        await follower.link.wait(0.05)


async def test_a_lease_cannot_be_had_from_what_cannot_commit(sql: Sql, database: Database) -> None:
    """A standby, or a primary that is not one any more."""
    async with ChangeConnection.open(database, uuid.uuid4(), 5) as link:
        await link.register(NOWHERE)
        await link.poll(NOWHERE)
        await link._connection.execute("set default_transaction_read_only = on")
        with pytest.raises(Unavailable):
            await link.poll(NOWHERE)
        await sql.execute(
            f"alter database {await sql.fetchval('select current_database()')} set default_transaction_read_only = on"
        )
        with pytest.raises(Unavailable):
            async with ChangeConnection.open(database, uuid.uuid4(), 5):
                pytest.fail("connected to what takes no writes")


async def test_a_link_ends_where_the_database_does_not_answer(url: str, sql: Sql, database: Database) -> None:
    async with ChangeConnection.open(database, uuid.uuid4(), 0.5) as link:
        await link.register(NOWHERE)
        async with sql.transaction():
            await sql.execute("lock table process")
            with pytest.raises(Unavailable):
                await link.poll(NOWHERE)


async def test_registration_counts_only_what_this_history_knows(
    sql: Sql, database: Database, follower: Follower
) -> None:
    await sql.execute("update tenant set suspend_time = now()")
    here = (await follower.poll()).head
    elsewhere = Position(here.revision, uuid.uuid4())
    for applied, acknowledged in ((here, here.revision), (elsewhere, -1), (NOWHERE, -1)):
        uid = uuid.uuid4()
        async with ChangeConnection.open(database, uid, 5) as link:
            await link.register(applied)
        found = {process.uid: process.applied_revision for process in await changes.processes(database)}
        assert found[uid] == acknowledged


# ---------------------------------------------------------------- copies


async def test_a_copy_begins_a_history_of_its_own(url: str, databases: Databases) -> None:
    async def position(of: str, *, change: bool) -> Commit:
        connection = await asyncpg.connect(of)
        async with connection.transaction():
            if change:
                await connection.execute("update tenant set version = version + 1")
            commit = await changes.take_position(connection)
        await connection.close()
        return commit

    before = await position(url, change=True)
    copy = await databases.create(urlsplit(url).path[1:])
    found = await position(copy, change=False)
    # Even what changes nothing: its position must not be one that the former history has as well.
    assert found.position.revision > before.position.revision + 2**20
    assert found.position.stamp != before.position.stamp
    assert found.is_after_fork
    assert await position(copy, change=False) == found
    assert (await position(copy, change=True)).position.revision == found.position.revision + 1
    # However much has happened in the former one meanwhile.
    for _ in range(4):
        await position(url, change=True)
    after = await position(url, change=True)
    assert before.position.revision < after.position.revision < found.position.revision
    assert FORK_WAIT_S > MAX_REMOTE_LEASE_S


async def test_a_new_database_is_no_copy(databases: Databases) -> None:
    url = await databases.create("template0")
    await schema.migrate(url)
    connection = await asyncpg.connect(url)
    commit = await changes.take_position(connection)
    await connection.close()
    assert (commit.position.revision, commit.is_after_fork) == (0, False)
