"""Products, their specs and their prefixes."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg
from pydantic import TypeAdapter

from gatekey_server.domain.decisions import Policy
from gatekey_server.domain.entities import Product
from gatekey_server.domain.grants import Grant
from gatekey_server.domain.names import ProductName
from gatekey_server.domain.specs import AccessMode, KeyKind, ProductSpec
from gatekey_server.store.api_keys import parse_grants
from gatekey_server.store.database import Connection
from gatekey_server.store.queries import queries

MAX_COMPILED_SPECS = 256

_SPEC = TypeAdapter(ProductSpec)


class CompiledSpecs:
    """The specs that this process has compiled, by the digest of their text; the least used go first.

    A digest stands for one text for ever, so that nothing in here can be stale.
    """

    def __init__(self) -> None:
        self._policies: OrderedDict[bytes, Policy] = OrderedDict()

    def known(self) -> Mapping[bytes, Policy]:
        """The policies that are here now, whatever goes meanwhile."""
        return dict(self._policies)

    def policy(self, known: Mapping[bytes, Policy], digest: bytes, spec: str | None) -> Policy:
        """The policy of a spec; `spec` may be left out where the digest is among `known`."""
        policy = known.get(digest) or self._policies.get(digest)
        if policy is None:
            if spec is None:
                raise KeyError(digest.hex())
            policy = Policy(_SPEC.validate_json(spec))
        self._policies[digest] = policy
        self._policies.move_to_end(digest)
        if len(self._policies) > MAX_COMPILED_SPECS:
            self._policies.popitem(last=False)
        return policy


@dataclass(frozen=True, slots=True)
class KeyGroup:
    """Keys of a product that are given the same."""

    kind: KeyKind
    mode: AccessMode | None
    grants: tuple[Grant, ...]
    count: int


async def get(connection: Connection, name: ProductName) -> Product | None:
    """Read a product."""
    return _product(await queries.product_get(connection, product_id=name.product))


async def lock_shared(connection: Connection, name: ProductName) -> Product | None:
    """Read a product and keep its spec as it is until the end of the transaction."""
    return _product(await queries.product_lock_shared(connection, product_id=name.product))


async def lock(connection: Connection, name: ProductName) -> Product | None:
    """Read a product and keep everyone else from changing or using it until the end of the transaction."""
    return _product(await queries.product_lock(connection, product_id=name.product))


async def page(connection: Connection, after: str, limit: int) -> list[Product]:
    """Read up to `limit` products by id, from the one after `after`."""
    return [_to_product(row) async for row in queries.product_list(connection, after=after, limit=limit)]


async def insert(
    connection: Connection, spec: ProductSpec, *, spec_version: int = 1, built_in: bool = False
) -> Product | None:
    """Create a product without its prefixes; None where the id is taken."""
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
    """Give a product the prefixes of its spec; answers the kind of key whose prefix another one has."""
    await queries.prefix_delete_by_product(connection, product_id=spec.product)
    # In one order for all, so that two products cannot wait for each other.
    for kind, prefix in sorted(spec.prefixes.items(), key=lambda item: item[1]):
        row = await queries.prefix_insert(connection, prefix=prefix, product_id=spec.product, kind=kind)
        if row is None:
            return kind
    return None


async def delete(connection: Connection, name: ProductName) -> None:
    """Remove a product that has no tenants, with its prefixes."""
    await queries.product_delete(connection, product_id=name.product)


async def count_members_by_role(connection: Connection, name: ProductName) -> dict[str, int]:
    """Count the members of living tenants by role."""
    rows = queries.member_count_by_role(connection, product_id=name.product)
    return {row["role"]: row["members"] async for row in rows}


async def count_machine_users(connection: Connection, name: ProductName) -> int:
    """Count the machine users of living tenants."""
    return int(await queries.machine_user_count(connection, product_id=name.product))


async def count_keys_by_permissions(connection: Connection, name: ProductName) -> Sequence[KeyGroup]:
    """Count the unrevoked keys of living tenants by what they are given."""
    rows = queries.key_count_by_permissions(connection, product_id=name.product)
    return [
        KeyGroup(
            KeyKind(row["kind"]),
            AccessMode(row["mode"]) if row["mode"] else None,
            parse_grants(row["grants"]),
            row["keys"],
        )
        async for row in rows
    ]


def _write(spec: ProductSpec) -> tuple[str, bytes]:
    text = json.dumps(_SPEC.dump_python(spec, mode="json"), sort_keys=True)
    return text, hashlib.sha256(text.encode()).digest()


def _product(row: asyncpg.Record | None) -> Product | None:
    return None if row is None else _to_product(row)


def _to_product(row: asyncpg.Record) -> Product:
    return Product(
        name=ProductName(row["product_id"]),
        policy=Policy(_SPEC.validate_json(row["spec"])),
        spec_version=row["spec_version"],
        built_in=row["built_in"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )
