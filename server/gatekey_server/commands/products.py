"""Applying, reading, listing and deleting products."""

from collections.abc import Sequence

from gatekey_server.commands import lookup
from gatekey_server.commands.callers import Caller, product_not_found
from gatekey_server.commands.paging import Page
from gatekey_server.domain import builtin, specs
from gatekey_server.domain.entities import Product
from gatekey_server.domain.errors import FailedPrecondition, InvalidRequest, Violation
from gatekey_server.domain.names import ProductName
from gatekey_server.domain.specs import ProductSpec
from gatekey_server.store import products, tenants
from gatekey_server.store.database import Connection, Database


async def apply_product(
    database: Database, caller: Caller, spec: ProductSpec, *, force: bool, violations: Sequence[Violation] = ()
) -> Product:
    """Create a product, or replace its spec. `violations` were found while the spec was read.

    Raises `InvalidRequest` (`SPEC_INVALID`) with everything that is wrong with the spec, and
    `FailedPrecondition` (`PRODUCT_BUILT_IN`, `PREFIX_TAKEN`, `SPEC_STRANDS`).
    """
    name = ProductName(spec.product)
    try:
        specs.validate(spec, violations)
    except InvalidRequest as error:
        # A spec without a usable id names nothing to be authorised for: only its faults can be told.
        if any(violation.field == "product" for violation in error.violations):
            raise
        caller.require(name.path, "apply")
        raise
    caller.require(name.path, "apply")
    _refuse_built_in(name)

    async def work(connection: Connection) -> Product:
        before = await products.lock(connection, name)
        if before is None:
            after = await products.insert(connection, spec)
            if after is not None:
                await _claim_prefixes(connection, spec)
                return after
            # Another call has just created it; the lock waits for that call's end.
            before = await products.lock(connection, name)
            if before is None:
                raise product_not_found(name.product)
        if before.policy.spec == spec:
            return before
        if not force:
            await _refuse_stranding(connection, name, spec)
        await _claim_prefixes(connection, spec)
        return await products.update_spec(connection, spec, before.spec_version + 1)

    return await database.transaction(work)


async def get_product(database: Database, caller: Caller, name: ProductName) -> Product:
    """Read a product. Raises `NotFound` (`PRODUCT_NOT_FOUND`)."""
    caller.require(name.path, "get")
    async with database.connection() as connection:
        return await lookup.product(connection, name)


async def list_products(database: Database, caller: Caller, after: str, size: int) -> Page[Product]:
    """List products by id, from the one after `after`."""
    caller.require(("products",), "list")
    async with database.connection() as connection:
        found = await products.page(connection, after, size + 1)
    return Page.of(found, size, lambda product: product.name.product)


async def delete_product(database: Database, caller: Caller, name: ProductName, *, force: bool) -> None:
    """Delete a product; with `force`, its tenants as well.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`) and `FailedPrecondition` (`PRODUCT_BUILT_IN`, `PRODUCT_HAS_TENANTS`).
    """
    caller.require(name.path, "delete")
    _refuse_built_in(name)
    if force:
        await _delete_tenants(database, name)

    async def work(connection: Connection) -> None:
        if await products.lock(connection, name) is None:
            raise product_not_found(name.product)
        count = await tenants.count(connection, name)
        if count:
            raise FailedPrecondition(
                "PRODUCT_HAS_TENANTS",
                f"the product `{name.product}` has {count} tenants, deleted ones included",
                metadata={"tenants": str(count)},
            )
        await products.delete(connection, name)

    await database.transaction(work)


async def _delete_tenants(database: Database, name: ProductName) -> None:
    async def mark(connection: Connection) -> None:
        if await products.lock(connection, name) is None:
            raise product_not_found(name.product)
        await tenants.mark_all_deleted(connection, name)

    await database.transaction(mark)
    while True:
        async with database.connection() as connection:
            tenant = await tenants.next_deleted(connection, name)
        if tenant is None:
            return
        await tenants.purge(database, tenant)


async def _claim_prefixes(connection: Connection, spec: ProductSpec) -> None:
    taken = await products.claim_prefixes(connection, spec)
    if taken is not None:
        prefix = spec.prefixes[taken]
        raise FailedPrecondition(
            "PREFIX_TAKEN", f"another product's keys start with `{prefix}`", metadata={"prefix": prefix}
        )


async def _refuse_stranding(connection: Connection, name: ProductName, spec: ProductSpec) -> None:
    roles = {role.role for role in spec.roles}
    by_role = await products.count_members_by_role(connection, name)
    counts = {f"members.{role}": count for role, count in by_role.items() if role not in roles}
    if spec.machine_users is None:
        counts["machine_users"] = await products.count_machine_users(connection, name)
    counts["keys"] = sum(
        group.count
        for group in await products.count_keys_by_permissions(connection, name)
        if specs.strands_key(spec, group.kind, group.mode, group.grants)
    )
    stranded = {what: str(count) for what, count in counts.items() if count}
    if stranded:
        listing = ", ".join(f"{what}: {count}" for what, count in stranded.items())
        raise FailedPrecondition(
            "SPEC_STRANDS",
            f"the spec would leave these without their role, policy, mode or grants ({listing})",
            metadata=stranded,
        )


def _refuse_built_in(name: ProductName) -> None:
    if name == builtin.PRODUCT:
        raise FailedPrecondition("PRODUCT_BUILT_IN", f"the product `{name.product}` is built in and cannot be changed")
