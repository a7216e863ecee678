"""The keys and members that a new spec would strand: that would lose what the spec in force gives them.

A product may hold millions of keys, and changes in it must not wait until all have been searched. So the search runs
in slices without a lock, as of some position in the history. It then looks again at what has changed since, and does
the last, small part of that under the product's lock.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

from gatekey.core.changes import Position
from gatekey.core.entities import Product
from gatekey.core.errors import FailedPrecondition
from gatekey.core.grants import Grant
from gatekey.core.names import format_key_id
from gatekey.core.specs import KeyOffer, ProductSpec, may_take_from_keys

from gatekey_server.store import stranding, tenants
from gatekey_server.store.database import Connection, Database
from gatekey_server.store.pauses import Pauses
from gatekey_server.store.stranding import Changed, KeyGroup, PrincipalFilter

MAX_CHANGES = 5000
"""How many changes are caught up with before the lock. After more, everything is searched again."""
MAX_LOCKED_CHANGES = 200
"""How many changes, of all products, are caught up with under the lock."""
MAX_NAMED = 5
"""How many stranded keys and members the error names."""

_SLICE_TENANTS = 100
_SLICE_GRANTS = 25
_CATCH_UP_S = 1.0
_MAX_JUDGED = 100_000

Borrow = Callable[[], AbstractAsyncContextManager[Connection]]
Judged = tuple[object, ...]
C = TypeVar("C")


class Overtaken(Exception):
    """Too much has changed meanwhile to catch up with now."""


@dataclass
class _Stranded:
    """The stranded keys and members that were found."""

    counts: Counter[str] = field(default_factory=Counter)
    people: list[str] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def refuse(self) -> None:
        """Raise `FailedPrecondition` (`SPEC_STRANDS`) where anything was found."""
        if not self.counts:
            return
        stranded = {what: str(self.counts[what]) for what in sorted(self.counts, key=_place)}
        listing = ", ".join(f"{what}: {count}" for what, count in stranded.items())
        first = [*self.people, *self.tenants, *self.keys][:MAX_NAMED]
        raise FailedPrecondition(
            "SPEC_STRANDS",
            "; ".join([f"the spec would leave these without what they have ({listing})", *first]),
            metadata=stranded,
        )


def _place(what: str) -> tuple[int, str]:
    order = ("machine_users", "tenants_without_owner", "keys")
    return (order.index(what) + 1 if what in order else 0, what)


class Search:
    """Searches a product for what a spec would strand, and follows its changes."""

    def __init__(self, product: Product, spec: ProductSpec) -> None:
        self.etag = product.etag
        before = product.compiled.spec
        self._name = product.name
        gone = {role.role for role in before.roles} - {role.role for role in spec.roles}
        self._people = PrincipalFilter(sorted(gone), spec.machine_users is None and before.machine_users is not None)
        self._owner_roles = before.owner_role, spec.owner_role
        # If the spec no longer has the role, its members are named already.
        self._owners = before.owner_role != spec.owner_role and before.owner_role not in gone
        self._keys = may_take_from_keys(before, spec)
        self._had, self._has = KeyOffer(before), KeyOffer(spec)
        self._judged: dict[Judged, str | None] = {}
        self._position: Position | None = None
        self._pause = Pauses()

    async def look_through(self, database: Database) -> None:
        """Search everything or, once that is done, what has changed since.

        Raises `FailedPrecondition` (`SPEC_STRANDS`), and `Overtaken`.
        """
        if not (self._people.roles or self._people.machine_users or self._owners or self._keys):
            return
        if self._position is not None:
            (await self._catch_up(database.connection, MAX_CHANGES)).refuse()
            return
        async with database.connection() as connection:
            self._position = await stranding.position(connection)
        found, late = _Stranded(), _Stranded()
        caught_up = time.monotonic()
        after: int | None = 0
        while after is not None:
            async with database.connection() as connection:
                some = await tenants.page(connection, self._name, after, _SLICE_TENANTS, show_deleted=False)
            await self._look_at(database.connection, {each.uid: each.name.tenant for each in some.items}, found)
            after = some.last
            if time.monotonic() - caught_up > _CATCH_UP_S:
                late = await self._catch_up(database.connection, MAX_CHANGES, late)
                caught_up = time.monotonic()
        found.refuse()
        (await self._catch_up(database.connection, MAX_CHANGES, late)).refuse()

    async def finish(self, connection: Connection) -> None:
        """Search what has changed since, in a transaction that holds the product's lock.

        Raises `FailedPrecondition` (`SPEC_STRANDS`), and `Overtaken` where too much has changed.
        """
        if self._position is not None:
            position = self._position
            try:
                (await self._catch_up(lambda: nullcontext(connection), MAX_LOCKED_CHANGES, few=True)).refuse()
            finally:
                # The transaction may still fail, or be retried.
                self._position = position

    async def _catch_up(
        self, borrow: Borrow, limit: int, found: _Stranded | None = None, *, few: bool = False
    ) -> _Stranded:
        found = found or _Stranded()
        if self._position is None:
            raise AssertionError("there is something to catch up from")
        async with borrow() as connection:
            changed = await stranding.changes_since(connection, self._name, self._position, limit)
        if changed is None:
            if not few:
                self._position = None
            raise Overtaken
        whole = {uid: changed.tenants[uid] for uid in changed.whole}
        await self._look_at(borrow, whole, found, few=few)
        await self._look_at_parts(borrow, changed, found)
        self._position = changed.position
        return found

    async def _look_at(self, borrow: Borrow, some: Mapping[int, str], found: _Stranded, *, few: bool = False) -> None:
        """Search everything in some tenants; with `few`, only where none of them holds much."""
        uids = list(some)
        if not uids:
            return
        if self._owners:
            await self._find_tenants(borrow, some, uids, found)
        if self._people.roles or self._people.machine_users:
            async for tenants_, after, last in _slices(
                borrow, uids, stranding.with_many_principals, stranding.end_of_principals, stranding.FIRST_UID, few=few
            ):
                async with borrow() as connection:
                    groups = await stranding.principal_groups(connection, tenants_, self._people, after, last)
                _add_people(groups, some, found)
        if self._keys:
            async for tenants_, start, end in _slices(
                borrow, uids, stranding.with_many_keys, stranding.end_of_keys, stranding.FIRST_KEY, few=few
            ):
                async with borrow() as connection:
                    groups_ = await stranding.key_groups(connection, tenants_, start, end)
                await self._judge(borrow, groups_, some, found)

    async def _look_at_parts(self, borrow: Borrow, changed: Changed, found: _Stranded) -> None:
        """Search the keys and principals that have changed, and what their tenants have lost by it."""
        principals = [each for each in changed.principals if each[0] not in changed.whole]
        if self._owners and principals:
            await self._find_tenants(borrow, changed.tenants, {uid for uid, _ in principals}, found)
        if principals and (self._people.roles or self._people.machine_users):
            async with borrow() as connection:
                groups = await stranding.principal_groups_of(connection, principals, self._people)
            _add_people(groups, changed.tenants, found)
        keys = [each for each in changed.keys if each[0] not in changed.whole]
        if keys and self._keys:
            async with borrow() as connection:
                groups_ = await stranding.key_groups_of(connection, keys)
            await self._judge(borrow, groups_, changed.tenants, found)

    async def _find_tenants(
        self, borrow: Borrow, some: Mapping[int, str], uids: Collection[int], found: _Stranded
    ) -> None:
        async with borrow() as connection:
            losing = await stranding.losing_owners(connection, uids, *self._owner_roles)
        if losing:
            found.counts["tenants_without_owner"] += len(losing)
            texts = (f"tenants/{some[uid]}: nobody has the role `{self._owner_roles[1]}`" for uid in losing)
            _name(found.tenants, texts)

    async def _judge(
        self, borrow: Borrow, groups: Sequence[KeyGroup], some: Mapping[int, str], found: _Stranded
    ) -> None:
        if len(self._judged) > _MAX_JUDGED:
            self._judged.clear()
        unknown = [group for group in groups if _given(group) not in self._judged]
        for at in range(0, len(unknown), _SLICE_GRANTS):
            part = unknown[at : at + _SLICE_GRANTS]
            async with borrow() as connection:
                grants = await stranding.grants_of(connection, [group.first[0] for group in part])
            for group in part:
                await self._pause()
                # One that was deleted has changed, and is searched again.
                self._judged[_given(group)] = self._loss(group, grants.get(group.first[0], ()))
        for group in groups:
            loss = self._judged[_given(group)]
            if loss is not None:
                found.counts["keys"] += group.count
                keys = (f"tenants/{some[tenant]}/apiKeys/{format_key_id(key)}: {loss}" for tenant, key in group.first)
                _name(found.keys, keys)

    def _loss(self, group: KeyGroup, grants: tuple[Grant, ...]) -> str | None:
        """Return in words what keys lose that the spec in force gives them."""
        given = group.kind, group.owner, group.mode, grants
        if next(self._has.losses(*given), None) is None:
            return None
        known = {loss.permission for loss in self._had.losses(*given)}
        new = (loss for loss in self._has.losses(*given) if None not in known and loss.permission not in known)
        loss = next(new, None)
        return None if loss is None else loss.text


async def _slices(
    borrow: Borrow,
    uids: Sequence[int],
    with_many: Callable[[Connection, Sequence[int]], Awaitable[list[int]]],
    end_of: Callable[[Connection, int, C], Awaitable[C | None]],
    first: C,
    *,
    few: bool,
) -> AsyncIterator[tuple[Sequence[int], C, C | None]]:
    """Yield tenants and the ranges to search in them: small tenants together, large ones part by part."""
    async with borrow() as connection:
        many = await with_many(connection, uids)
    if many and few:
        raise Overtaken
    large = set(many)
    yield [uid for uid in uids if uid not in large], first, None
    for uid in many:
        after: C | None = first
        while after is not None:
            async with borrow() as connection:
                end = await end_of(connection, uid, after)
            yield [uid], after, end
            after = end


def _given(group: KeyGroup) -> Judged:
    return group.kind, group.owner, group.mode, group.grants_digest


def _add_people(groups: Iterable[stranding.PrincipalGroup], some: Mapping[int, str], found: _Stranded) -> None:
    for group in groups:
        if group.role is None:
            found.counts["machine_users"] += group.count
            continue
        found.counts[f"members.{group.role}"] += group.count
        _name(
            found.people,
            (f"tenants/{some[uid]}/members/{id_}: there is no role `{group.role}`" for uid, id_ in group.first),
        )


def _name(named: list[str], texts: Iterable[str]) -> None:
    for text in texts:
        if len(named) < MAX_NAMED:
            named.append(text)
