"""The limits of a tenant, and how far things are counted.

Counts run under the tenant's lock, so that two creations cannot both take the last place.
"""

from datetime import datetime

from gatekey.core import key_rules
from gatekey.core.decisions import PrincipalKind
from gatekey.core.entities import Deleted, Product, Tenant
from gatekey.core.key_rules import Limited

from gatekey_server.store import api_keys, principals
from gatekey_server.store.database import Connection

MAX_COUNTED = 100_000
"""How far anything is counted, which bounds the time that a count takes."""


async def count_contents(connection: Connection, tenant: Tenant) -> Deleted:
    """Count what would be deleted with a tenant, each as far as `MAX_COUNTED`, and the tenant itself."""
    return Deleted(
        1,
        await principals.count_up_to(connection, tenant, PrincipalKind.MEMBER, MAX_COUNTED),
        await principals.count_up_to(connection, tenant, PrincipalKind.MACHINE_USER, MAX_COUNTED),
        min(await api_keys.count_up_to(connection, tenant, MAX_COUNTED), MAX_COUNTED),
    )


async def refuse_another_principal(
    connection: Connection, product: Product, tenant: Tenant, kind: PrincipalKind
) -> None:
    """Raise `ResourceExhausted` (`LIMIT_REACHED`) where the tenant can hold no more principals of a kind."""
    what = key_rules.limited(kind)
    limit = key_rules.limit_of(product.compiled, what)
    if limit:
        key_rules.check_limit(product.compiled, what, await principals.count_up_to(connection, tenant, kind, limit))


async def refuse_another_key(connection: Connection, product: Product, tenant: Tenant, now: datetime) -> None:
    """Raise `ResourceExhausted` (`LIMIT_REACHED`) where the tenant can hold no more keys.

    Revoked and expired keys do not count; disabled ones do, because they can be enabled.
    """
    limit = key_rules.limit_of(product.compiled, Limited.API_KEYS)
    if limit:
        count = await api_keys.count_living(connection, tenant, now, limit)
        key_rules.check_limit(product.compiled, Limited.API_KEYS, count)
