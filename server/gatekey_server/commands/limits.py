"""How much a tenant can hold. Counted under the tenant's lock, so that no two creations pass the last place."""

from gatekey_server.domain.decisions import PrincipalKind
from gatekey_server.domain.entities import Product, Tenant
from gatekey_server.domain.errors import ResourceExhausted
from gatekey_server.store import api_keys, principals
from gatekey_server.store.database import Connection


async def refuse_another_principal(
    connection: Connection, product: Product, tenant: Tenant, kind: PrincipalKind
) -> None:
    """Raises `ResourceExhausted` (`LIMIT_REACHED`) where the tenant can hold no further principal of a kind."""
    limits = product.policy.spec.limits
    what, limit = (
        ("members", limits.members) if kind is PrincipalKind.MEMBER else ("machine_users", limits.machine_users)
    )
    if limit and await principals.count_up_to(connection, tenant, kind, limit) >= limit:
        raise _reached(what, limit)


async def refuse_another_key(connection: Connection, product: Product, tenant: Tenant) -> None:
    """Raises `ResourceExhausted` (`LIMIT_REACHED`) where the tenant can hold no further key."""
    limit = product.policy.spec.limits.api_keys
    if limit and await api_keys.count_up_to(connection, tenant, limit) >= limit:
        raise _reached("api_keys", limit)


def _reached(what: str, limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        "LIMIT_REACHED",
        f"the tenant has reached its limit of {what.replace('_', ' ')}: {limit}",
        metadata={"limit": str(limit), "of": what},
    )
