"""Creating, reading, changing and deleting tenants."""

from datetime import timedelta

from gatekey.core import builtin
from gatekey.core.audit import describe, describe_with_contents
from gatekey.core.entities import Deleted, Tenant, TenantState
from gatekey.core.errors import AlreadyExists, FailedPrecondition
from gatekey.core.grants import NOTHING
from gatekey.core.names import ProductName, TenantName
from gatekey.core.specs import AccessMode

from gatekey_server.authorization import actors
from gatekey_server.authorization.callers import Caller, product_not_found
from gatekey_server.commands import limits, lookup
from gatekey_server.commands.mutations import Mutation, MutationOutcome, check_etag, run
from gatekey_server.commands.paging import Taker, fill
from gatekey_server.store import products, tenants
from gatekey_server.store.database import Connection, Database
from gatekey_server.store.slices import Slice

SLICE_ROWS = 100

# The operator of the product may do these without an actor in the tenant.
_OPERATORS_ACTIONS = ("suspend", "resume")


async def create_tenant(database: Database, mutation: Mutation[Tenant], name: TenantName, display_name: str) -> Tenant:
    """Create a tenant. Raises `NotFound` (`PRODUCT_NOT_FOUND`) and `AlreadyExists` (`TENANT_EXISTS`)."""
    product = ProductName(name.product)
    mutation.require((*product.path, "tenants"), "create")
    actors.refuse_other_tenant(mutation, None)

    async def work(connection: Connection) -> MutationOutcome[Tenant]:
        found = await products.lock_shared(connection, product)
        if found is None:
            raise product_not_found(product.product)
        tenant = await tenants.insert(connection, name, display_name)
        if tenant is None:
            noun = found.compiled.tenant_noun
            raise AlreadyExists("TENANT_EXISTS", f"there is a {noun} `{name}`; it may be a deleted one")
        return MutationOutcome(tenant, name, None, describe(tenant))

    return await run(database, mutation, name, work)


async def get_tenant(database: Database, caller: Caller, name: TenantName) -> Tenant:
    """Return a tenant, deleted or not. Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`)."""
    caller.require(name.path, "get")
    async with database.connection() as connection:
        return await lookup.tenant(connection, name)


async def list_tenants(
    database: Database,
    caller: Caller,
    product: ProductName,
    after: int,
    page: Taker[Tenant],
    *,
    show_deleted: bool,
) -> str | None:
    """List the tenants of a product, after the cursor `after`. Returns the next cursor.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`).
    """
    caller.require((*product.path, "tenants"), "list")
    async with database.connection() as connection:
        await lookup.product(connection, product)

        async def read(after: int, limit: int) -> Slice[Tenant, int]:
            return await tenants.page(connection, product, after, limit, show_deleted=show_deleted)

        return await fill(page, read, after, lambda tenant: tenant.uid, SLICE_ROWS)


async def update_tenant(
    database: Database, mutation: Mutation[Tenant], name: TenantName, etag: str, *, display_name: str | None
) -> Tenant:
    """Change the arguments that are not None. Raises `Aborted` (`ETAG_MISMATCH`), and as `lookup.tenant_for_change`."""
    mutation.require(name.path, "update")

    async def work(connection: Connection) -> MutationOutcome[Tenant]:
        before = await _lock(connection, mutation, name, "update", etag)
        if display_name is None or display_name == before.display_name:
            return MutationOutcome(before, name, None, None)
        after = await tenants.update(connection, before, display_name)
        return MutationOutcome(after, name, describe(before), describe(after))

    return await run(database, mutation, name, work)


async def suspend_tenant(database: Database, mutation: Mutation[Tenant], name: TenantName, etag: str) -> Tenant:
    """Deny all keys of a tenant until it is resumed.

    Raises `Aborted` (`ETAG_MISMATCH`), `FailedPrecondition` (`TENANT_BUILT_IN`), and as `lookup.tenant_for_change`.
    """
    mutation.require(name.path, "suspend")
    _refuse_built_in(name)

    async def work(connection: Connection) -> MutationOutcome[Tenant]:
        before = await _lock(connection, mutation, name, "suspend", etag)
        after = before if before.suspend_time is not None else await tenants.suspend(connection, before)
        return MutationOutcome(after, name, describe(before), describe(after))

    return await run(database, mutation, name, work)


async def resume_tenant(database: Database, mutation: Mutation[Tenant], name: TenantName, etag: str) -> Tenant:
    """End a suspension. Raises `Aborted` (`ETAG_MISMATCH`), and as `lookup.tenant_for_change`."""
    mutation.require(name.path, "resume")

    async def work(connection: Connection) -> MutationOutcome[Tenant]:
        before = await _lock(connection, mutation, name, "resume", etag)
        _refuse_to_revive_tokens(mutation, name)
        after = before if before.suspend_time is None else await tenants.resume(connection, before)
        return MutationOutcome(after, name, describe(before), describe(after))

    return await run(database, mutation, name, work)


async def delete_tenant(
    database: Database,
    mutation: Mutation[tuple[Tenant, Deleted]],
    name: TenantName,
    etag: str,
    retention: timedelta,
) -> tuple[Tenant, Deleted]:
    """Delete a tenant, to be purged after `retention`. Its keys stop working at once.

    Returns the tenant and what it holds. Raises `Aborted` (`ETAG_MISMATCH`), `FailedPrecondition`
    (`TENANT_BUILT_IN`), and as `lookup.tenant_for_change`.
    """
    mutation.require(name.path, "delete")
    _refuse_built_in(name)

    async def work(connection: Connection) -> MutationOutcome[tuple[Tenant, Deleted]]:
        before = await _lock(connection, mutation, name, "delete", etag)
        contents = await limits.count_contents(connection, before)
        after = await tenants.mark_deleted(connection, before, retention)
        return MutationOutcome((after, contents), name, describe_with_contents(before, contents), describe(after))

    return await run(database, mutation, name, work)


async def undelete_tenant(database: Database, mutation: Mutation[Tenant], name: TenantName, etag: str) -> Tenant:
    """Undelete a tenant.

    Raises `Aborted` (`ETAG_MISMATCH`), `FailedPrecondition` (`TENANT_NOT_DELETED`, `TENANT_PURGE_DUE`), and as
    `lookup.tenant_for_change`.
    """
    mutation.require(name.path, "undelete")

    async def work(connection: Connection) -> MutationOutcome[Tenant]:
        before = await _lock(connection, mutation, name, "undelete", etag, deleted=True)
        if before.state is not TenantState.DELETED:
            raise FailedPrecondition("TENANT_NOT_DELETED", f"`{name}` is not deleted")
        _refuse_to_revive_tokens(mutation, name)
        after = await tenants.undelete(connection, before)
        if after is None:
            raise FailedPrecondition("TENANT_PURGE_DUE", f"the time to undelete `{name}` is over")
        return MutationOutcome(after, name, describe(before), describe(after))

    return await run(database, mutation, name, work)


async def _lock(
    connection: Connection,
    mutation: Mutation[Tenant] | Mutation[tuple[Tenant, Deleted]],
    name: TenantName,
    action: str,
    etag: str,
    *,
    deleted: bool = False,
) -> Tenant:
    product, tenant = await lookup.tenant_for_change(connection, name, deleted=deleted)
    if mutation.actor is not None or action not in _OPERATORS_ACTIONS:
        await actors.authorise(connection, mutation, product.compiled, tenant, "tenant", action)
    check_etag(etag, tenant.etag)
    return tenant


def _refuse_to_revive_tokens(mutation: Mutation[Tenant], name: TenantName) -> None:
    """Raise where the tenant holds service tokens, unless the caller may create any. They are not compared singly."""
    if name.product == builtin.PRODUCT.product:
        mutation.demand(lambda caller: caller.refuse_to_give(AccessMode.ALL, NOTHING))
        mutation.demand(lambda caller: caller.refuse_to_outlive(None))
        mutation.demand(lambda caller: caller.refuse_to_free(actor_required=False))


def _refuse_built_in(name: TenantName) -> None:
    if name == builtin.SYSTEM_TENANT:
        raise FailedPrecondition("TENANT_BUILT_IN", "the tenant of the service tokens cannot be switched off")
