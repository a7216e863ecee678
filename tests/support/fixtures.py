"""The decision table, `tests/decisions.yaml`, made true on a real server: who has which key, and what became of it."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
from gatekey.core.names import parse_key_id
from gatekey.v1 import api_key_service_pb2, check_service_pb2, machine_user_service_pb2, member_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.support.freshness import applied_everywhere
from tests.support.server import PRODUCTS, Client
from tests.support.table import OTHER_TENANT, OWN_TENANT, Caller, Case, Holder, Key, State, load

T = TypeVar("T")
TABLE = load()
OWNER = "somebody"
CONCURRENCY = 16

# What no RPC does: to the key and its secret, to the tenant, to the owner.
KEY_SQL: Mapping[State, str] = {
    State.REVOKED: "update api_key set revoke_time = now() where key_uid = $1",
    State.DISABLED: "update api_key set disable_time = now() where key_uid = $1",
    State.EXPIRED: "update api_key set expire_time = now() where key_uid = $1",
    State.SECRET_EXPIRED: "update secret set expire_time = now() where key_uid = $1",
    State.SECRET_EXPIRES_LATER: "update secret set expire_time = now() + interval '1 hour' where key_uid = $1",
}
TENANT_SQL: Mapping[State, str] = {
    State.SUSPENDED: "update tenant set suspend_time = now() where product_id = $1 and tenant_id = $2",
    State.TENANT_DELETED: "update tenant set delete_time = now() where product_id = $1 and tenant_id = $2",
}
SET_ROLE = """
update principal set role = $2
from api_key where api_key.key_uid = $1
and principal.tenant_uid = api_key.tenant_uid and principal.principal_uid = api_key.principal_uid
"""


@dataclass(frozen=True)
class Holding:
    """What a holder of the table is on the server."""

    product: str
    prefix: str
    """What the ids of its tenants start with; the rest is the table's."""
    secret: str
    api_key: api_key_service_pb2.ApiKey

    def tenant(self, name: str) -> str:
        """The id of a tenant that the table names."""
        return f"{self.prefix}{name}"


@dataclass(frozen=True)
class Fixtures:
    """All holders of the table, and all callers."""

    holdings: Mapping[Holder, Holding]
    callers: Mapping[tuple[Caller, str], Client]

    def caller(self, case: Case) -> Client:
        """The client that asks."""
        return self.callers[case.caller, self.holdings[case.holder].product]

    def question(self, case: Case) -> check_service_pb2.CheckRequest:
        """What the client asks."""
        holding = self.holdings[case.holder]
        # A tenant that makes the request malformed must not be made well-formed by a prefix.
        tenant = holding.tenant(case.tenant) if case.tenant is not None and not case.refused else case.tenant
        key = case.secret.of(holding.secret)
        return check_service_pb2.CheckRequest(key=key, resource=case.resource, action=case.action, tenant=tenant)

    def subject(self, case: Case) -> dict[str, Any]:
        """What the answer must tell but the decision itself: whom it is about, or nothing at all."""
        if case.expected == "KEY_UNKNOWN":
            return {"expires": False}
        key, holding = TABLE.keys[case.key], self.holdings[case.holder]
        subject = {
            "product": holding.product,
            "tenant": holding.tenant(OWN_TENANT),
            "api_key": holding.api_key.name,
            "kind": holding.api_key.kind,
            "principal": "" if key.tenant else holding.api_key.owner,
            "role": _role(key),
            "expires": any("expire" in state for state in case.holder.state),
        }
        return {field: value for field, value in subject.items() if value != ""}


@asynccontextmanager
async def make_fixtures(root: Client, database_url: str) -> AsyncIterator[Fixtures]:
    """Products, tenants, principals and keys are made by RPC; then things happen to them, some by SQL."""
    run = uuid.uuid4().hex[:8]
    holders = sorted({case.holder for case in TABLE.cases}, key=lambda holder: (holder.key, sorted(holder.state)))
    products = _products(run)
    await _each(_apply(root, product, spec) for (spec, _), product in products.items() if product not in PRODUCTS)
    made = await _each(
        _make(root, products[TABLE.keys[holder.key].spec, TABLE.keys[holder.key].later], f"{run}.{number}.", holder)
        for number, holder in enumerate(holders)
    )
    holdings = dict(zip(holders, made, strict=True))
    await _each(_apply(root, product, later, force=True) for (_, later), product in products.items() if later)
    await _each(_remove(root, holder, holding) for holder, holding in holdings.items())
    await _happen(database_url, holdings)
    async with AsyncExitStack() as stack:
        yield Fixtures(holdings, await _callers(stack, root, holdings))


def _role(key: Key) -> str:
    """The role that the owner has when the check is made."""
    return TABLE.spec(key.later or key.spec).machine_users.role if key.machine else key.role_now or ""


