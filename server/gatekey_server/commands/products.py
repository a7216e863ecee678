"""Applying, reading, listing and deleting products."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import structlog
from gatekey.core import builtin, specs
from gatekey.core.audit import describe, describe_with_contents
from gatekey.core.entities import Deleted, Product, UnreadableProduct
from gatekey.core.errors import Aborted, FailedPrecondition, InvalidRequest, Overloaded, Unavailable, Violation
from gatekey.core.names import CheckConfigName, ProductName, is_product_id
from gatekey.core.specs import ProductSpec

from gatekey_server.authorization import actors
from gatekey_server.authorization.callers import Caller, product_not_found
from gatekey_server.commands import lookup
from gatekey_server.commands.limits import MAX_COUNTED
from gatekey_server.commands.mutations import Mutation, MutationOutcome, check_etag, refuse_repetition, run
from gatekey_server.commands.paging import Taker, fill
from gatekey_server.commands.stranding import Overtaken, Search
from gatekey_server.store import pauses, products, tenants
from gatekey_server.store.database import Connection, Database, Share
from gatekey_server.store.slices import Slice

_log = structlog.get_logger()

SLICE_ROWS = 2
"""How many specs are read at once. Each may be 1 MiB."""
PURGE_PATIENCE_S = 1.0
"""How long a forced deletion removes rows by itself. Maintenance removes the rest."""
_MAX_SEARCHES = 5
"""How many times a product is searched for keys that a spec would strand, before the command gives up."""


def authorise_application(caller: Caller, product: str) -> None:
    """Raise unless the caller may apply a spec for a product. Called before the spec is read.

    Raises as `Caller.require`, and `InvalidRequest` (`SPEC_INVALID`) for a malformed product id, unless the
    caller may apply specs for all products: then the validation of the whole spec reports it.
    """
    if is_product_id(product):
        caller.require(ProductName(product).path, "apply")
    elif not caller.may(("products",), "apply"):
        raise InvalidRequest.all("SPEC_INVALID", [specs.PRODUCT_ID_INVALID])


async def apply_product(
    database: Database,
    mutation: Mutation[Product],
    spec: ProductSpec,
    etag: str,
    *,
    force: bool,
    violations: Sequence[Violation] = (),
) -> Product:
    """Create a product, or replace its spec. `violations` were found when the spec was decoded.

    Raises as `authorise_application`, `InvalidRequest` (`SPEC_INVALID`) with everything that is wrong
    with the spec, `FailedPrecondition` (`PRODUCT_BUILT_IN`, `PRODUCT_BEING_PURGED`, `PREFIX_TAKEN`,
    `SPEC_STRANDS`), `Aborted` (`ETAG_MISMATCH`, `PRODUCT_CHANGES_TOO_OFTEN`), and `Unreadable` where the spec in
    force cannot be read; with `force`, it is replaced.
    """
    name = ProductName(spec.product)
    mutation.demand(lambda caller: authorise_application(caller, spec.product))
    try:
        await pauses.aside(specs.validate, spec, violations)
    except InvalidRequest as error:
        raise await _with_taken_prefixes(database, spec, error) from None
    _refuse_built_in(name)
    actors.refuse_other_tenant(mutation, None)
    search: Search | None = None

    async def work(connection: Connection) -> MutationOutcome[Product]:
        before = await products.lock_whatever_it_is(connection, name)
        if isinstance(before, UnreadableProduct):
            return await _replace_unreadable(connection, before, spec, etag, force=force)
        if before is None:
            if not etag and (created := await _create(connection, name, spec)) is not None:
                return created
            before = await _made_meanwhile(connection, name, etag)
        check_etag(etag, before.etag)
        if before.compiled.spec == spec:
            return MutationOutcome(replace(before, unchanged=True), name, None, None)
        if not force:
            if search is None or search.etag != before.etag:
                raise Overtaken
            await search.finish(connection)
        await _claim_prefixes(connection, spec)
        after = await products.update_spec(connection, spec, before.spec_version + 1)
        # Each of these takes some milliseconds for a large spec.
        await pauses.pause()
        described = describe(before)
        await pauses.pause()
        return MutationOutcome(after, name, described, describe(after))

    if force:
        return await run(database, mutation, name, work)
    await refuse_repetition(database, mutation)
    for _ in range(_MAX_SEARCHES):
        try:
            search = await _look_through(database, name, spec, etag, search)
            return await run(database, mutation, name, work)
        except Overtaken:
            continue
    raise Aborted(
        "PRODUCT_CHANGES_TOO_OFTEN",
        "the product changed while its keys were looked through for what the spec would strand; try again,"
        " when less is going on, or apply it with `force`",
    )


async def _look_through(
    database: Database, name: ProductName, spec: ProductSpec, etag: str, search: Search | None
) -> Search | None:
    """Search for keys that a spec would strand, continuing an earlier search; None where nothing needs a search."""
    async with database.connection() as connection:
        before = await products.get(connection, name)
    if before is None or (etag and etag != before.etag) or before.compiled.spec == spec:
        return None
    if search is None or search.etag != before.etag:
        search = Search(before, spec)
    await search.look_through(database)
    return search


async def _create(connection: Connection, name: ProductName, spec: ProductSpec) -> MutationOutcome[Product] | None:
    """Create a product; None where another call has created it."""
    after = await products.insert(connection, spec)
    if after is None:
        return None
    await _claim_prefixes(connection, spec)
    await pauses.pause()
    return MutationOutcome(after, name, None, describe(after))


async def _made_meanwhile(connection: Connection, name: ProductName, etag: str) -> Product:
    """Return the product that another call has just created. Its lock waits for the end of that call."""
    product = await products.lock(connection, name)
    if product is None:
        raise product_not_found(name.product) if etag else _being_purged(name)
    return product


async def _replace_unreadable(
    connection: Connection, before: UnreadableProduct, spec: ProductSpec, etag: str, *, force: bool
) -> MutationOutcome[Product]:
    """Replace a spec that cannot be read, without a search: what it granted is unknown."""
    check_etag(etag, before.etag)
    if not force:
        raise before.error()
    await _claim_prefixes(connection, spec)
    after = await products.update_spec(connection, spec, before.spec_version + 1)
    return MutationOutcome(after, before.name, None, describe(after))


async def get_product(database: Database, caller: Caller, name: ProductName) -> Product:
    """Read a product. Raises `NotFound` (`PRODUCT_NOT_FOUND`)."""
    caller.require(name.path, "get")
    async with database.connection() as connection:
        return await lookup.product(connection, name)


async def get_check_config(database: Database, caller: Caller, name: CheckConfigName) -> Product:
    """Return the product of a check config.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`), and `InvalidRequest` (`PRODUCT_REQUIRED`) where none is
    named and the caller may check several.
    """
    if name.product is None:
        caller.require_some_checks()
    product = name.product or caller.only_checkable_product()
    if product is None:
        raise InvalidRequest.at("name", "PRODUCT_REQUIRED", "the service token may check several products: name one")
    caller.require(("products", product, "checks"), "create")
    async with database.connection() as connection:
        return await lookup.product(connection, ProductName(product))


async def list_products(
    database: Database, caller: Caller, after: str, page: Taker[Product | UnreadableProduct]
) -> str | None:
    """List products by id, after the cursor `after`. Returns the next cursor."""
    caller.require(("products",), "list")
    async with database.connection() as connection:

        async def read(after: str, limit: int) -> Slice[Product | UnreadableProduct, str]:
            return Slice.of(await products.page(connection, after, limit), limit, _id)

        return await fill(page, read, after, _id, SLICE_ROWS)


async def delete_product(
    database: Database, mutation: Mutation[Deleted], name: ProductName, etag: str, *, force: bool
) -> Deleted:
    """Delete a product; with `force`, with all its tenants, which stop working at once. Returns what was deleted.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`), `Aborted` (`ETAG_MISMATCH`) and `FailedPrecondition`
    (`PRODUCT_BUILT_IN`, `PRODUCT_HAS_TENANTS`).
    """
    mutation.require(name.path, "delete")
    _refuse_built_in(name)
    actors.refuse_other_tenant(mutation, None)
    contents = Deleted()
    if force:
        # Counted before the lock, because it takes a while for a large product.
        async with database.connection() as connection:
            contents = await tenants.count_contents_of_all(connection, name, MAX_COUNTED)

    async def work(connection: Connection) -> MutationOutcome[Deleted]:
        before = await _lock(connection, name, etag)
        count = await tenants.count(connection, name, MAX_COUNTED)
        if count and not force:
            raise FailedPrecondition(
                "PRODUCT_HAS_TENANTS",
                f"the product `{name.product}` still has tenants, deleted ones included: {count}",
                metadata={"tenants": str(count)},
            )
        if count:
            await products.mark_deleted(connection, before)
        else:
            await products.delete(connection, name)
        return MutationOutcome(contents, name, describe_with_contents(before, contents), None)

    deleted = await run(database, mutation, name, work)
    if force and not mutation.validate_only:
        await _purge_what_is_little(database.share(Share.BACKGROUND), name)
    return deleted


async def _purge_what_is_little(database: Database, name: ProductName) -> None:
    """Remove the rows of a deleted product for up to `PURGE_PATIENCE_S`. Maintenance removes the rest."""
    end = time.monotonic() + PURGE_PATIENCE_S
    try:
        async with aclosing(products.purge(database, name)) as steps:
            async for took_s in steps:
                if time.monotonic() > end:
                    return
                await asyncio.sleep(took_s)
    except (Unavailable, Overloaded):
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the product is deleted, and maintenance meets it again
        _log.exception("product.not_purged", product=name.product, error=type(error).__name__)


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
        raise FailedPrecondition("PREFIX_TAKEN", _taken_in_words(prefix), metadata={"prefix": prefix})


async def _with_taken_prefixes(database: Database, spec: ProductSpec, error: InvalidRequest) -> InvalidRequest:
    """Return the same error, with the prefixes of the spec that other products have."""
    wrong = {violation.field for violation in error.violations}
    fields = {f"{kind.lower()}_keys.prefix": prefix for kind, prefix in spec.prefixes.items()}
    async with database.connection() as connection:
        taken = await products.prefixes_of_others(connection, spec)
    reason = "PREFIX_TAKEN"
    found = [
        Violation(field, reason, _taken_in_words(prefix))
        for field, prefix in fields.items()
        if prefix in taken and field not in wrong
    ]
    return InvalidRequest.all(error.reason, [*found, *error.violations], unlisted=error.unlisted) if found else error


def _taken_in_words(prefix: str) -> str:
    return f"another product's keys start with `{prefix}`"


def _id(product: Product | UnreadableProduct) -> str:
    return product.name.product


def _being_purged(name: ProductName) -> FailedPrecondition:
    return FailedPrecondition(
        "PRODUCT_BEING_PURGED", f"what was in the deleted product `{name.product}` is still being removed"
    )


def _refuse_built_in(name: ProductName) -> None:
    if name == builtin.PRODUCT:
        raise FailedPrecondition("PRODUCT_BUILT_IN", f"the product `{name.product}` is built in and cannot be changed")
