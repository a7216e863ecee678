"""Creating, reading, listing and deleting tenants."""

from gatekey_server.commands import lookup
from gatekey_server.commands.callers import Caller, product_not_found
from gatekey_server.commands.paging import Page
from gatekey_server.domain import builtin
from gatekey_server.domain.entities import Tenant
from gatekey_server.domain.errors import AlreadyExists, FailedPrecondition
from gatekey_server.domain.names import ProductName, TenantName
from gatekey_server.store import products, tenants
from gatekey_server.store.database import Connection, Database


async def create_tenant(database: Database, caller: Caller, name: TenantName, display_name: str) -> Tenant:
    """Create a tenant. Raises `NotFound` (`PRODUCT_NOT_FOUND`) and `AlreadyExists` (`TENANT_EXISTS`)."""
    product = ProductName(name.product)
    caller.require((*product.path, "tenants"), "create")

    async def work(connection: Connection) -> Tenant:
        if await products.lock_shared(connection, product) is None:
            raise product_not_found(product.product)
        tenant = await tenants.insert(connection, name, display_name)
        if tenant is None:
            raise AlreadyExists("TENANT_EXISTS", f"there is a tenant `{name}`; it may be a deleted one")
        return tenant

    return await database.transaction(work)


async def get_tenant(database: Database, caller: Caller, name: TenantName) -> Tenant:
    """Read a tenant, deleted or not. Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`)."""
    caller.require(name.path, "get")
    async with database.connection() as connection:
        return await lookup.tenant(connection, name)


async def list_tenants(
    database: Database, caller: Caller, product: ProductName, after: int, size: int, *, show_deleted: bool
) -> Page[Tenant]:
    """List the tenants of a product, from the one after `after`. Raises `NotFound` (`PRODUCT_NOT_FOUND`)."""
    caller.require((*product.path, "tenants"), "list")
    async with database.connection() as connection:
        await lookup.product(connection, product)
        found = await tenants.page(connection, product, after, size + 1, show_deleted=show_deleted)
    return Page.of(found, size, lambda tenant: tenant.uid)


async def delete_tenant(database: Database, caller: Caller, name: TenantName) -> Tenant:
    """Make a tenant a deleted one; its keys stop working at once.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`) and `FailedPrecondition`
    (`TENANT_DELETED`, `TENANT_BUILT_IN`).
    """
    caller.require(name.path, "delete")
    if name == builtin.SYSTEM_TENANT:
        raise FailedPrecondition("TENANT_BUILT_IN", "the tenant of the service tokens cannot be deleted")

    async def work(connection: Connection) -> Tenant:
        _, tenant = await lookup.tenant_for_change(connection, name)
        return await tenants.mark_deleted(connection, tenant)

    return await database.transaction(work)
