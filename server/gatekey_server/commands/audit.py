"""Reading the audit log."""

from gatekey_server.commands.callers import Caller
from gatekey_server.commands.paging import Page
from gatekey_server.domain.names import ProductName, TenantName
from gatekey_server.store import audit
from gatekey_server.store.audit import Filter, StoredEvent
from gatekey_server.store.database import Database


async def list_events(
    database: Database, caller: Caller, parent: ProductName | TenantName, filter_: Filter, after: int, size: int
) -> Page[StoredEvent]:
    """List the events of a product itself or of one tenant, in their order, from the one after `after`.

    The log outlives what it is about: a parent that is gone still has its events.
    """
    caller.require((*parent.path, "auditEvents"), "list")
    tenant = parent.tenant if isinstance(parent, TenantName) else ""
    async with database.connection() as connection:
        found = await audit.page(connection, parent.product, tenant, filter_, after, size + 1)
    return Page.of(found, size, lambda stored: stored.event.sequence)
