"""A database role for servers that has what they need and no more: the audit log is append-only for it."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote

import asyncpg
import pytest
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2, audit_service_pb2, tenant_service_pb2
from gatekey_server.store import schema
from gatekey_server.store.schema import SchemaError

from tests.integration.test_service import run_async
from tests.support.databases import Databases
from tests.support.server import PEPPERS, Client, ServerProcess, read_example


@dataclass(frozen=True)
class Place:
    """A database without a schema, its owner and a role without rights."""

    url: str
    """As the superuser."""
    database: str
    owner: str
    role: str

    def url_of(self, role: str) -> str:
        """The same database as another role."""
        return self.url.replace("//gatekey@", f"//{quote(role, safe='')}@")

    async def execute(self, *statements: str, role: str | None = None) -> None:
        """Run statements as a role, or as the superuser; `ROLE`, `OWNER` and `DATABASE` stand for the names."""
        connection = await asyncpg.connect(self.url_of(role) if role else self.url)
        try:
            for statement in statements:
                names = {"ROLE": self.role, "OWNER": self.owner, "DATABASE": self.database}
                for word, name in names.items():
                    quoted = name.replace('"', '""')
                    statement = statement.replace(word, f'"{quoted}"')
                await connection.execute(statement)
        finally:
            await connection.close()

    async def privileges(self, relation: str) -> set[str]:
        """What the role may do with a relation."""
        every = ("select", "insert", "update", "delete", "truncate", "references", "trigger")
        connection = await asyncpg.connect(self.url)
        try:
            check = "select has_table_privilege($1::name, $2, $3)"
            return {name for name in every if await connection.fetchval(check, self.role, relation, name)}
        finally:
            await connection.close()

    async def grants(self) -> int:
        """How many privileges on tables, views and sequences the role was given by name."""
        connection = await asyncpg.connect(self.url)
        try:
            count = """
                select count(*) from pg_class, aclexplode(relacl) as acl, pg_roles
                where pg_roles.oid = acl.grantee and rolname = $1
            """
            return int(await connection.fetchval(count, self.role))
        finally:
            await connection.close()


@pytest.fixture
async def place(databases: Databases) -> Place:
    """A database of its own; both roles have names that need quotes."""
    url = await databases.create(template="template1")
    unique = uuid.uuid4().hex[:8]
    database = url.rpartition("?")[0].rpartition("/")[2]
    made = Place(url, database, f"Owner {unique}", f'Server"{unique}%:x')
    await made.execute("create role OWNER login", "create role ROLE login", "alter database DATABASE owner to OWNER")
    return made


async def grant(place: Place) -> None:
    await schema.migrate(place.url_of(place.owner), grant_to=place.role)


@pytest.fixture
async def granted(place: Place) -> Place:
    """The same with a schema, and what a server needs granted to the role."""
    await grant(place)
    return place


@pytest.fixture
async def served(place: Place) -> AsyncIterator[tuple[ServerProcess, Client]]:
    """A server that uses the role, all the way through the command line."""
    result = await run_async(
        "migrate",
        "--grant-to",
        place.role,
        GATEKEY_DATABASE_URL=place.url_of(place.owner),
        GATEKEY_PEPPERS=PEPPERS,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert f"The role {place.role} has what a server needs, and no more" in result.stdout
    token = new_secret("gk_")
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": place.url_of(place.role),
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_ROOT_TOKEN": token,
            "GATEKEY_MAINTENANCE_INTERVAL_S": "0.2",
            "GATEKEY_USAGE_FLUSH_S": "0.2",
            "GATEKEY_TENANT_RETENTION_DAYS": "0",
            "GATEKEY_KEY_RETENTION_DAYS": "0",
        }
    )
    client = Client(server.address, token)
    yield server, client
    await client.close()
    assert await server.stop() == 0
    output = "".join(server.output)
    assert "rpc.failed" not in output
    assert "Traceback" not in output


@pytest.mark.slow
async def test_a_server_can_do_everything_with_the_role(served: tuple[ServerProcess, Client]) -> None:
    server, client = served
    await client.apply(read_example("heyoo"))
    tenant = await client.create_tenant("heyoo", "acme")
    owner = await client.add_member(tenant, "owner", "owner")
    created = await client.create_key(tenant, owner)
    name = created.api_key.name
    assert await client.verdict(created.secret, "campaigns", "read") == "ALLOWED"
    request = api_key_service_pb2.RotateApiKeyRequest(name=name, request_id=str(uuid.uuid4()))
    rotated = await client.keys.RotateApiKey(request)
    assert await client.verdict(rotated.secret, "campaigns", "read") == "ALLOWED"
    await client.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=name))
    assert await client.verdict(rotated.secret, "campaigns", "read") == "KEY_UNKNOWN"
    await client.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant))

    events = audit_service_pb2.ListAuditEventsRequest(parent=tenant)
    async with asyncio.timeout(20):
        while True:
            answer = await client.audit.ListAuditEvents(events)
            verbs = [event.verb for event in answer.audit_events]
            if verbs[-1] == "PurgeTenant":
                break
            await asyncio.sleep(0.1)
    assert verbs[:-1] == ["CreateTenant", "AddMember", "CreateApiKey", "RotateApiKey", "DeleteApiKey", "DeleteTenant"]
    assert "maintenance.postponed" not in "".join(server.output)
    assert "usage.write_postponed" not in "".join(server.output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "refusal"),
    [
        ("update audit_event set verb = 'x'", "permission denied for table audit_event"),
        ("delete from audit_event", "permission denied for table audit_event"),
        ("truncate audit_event", "permission denied for table audit_event"),
        ("insert into audit_event select * from audit_event on conflict do nothing", None),
        ("alter table audit_event disable trigger all", "must be owner of table audit_event"),
        ("alter table audit_event disable trigger audit_event_append_only", "must be owner of table audit_event"),
        ("drop trigger audit_event_append_only on audit_event", "must be owner of relation audit_event"),
        ("alter table audit_event add column x text", "must be owner of table audit_event"),
        ("drop table audit_event", "must be owner of table audit_event"),
        ("create or replace function refuse_change() returns trigger return null", "permission denied for schema"),
        ("set session_replication_role = replica", "permission denied to set parameter"),
        ("select 1 from schema_version", None),
        ("update schema_version set version_num = '9999'", "permission denied for table schema_version"),
        ("create table x ()", "permission denied for schema public"),
        ("create schema x", "permission denied for database"),
        ("drop table product cascade", "must be owner of table product"),
        ("truncate product cascade", "permission denied for table product"),
        ("drop schema public cascade", "must be owner of schema public"),
        ("set role OWNER", "permission denied to set role"),
    ],
)
async def test_what_the_role_cannot_do(granted: Place, statement: str, refusal: str | None) -> None:
    if refusal is None:
        await granted.execute(statement, role=granted.role)
        return
    # The trigger's refusal has the same code: only the text tells that the role was not even asked.
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match=refusal):
        await granted.execute(statement, role=granted.role)


async def test_what_the_role_has_too_much_is_taken_away(granted: Place) -> None:
    await granted.execute(
        "grant all on audit_event, schema_version to ROLE",
        "grant update (hash) on audit_event to ROLE",
        "grant truncate, trigger on product to ROLE with grant option",
        "grant all on api_key_detail to ROLE",
        "grant all on schema public to ROLE",
        "grant all on database DATABASE to ROLE",
        role=granted.owner,
    )
    assert "update" in await granted.privileges("audit_event")
    await grant(granted)
    assert await granted.privileges("audit_event") == {"select", "insert"}
    assert await granted.privileges("schema_version") == {"select"}
    assert await granted.privileges("product") == {"select", "insert", "update", "delete"}
    assert await granted.privileges("api_key_detail") == {"select"}
    for statement in ("create table x ()", "create schema x"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await granted.execute(statement, role=granted.role)


async def test_what_a_later_migration_adds_is_granted_by_the_next_run(granted: Place) -> None:
    await granted.execute(
        'create table "Later" (id bigint generated always as identity)',
        "create sequence counter",
        'create view seen as select * from "Later"',
        "create function twice(integer) returns integer return $1 * 2",
        "revoke execute on function twice from public",
        role=granted.owner,
    )
    uses = ('insert into "Later" default values', "select nextval('counter')", "select * from seen", "select twice(1)")
    for use in uses:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await granted.execute(use, role=granted.role)
    await grant(granted)
    await granted.execute(*uses, role=granted.role)
    assert await granted.privileges('"Later"') == {"select", "insert", "update", "delete"}
    assert await granted.privileges("seen") == {"select"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statements", "refusal"),
    [
        (("drop role ROLE",), "there is no role `Server"),
        (("alter role ROLE superuser",), "is a superuser"),
        (("alter role ROLE createrole",), "can make itself a member of other roles"),
        (("alter database DATABASE owner to ROLE", "grant ROLE to OWNER"), "owns the database, its schema or"),
        (("alter schema public owner to ROLE", "grant ROLE to OWNER"), "owns the database, its schema or"),
        (("grant OWNER to ROLE",), "is a member of `Owner"),
        (("alter role ROLE noinherit", "grant OWNER to ROLE"), "is a member of `Owner"),
        (("grant pg_write_all_data to ROLE",), "is a member of `pg_write_all_data`, which can change `audit_event`"),
        (("grant delete on audit_event to public",), "can change `audit_event`"),
        (("grant update (hash) on audit_event to public",), "can change `audit_event`"),
        (("grant create on schema public to public",), "can create in the schema"),
    ],
)
async def test_a_role_that_could_do_more_all_the_same_is_refused(
    place: Place, statements: tuple[str, ...], refusal: str
) -> None:
    url = place.url_of(place.owner)
    await schema.migrate(url)
    await place.execute(*statements)
    with pytest.raises(SchemaError, match="nothing was granted: ") as raised:
        await grant(place)
    assert refusal in str(raised.value)
    assert await place.grants() == 0


async def test_the_owner_of_the_tables_is_refused(place: Place) -> None:
    with pytest.raises(SchemaError, match="owns the database, its schema or something in it"):
        await schema.migrate(place.url_of(place.owner), grant_to=place.owner)


async def test_a_database_of_another_role_will_do_where_all_can_connect(place: Place) -> None:
    await place.execute("alter database DATABASE owner to gatekey", "grant all on schema public to OWNER")
    await grant(place)
    assert await place.grants() > 0
    await place.execute(
        "revoke connect on database DATABASE from public", "grant connect on database DATABASE to OWNER"
    )
    with pytest.raises(SchemaError, match=r"database .* belongs to another role; migrate as that one"):
        await grant(place)


async def test_only_the_owner_grants(granted: Place) -> None:
    with pytest.raises(SchemaError, match="belongs to another role; migrate as that one"):
        await schema.migrate(granted.url_of(granted.role), grant_to=granted.role)


async def test_a_refusal_on_the_command_line(place: Place) -> None:
    variables = {"GATEKEY_DATABASE_URL": place.url_of(place.owner), "GATEKEY_PEPPERS": PEPPERS}
    refused = await run_async("migrate", "--grant-to", "nobody; drop table product", **variables)
    assert refused.returncode == 1
    assert refused.stderr == "error: nothing was granted: there is no role `nobody; drop table product`\n"


@pytest.mark.slow
async def test_a_role_that_may_not_migrate_is_told_so(place: Place) -> None:
    variables = {"GATEKEY_DATABASE_URL": place.url_of(place.role), "GATEKEY_PEPPERS": PEPPERS}
    refused = await run_async("migrate", **variables)
    assert refused.returncode == 1
    assert refused.stderr == "error: the role that migrates may not do that: permission denied for schema public\n"


async def test_an_embedded_database_has_no_other_roles() -> None:
    refused = await run_async("migrate", "--grant-to", "x")
    assert refused.returncode == 1
    assert "--grant-to needs GATEKEY_DATABASE_URL" in refused.stderr
