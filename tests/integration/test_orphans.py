"""The check for orphans, which runs after every test on the shared database, finds them."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.support.databases import Databases
from tests.support.orphans import OrphanCheck

ONE_OF_EVERYTHING = """
    insert into pepper values (1, decode(repeat('00', 16), 'hex'));
    insert into product (product_id, spec, spec_digest, spec_version, built_in)
        values ('p', '{}', decode(repeat('00', 32), 'hex'), 1, false);
    insert into secret_prefix values ('p_', 'p', 'SECRET');
    insert into tenant (product_id, tenant_id, display_name) values ('p', 't', '');
    insert into principal (tenant_uid, kind, principal_id, role, display_name)
        select tenant_uid, 'MEMBER', 'm', 'owner', '' from tenant;
    insert into api_key (tenant_uid, key_uid, principal_uid, display_name, kind, mode)
        select tenant_uid, '00000000-0000-0000-0000-000000000001', principal_uid, '', 'SECRET', 'ALL'
        from principal;
    insert into api_key (tenant_uid, key_uid, display_name, kind)
        select tenant_uid, '00000000-0000-0000-0000-000000000002', '', 'PUBLISHABLE' from tenant;
    insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
        select tenant_uid, key_uid, 1, decode(repeat(right(key_uid::text, 2), 32), 'hex'), 1, '' from api_key;
"""


@pytest.fixture
async def check(databases: Databases) -> AsyncIterator[OrphanCheck]:
    """The check of a fresh database that holds one of everything."""
    async with OrphanCheck.open(await databases.create()) as made:
        connection = await asyncpg.connect(made.url)
        await connection.execute(ONE_OF_EVERYTHING)
        await connection.close()
        yield made


@pytest.mark.parametrize(
    ("parent", "orphans"),
    [
        ("pepper", {"secret.secret_pepper_version_fkey": 2}),
        ("product", {"secret_prefix.secret_prefix_product_id_fkey": 1, "tenant.tenant_product_id_fkey": 1}),
        ("tenant", {"principal.principal_tenant_uid_fkey": 1, "api_key.api_key_tenant_uid_fkey": 2}),
        ("principal", {"api_key.api_key_tenant_uid_principal_uid_fkey": 1}),
        ("api_key", {"secret.secret_tenant_uid_key_uid_fkey": 2}),
    ],
)
async def test_a_row_whose_parent_is_gone_is_found(check: OrphanCheck, parent: str, orphans: dict[str, int]) -> None:
    await check.assert_none()
    connection = await asyncpg.connect(check.url)
    # As a replica that takes its primary's word for it: no foreign key is looked at, nothing cascades.
    await connection.execute("set session_replication_role = replica")
    assert await connection.execute(f"delete from {parent}") != "DELETE 0"
    await connection.close()
    assert await check.find() == orphans
    with pytest.raises(AssertionError, match="lost their parent"):
        await check.assert_none()


async def test_every_foreign_key_is_looked_at(check: OrphanCheck) -> None:
    connection = await asyncpg.connect(check.url)
    names = await connection.fetch("select conname from pg_constraint where contype = 'f'")
    await connection.close()
    assert names
    assert all(f".{row['conname']}'" in check.query for row in names)
