"""Reading the target of a command, or raising the error for a missing one."""

import uuid

from gatekey.core.entities import ApiKey, Principal, Product, Tenant, TenantState
from gatekey.core.errors import FailedPrecondition, NotFound
from gatekey.core.names import (
    ApiKeyName,
    MachineUserName,
    PrincipalName,
    ProductName,
    TenantName,
    parse_key_id,
)

from gatekey_server.authorization.callers import product_not_found
from gatekey_server.store import api_keys, principals, products, tenants
from gatekey_server.store.database import Connection


async def product(connection: Connection, name: ProductName) -> Product:
    """Return a product. Raises `NotFound` (`PRODUCT_NOT_FOUND`)."""
    found = await products.get(connection, name)
    if found is None:
        raise product_not_found(name.product)
    return found


async def tenant(connection: Connection, name: TenantName) -> Tenant:
    """Return a tenant. Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`)."""
    found = await tenants.get(connection, name)
    if found is None:
        raise _tenant_not_found(name, await product(connection, ProductName(name.product)))
    return found


async def product_and_tenant(connection: Connection, name: TenantName) -> tuple[Product, Tenant]:
    """Return a product and a tenant of it. Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`)."""
    found_product = await product(connection, ProductName(name.product))
    return found_product, await tenant(connection, name)


async def tenant_for_change(
    connection: Connection, name: TenantName, *, deleted: bool = False
) -> tuple[Product, Tenant]:
    """Lock a tenant and its product's spec for a change inside the tenant; a deleted tenant only if `deleted`.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`) and `FailedPrecondition` (`TENANT_DELETED`).
    """
    found_product = await products.lock_shared(connection, ProductName(name.product))
    if found_product is None:
        raise product_not_found(name.product)
    found = await tenants.lock(connection, name)
    if found is None:
        raise _tenant_not_found(name, found_product)
    if found.state is TenantState.DELETED and not deleted:
        noun = found_product.compiled.tenant_noun
        raise FailedPrecondition("TENANT_DELETED", f"the {noun} `{name}` is deleted", metadata={"tenant": str(name)})
    return found_product, found


async def principal(connection: Connection, within: Tenant, name: PrincipalName) -> Principal:
    """Return a principal. Raises `NotFound` (`MEMBER_NOT_FOUND`, `MACHINE_USER_NOT_FOUND`)."""
    found = await principals.get(connection, within, name)
    if found is None:
        raise principal_not_found(name)
    return found


async def api_key(connection: Connection, within: Tenant, name: ApiKeyName) -> ApiKey:
    """Return a key. Raises `NotFound` (`API_KEY_NOT_FOUND`)."""
    found = await api_keys.get(connection, within, key_uid(name))
    if found is None:
        raise api_key_not_found(name)
    return found


def key_uid(name: ApiKeyName) -> uuid.UUID:
    """Return a key's uid, from its name. Raises `NotFound` (`API_KEY_NOT_FOUND`)."""
    uid = parse_key_id(name.api_key)
    if uid is None:
        raise api_key_not_found(name)
    return uid


def principal_not_found(name: PrincipalName) -> NotFound:
    """Return the error for a principal that does not exist."""
    if isinstance(name, MachineUserName):
        return NotFound("MACHINE_USER_NOT_FOUND", f"there is no machine user `{name}`")
    return NotFound("MEMBER_NOT_FOUND", f"there is no member `{name}`")


def api_key_not_found(name: ApiKeyName) -> NotFound:
    """Return the error for a key that does not exist."""
    return NotFound("API_KEY_NOT_FOUND", f"there is no API key `{name}`")


def _tenant_not_found(name: TenantName, within: Product) -> NotFound:
    return NotFound("TENANT_NOT_FOUND", f"there is no {within.compiled.tenant_noun} `{name}`")
