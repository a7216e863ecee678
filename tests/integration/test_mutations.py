"""A mutation whose response cannot be written has not happened."""

import uuid
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest
from gatekey.core.names import ApiKeyName, TenantName
from gatekey_server.authorization.callers import Caller
from gatekey_server.commands import mutations
from gatekey_server.commands.mutations import Mutation, MutationOutcome
from gatekey_server.store.database import Connection, Database

from tests.support.databases import Databases

NAME = TenantName("p", "t")


@pytest.mark.parametrize("is_written", [False, True])
async def test_a_response_is_built_before_the_commit(databases: Databases, is_written: bool) -> None:
    url = await databases.create()
    sql = await asyncpg.connect(url)
    await sql.execute(
        "insert into product (product_id, spec, spec_digest, spec_version, built_in)"
        " values ('p', '{}', decode(repeat('00', 32), 'hex'), 1, false);"
        "insert into tenant (product_id, tenant_id, display_name) values ('p', 't', 'before')"
    )
    snapshot = SimpleNamespace(product="p", tenant="t", key_id="key_1", uid=(1, uuid.uuid4()))
    caller = cast(
        "Caller",
        SimpleNamespace(snapshot=snapshot, now=datetime.now(UTC), name=ApiKeyName(TenantName("p", "other"), "key_1")),
    )
    settled = []

    async def identify_again(_: Connection) -> Caller:
        return caller

    async def wait_until_visible(*arguments: Any, **_: Any) -> None:
        settled.append(arguments)

    def answer(text: str) -> bytes:
        if not is_written:
            raise OverflowError("year 10000 is out of range")
        return text.encode()

    async def work(connection: Connection) -> MutationOutcome[str]:
        await connection.execute("update tenant set display_name = 'after'")
        return MutationOutcome("after", NAME, {"display_name": "before"}, {"display_name": "after"})

    mutation = Mutation(
        caller=caller,
        identify_again=identify_again,
        verb="Test",
        serialize_response=answer,
        wait_until_visible=wait_until_visible,
    )
    mutation.demand(lambda _: None)
    async with Database.connect(url, max_connections=2, statement_timeout_s=5, acquire_timeout_s=5) as database:
        if is_written:
            await mutations.run(database, mutation, NAME, work)
        else:
            with pytest.raises(OverflowError):
                await mutations.run(database, mutation, NAME, work)
    found = (
        await sql.fetchval("select display_name from tenant"),
        await sql.fetchval("select count(*) from audit_event"),
    )
    assert found == (("after", 1) if is_written else ("before", 0))
    assert len(settled) == is_written
    await sql.close()
