"""How much a tenant can hold, and how far things are counted.

Counted under the tenant's lock, so that no two creations pass the last place.
"""

from datetime import datetime

from gatekey.core.decisions import CompiledSpec, PrincipalKind
from gatekey.core.entities import Deleted, Product, Tenant
from gatekey.core.errors import ResourceExhausted

from gatekey_server.store import api_keys, principals
from gatekey_server.store.database import Connection

MAX_COUNTED = 100_000
"""How far anything is counted: a count takes no longer where there is more."""

_WORDS = {"members": "members", "machine_users": "machine users", "api_keys": "API keys"}


async def count_contents(connection: Connection, tenant: Tenant) -> Deleted:
    """Count what would go with a tenant, each as far as `MAX_COUNTED`, and the tenant itself."""
    return Deleted(
        1,
        await principals.count_up_to(connection, tenant, PrincipalKind.MEMBER, MAX_COUNTED),
        await principals.count_up_to(connection, tenant, PrincipalKind.MACHINE_USER, MAX_COUNTED),
        min(await api_keys.count_up_to(connection, tenant, MAX_COUNTED), MAX_COUNTED),
    )


async def refuse_another_principal(
    connection: Connection, product: Product, tenant: Tenant, kind: PrincipalKind
) -> None:
    """Raises `ResourceExhausted` (`LIMIT_REACHED`) where the tenant can hold no further principal of a kind."""
    limits = product.compiled.spec.limits
    what, limit = (
        ("members", limits.members) if kind is PrincipalKind.MEMBER else ("machine_users", limits.machine_users)
    )
    if limit and await principals.count_up_to(connection, tenant, kind, limit) >= limit:
        raise _reached(product.compiled, what, limit)


async def refuse_another_key(connection: Connection, product: Product, tenant: Tenant, now: datetime) -> None:
    """Raises `ResourceExhausted` (`LIMIT_REACHED`) where the tenant can hold no further key.

    Keys that were revoked or have expired do not count; disabled ones do, for they can be enabled.
    """
    limit = product.compiled.spec.limits.api_keys
    if limit and await api_keys.count_living(connection, tenant, now, limit) >= limit:
        raise _reached(product.compiled, "api_keys", limit)


def _reached(compiled: CompiledSpec, what: str, limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        "LIMIT_REACHED",
        f"the {compiled.tenant_noun} has reached its limit of {_WORDS[what]}: {limit}",
        metadata={"limit": str(limit), "of": what},
    )
