"""Applying, reading, listing and deleting products."""

from collections.abc import Sequence

from gatekey_server.commands import actors, lookup
from gatekey_server.commands.callers import Caller, product_not_found
from gatekey_server.commands.mutations import Change, Mutation, check_etag, refuse_repetition, run
from gatekey_server.commands.paging import Page
from gatekey_server.domain import builtin, specs
from gatekey_server.domain.audit import describe
from gatekey_server.domain.entities import Deleted, Product
from gatekey_server.domain.errors import FailedPrecondition, InvalidRequest, Violation
from gatekey_server.domain.names import ProductName
from gatekey_server.domain.specs import ProductSpec
from gatekey_server.store import products, tenants
from gatekey_server.store.database import Connection, Database


async def apply_product(
    database: Database,
    mutation: Mutation[Product],
    spec: ProductSpec,
    etag: str,
    *,
    force: bool,
    violations: Sequence[Violation] = (),
) -> Product:
    """Create a product, or replace its spec. `violations` were found while the spec was read.

    Raises `InvalidRequest` (`SPEC_INVALID`) with everything that is wrong with the spec, and
    `FailedPrecondition` (`PRODUCT_BUILT_IN`, `PREFIX_TAKEN`, `SPEC_STRANDS`), and `Aborted` (`ETAG_MISMATCH`).
    """
    name, caller = ProductName(spec.product), mutation.caller
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
    actors.refuse_other_tenant(mutation, None)

    async def work(connection: Connection) -> Change[Product]:
        before = await products.lock(connection, name)
        if before is None and not etag:
            after = await products.insert(connection, spec)
            if after is not None:
                await _claim_prefixes(connection, spec)
                return Change(after, name, None, describe(after))
            # Another call has just created it; the lock waits for that call's end.
            before = await products.lock(connection, name)
        if before is None:
            raise product_not_found(name.product)
        check_etag(etag, before.etag)
        if before.policy.spec == spec:
            return Change(before, name, None, None)
        if not force:
            await _refuse_stranding(connection, name, spec)
        await _claim_prefixes(connection, spec)
        after = await products.update_spec(connection, spec, before.spec_version + 1)
        return Change(after, name, describe(before), describe(after))

    return await run(database, mutation, work)


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


async def delete_product(
    database: Database, mutation: Mutation[Deleted], name: ProductName, etag: str, *, force: bool
) -> Deleted:
    """Delete a product; with `force`, its tenants as well. Answers what went with it.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`), `Aborted` (`ETAG_MISMATCH`) and `FailedPrecondition`
    (`PRODUCT_BUILT_IN`, `PRODUCT_HAS_TENANTS`).
    """
    mutation.caller.require(name.path, "delete")
    _refuse_built_in(name)
    actors.refuse_other_tenant(mutation, None)
    contents = Deleted()
    if force:
        await refuse_repetition(database, mutation)
        contents = await _delete_tenants(database, name, etag, keep=mutation.validate_only)

    async def work(connection: Connection) -> Change[Deleted]:
        before = await _lock(connection, name, etag)
        count = await tenants.count(connection, name)
        if count and not (force and mutation.validate_only):
            raise FailedPrecondition(
                "PRODUCT_HAS_TENANTS",
                f"the product `{name.product}` still has tenants, deleted ones included: {count}",
                metadata={"tenants": str(count)},
            )
        if not count:
            await products.delete(connection, name)
        return Change(contents, name, describe(before), None)

    return await run(database, mutation, work)


async def _delete_tenants(database: Database, name: ProductName, etag: str, *, keep: bool) -> Deleted:
    """Delete all tenants of a product in transactions of bounded size; answers what they held."""

    async def mark(connection: Connection) -> Deleted:
        await _lock(connection, name, etag)
        contents = await tenants.count_contents_of_all(connection, name)
        if not keep:
            await tenants.mark_all_deleted(connection, name)
        return contents

    contents = await database.transaction(mark)
    while not keep:
        async with database.connection() as connection:
            tenant = await tenants.next_deleted(connection, name)
        if tenant is None:
            break
        await tenants.purge_contents(database, tenant)
        async with database.connection() as connection:
            await tenants.purge(connection, tenant)
    return contents


async def _lock(connection: Connection, name: ProductName, etag: str) -> Product:
    product = await products.lock(connection, name)
    if product is None:
        raise product_not_found(name.product)
    check_etag(etag, product.etag)
    return product


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