def _products(run: str) -> dict[tuple[str, str | None], str]:
    """The id of the product for each spec and the one that replaces it; only the five examples are shared."""
    pairs = sorted({(key.spec, key.later) for key in TABLE.keys.values()}, key=str)
    return {
        (spec, later): spec if spec in PRODUCTS and later is None else f"p{run}-{number}"
        for number, (spec, later) in enumerate(pairs)
    }


async def _apply(root: Client, product: str, name: str, *, force: bool = False) -> None:
    spec = TABLE.spec(name)
    spec.product = product
    spec.secret_keys.prefix = f"{product}-{spec.secret_keys.prefix}"
    if spec.HasField("publishable_keys"):
        spec.publishable_keys.prefix = f"{product}-{spec.publishable_keys.prefix}"
    await root.apply(spec, force=force)


async def _make(root: Client, product: str, prefix: str, holder: Holder) -> Holding:
    key = TABLE.keys[holder.key]
    tenant = await root.create_tenant(product, f"{prefix}{OWN_TENANT}")
    if any(case.tenant == OTHER_TENANT for case in TABLE.cases if case.holder == holder):
        await root.create_tenant(product, f"{prefix}{OTHER_TENANT}")
    fields: dict[str, Any] = {}
    if State.EXPIRES_LATER in holder.state:
        fields["expire_time"] = datetime.now(UTC) + timedelta(hours=1)
    # No key can be given more than its owner has; what the owner's role leaves of it is the table's matter.
    strongest = next(role.role for role in TABLE.spec(key.spec).roles if role.owner)
    member = await root.add_member(tenant, OWNER, strongest) if key.role else ""
    owner = tenant if key.tenant else member
    created = await root.create_key(
        tenant,
        owner,
        kind=key.kind,
        mode=key.mode or "UNSPECIFIED",
        grants=key.grants,
        new_machine_user=key.machine,
        **fields,
    )
    if key.role:
        demotion = member_service_pb2.UpdateMemberRequest(
            member=member_service_pb2.Member(name=member, role=key.role),
            update_mask=FieldMask(paths=["role"]),
            force=True,
        )
        await root.members.UpdateMember(demotion, timeout=10)
    return Holding(product, prefix, created.secret, created.api_key)


async def _remove(root: Client, holder: Holder, holding: Holding) -> None:
    name, owner = holding.api_key.name, holding.api_key.owner
    if State.KEY_DELETED in holder.state:
        await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=name), timeout=10)
    if State.OWNER_REMOVED in holder.state:
        if TABLE.keys[holder.key].machine:
            request = machine_user_service_pb2.DeleteMachineUserRequest(name=owner)
            await root.machine_users.DeleteMachineUser(request, timeout=10)
        else:
            await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=owner, force=True), timeout=10)


async def _happen(database_url: str, holdings: Mapping[Holder, Holding]) -> None:
    # The fixture `sql` belongs to one test; this is the same connection for the whole module.
    connection = await asyncpg.connect(database_url)
    try:
        for holder, holding in holdings.items():
            uid = parse_key_id(holding.api_key.name.rsplit("/", 1)[1])
            statements: list[tuple[Any, ...]] = [(KEY_SQL[state], uid) for state in holder.state & set(KEY_SQL)]
            tenant = holding.product, holding.tenant(OWN_TENANT)
            statements += [(TENANT_SQL[state], *tenant) for state in holder.state & set(TENANT_SQL)]
            role = TABLE.keys[holder.key].role_later
            statements += [(SET_ROLE, uid, role)] if role else []
            for statement, *arguments in statements:
                assert await connection.execute(statement, *arguments) == "UPDATE 1"
        await applied_everywhere(connection)
    finally:
        await connection.close()


async def _callers(
    stack: AsyncExitStack, root: Client, holdings: Mapping[Holder, Holding]
) -> dict[tuple[Caller, str], Client]:
    grants: Mapping[Caller, Callable[[str], Mapping[str, list[str]]]] = {
        Caller.OWN_PRODUCT: lambda product: {f"products/{product}/checks": ["create"]},
        Caller.OTHER_PRODUCT: lambda product: {f"products/{'tally' if product != 'tally' else 'bitsy'}": ["*"]},
        Caller.ADMINISTRATOR: lambda product: {f"products/{product}/tenants": ["*"]},
    }
    callers: dict[tuple[Caller, str], Client] = {}
    for caller, product in {(case.caller, holdings[case.holder].product) for case in TABLE.cases}:
        if caller is Caller.ANYONE:
            callers[caller, product] = root
            continue
        client = root.with_token(await root.create_token(grants[caller](product)))
        stack.push_async_callback(client.close)
        callers[caller, product] = client
    return callers


async def _each(todo: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all of it, several at a time."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(coroutine: Coroutine[Any, Any, T]) -> T:
        async with gate:
            return await coroutine

    return await asyncio.gather(*(one(coroutine) for coroutine in todo))
