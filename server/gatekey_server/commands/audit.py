"""Reading the audit log."""

from gatekey.core.names import ProductName, TenantName

from gatekey_server.authorization.callers import Caller
from gatekey_server.commands.paging import Taker, fill
from gatekey_server.store import audit
from gatekey_server.store.audit import ChainInfo, Filter, StoredEvent
from gatekey_server.store.database import Database
from gatekey_server.store.slices import Slice

SLICE_CHAINS = 100
"""How many chains are read at once."""
SLICE_ROWS = 4
"""How many events are read at once: each may hold a spec of 1 MiB twice."""


async def list_events(
    database: Database,
    caller: Caller,
    parent: ProductName | TenantName,
    filter_: Filter,
    after: int,
    page: Taker[StoredEvent],
) -> str | None:
    """List the events of a product itself or of one tenant, in order, after the sequence number `after`.

    Returns the next cursor. The log outlives its subjects: a deleted product or tenant still has its events.
    """
    caller.require((*parent.path, "auditEvents"), "list")
    tenant = parent.tenant if isinstance(parent, TenantName) else ""
    async with database.connection() as connection:

        async def read(after: int, limit: int) -> Slice[StoredEvent, int]:
            return await audit.page(connection, parent.product, tenant, filter_, after, limit)

        return await fill(page, read, after, lambda stored: stored.event.sequence, SLICE_ROWS)


async def list_chains(
    database: Database, caller: Caller, product: ProductName | None, after: str, page: Taker[ChainInfo]
) -> str | None:
    """List the chains of a product, or of all products where none is named, after the cursor `after`.

    Returns the next cursor.
    """
    caller.require((*product.path, "auditEvents") if product else ("products",), "list")
    only = product.product if product else None
    async with database.connection() as connection:

        async def read(after: str, limit: int) -> Slice[ChainInfo, str]:
            place = after.partition("/")
            found = await audit.chains(connection, only, (place[0], place[2]) if after else None, limit)
            return Slice(found.items, None if found.last is None else "/".join(found.last))

        return await fill(page, read, after, lambda chain: f"{chain.product}/{chain.tenant}", SLICE_CHAINS)
