"""Products, their specs and their prefixes."""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import asyncpg
import structlog
from gatekey.core.decisions import CompiledSpec
from gatekey.core.entities import Product, UnreadableProduct
from gatekey.core.names import ProductName
from gatekey.core.specs import KeyKind, ProductSpec
from pydantic import TypeAdapter

from gatekey_server.store import tenants
from gatekey_server.store.database import Connection, Database
from gatekey_server.store.queries import queries

MAX_COMPILED_SPECS = 256

_SPEC = TypeAdapter(ProductSpec)

_log = structlog.get_logger()


class CompiledSpecs:
    """The compiled specs of this process, by the digest of their text. The least recently used are evicted first.

    A digest always stands for the same text, so no entry can be stale.
    """

    def __init__(self) -> None:
        self._compiled: OrderedDict[bytes, CompiledSpec] = OrderedDict()

    def known(self) -> Mapping[bytes, CompiledSpec]:
        """Return a copy of the current entries, which later evictions do not affect."""
        return dict(self._compiled)

    def compiled(self, known: Mapping[bytes, CompiledSpec], digest: bytes, spec: str | None) -> CompiledSpec:
        """Return the compiled spec. `spec` may be None where the digest is among `known`."""
        compiled = known.get(digest) or self._compiled.get(digest)
        if compiled is None:
            if spec is None:
                raise KeyError(digest.hex())
            compiled = _compile(spec)
        self._compiled[digest] = compiled
        self._compiled.move_to_end(digest)
        if len(self._compiled) > MAX_COMPILED_SPECS:
            self._compiled.popitem(last=False)
        return compiled


async def get(connection: Connection, name: ProductName) -> Product | None:
    """Return a product. Raises `Unreadable`, as does every function that returns one product."""
    return _product(await queries.product_get(connection, product_id=name.product))


async def lock_shared(connection: Connection, name: ProductName) -> Product | None:
    """Return a product, and lock its spec against changes until the end of the transaction."""
    return _product(await queries.product_lock_shared(connection, product_id=name.product))


async def lock(connection: Connection, name: ProductName) -> Product | None:
    """Return a product, and lock it against changes and use by others until the end of the transaction."""
    return _product(await queries.product_lock(connection, product_id=name.product))


async def lock_whatever_it_is(connection: Connection, name: ProductName) -> Product | UnreadableProduct | None:
    """Do the same as `lock`, also where the spec cannot be read."""
    row = await queries.product_lock(connection, product_id=name.product)
    return None if row is None else _read(row)


async def page(connection: Connection, after: str, limit: int) -> list[Product | UnreadableProduct]:
    """Return up to `limit` products by id, after the id `after`."""
    return [_read(row) async for row in queries.product_list(connection, after=after, limit=limit)]


async def insert(
    connection: Connection, spec: ProductSpec, *, spec_version: int = 1, built_in: bool = False
) -> Product | None:
    """Create a product without its prefixes. Returns None where the id is taken."""
    text, digest = _write(spec)
    row = await queries.product_insert(
        connection,
        product_id=spec.product,
        spec=text,
        spec_digest=digest,
        spec_version=spec_version,
        built_in=built_in,
    )
    return _product(row)


async def update_spec(connection: Connection, spec: ProductSpec, spec_version: int) -> Product:
    """Replace the spec of a locked product, without its prefixes."""
    text, digest = _write(spec)
    row = await queries.product_update_spec(
        connection, product_id=spec.product, spec=text, spec_digest=digest, spec_version=spec_version
    )
    return _to_product(row)


async def claim_prefixes(connection: Connection, spec: ProductSpec) -> KeyKind | None:
    """Assign a product the prefixes of its spec. Returns the kind of key whose prefix another product has, if any."""
    await queries.prefix_delete_by_product(connection, product_id=spec.product)
    # Always in the same order, so that two products cannot deadlock.
    for kind, prefix in sorted(spec.prefixes.items(), key=lambda item: item[1]):
        row = await queries.prefix_insert(connection, prefix=prefix, product_id=spec.product, kind=kind)
        if row is None:
            return kind
    return None


async def delete(connection: Connection, name: ProductName) -> None:
    """Delete a product without tenants, with its prefixes."""
    await queries.product_delete(connection, product_id=name.product)


async def mark_deleted(connection: Connection, product: Product) -> None:
    """Mark a locked product as deleted, with all it holds. Its prefixes become free, and its rows are purged later."""
    spec = product.compiled.spec
    text, digest = _write(replace(spec, collections=()))
    await queries.prefix_delete_by_product(connection, product_id=spec.product)
    await queries.product_mark_deleted(connection, product_id=spec.product, spec=text, spec_digest=digest)


async def next_deleted(database: Database, but: Sequence[str] = ()) -> ProductName | None:
    """Return a deleted product that is not purged yet, and whose id is not in `but`."""
    async with database.connection() as connection:
        product = await queries.product_next_deleted(connection, but=but)
    return None if product is None else ProductName(product)


async def purge(database: Database, name: ProductName) -> AsyncGenerator[float, None]:
    """Delete the rows of a deleted product with everything in it, as `tenants.purge_contents` does."""
    while (tenant := await tenants.next_of_deleted(database, name)) is not None:
        async for took_s in tenants.purge_contents(database, tenant):
            yield took_s
        began = time.monotonic()
        await database.transaction(partial(tenants.purge_of_deleted, tenant=tenant))
        yield time.monotonic() - began
    async with database.connection() as connection:
        await queries.product_purge(connection, product_id=name.product)


async def prefixes_of_others(connection: Connection, spec: ProductSpec) -> set[str]:
    """Return the prefixes of a spec that belong to other products."""
    prefixes = list(spec.prefixes.values())
    return {
        row["prefix"]
        async for row in queries.prefix_list_of_others(connection, prefixes=prefixes, product_id=spec.product)
    }


# Every mutation reads the spec of its product. Compiling a large one takes longer than the rest of the mutation.
@lru_cache(maxsize=MAX_COMPILED_SPECS)
def _compile(text: str) -> CompiledSpec:
    return CompiledSpec(_SPEC.validate_json(text))


def _write(spec: ProductSpec) -> tuple[str, bytes]:
    text = json.dumps(_SPEC.dump_python(spec, mode="json"), sort_keys=True)
    return text, hashlib.sha256(text.encode()).digest()


def _product(row: asyncpg.Record | None) -> Product | None:
    return None if row is None else _to_product(row)


def _to_product(row: asyncpg.Record) -> Product:
    product = _read(row)
    if isinstance(product, UnreadableProduct):
        raise product.error()
    return product


def _read(row: asyncpg.Record) -> Product | UnreadableProduct:
    name = ProductName(row["product_id"])
    try:
        compiled = _compile(row["spec"])
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this product's
        _log.error("product.unreadable", product=name.product, error=type(error).__name__, exc_info=error)
        return UnreadableProduct(name, row["spec_version"], row["create_time"], row["update_time"])
    return Product(
        name=name,
        compiled=compiled,
        spec_version=row["spec_version"],
        built_in=row["built_in"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )
