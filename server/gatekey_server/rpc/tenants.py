"""`TenantService` on the wire."""

from gatekey.v1 import tenant_service_pb2 as pb

from gatekey_server.commands import tenants
from gatekey_server.commands.callers import Caller
from gatekey_server.domain.entities import Tenant
from gatekey_server.domain.names import ProductName, TenantName, parse_display_name, parse_id
from gatekey_server.rpc import paging
from gatekey_server.rpc.values import TENANT_STATE, write_time
from gatekey_server.store.database import Database

# ruff: noqa: N802 - methods are named and described by the protocol definition


class TenantServicer:
    """Manages tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def CreateTenant(self, request: pb.CreateTenantRequest, caller: Caller) -> pb.Tenant:
        parent = ProductName.parse(request.parent, "parent")
        name = TenantName(parent.product, parse_id(request.tenant_id, "tenant_id"))
        display_name = parse_display_name(request.tenant.display_name, "tenant.display_name")
        return _write(await tenants.create_tenant(self._database, caller, name, display_name))

    async def GetTenant(self, request: pb.GetTenantRequest, caller: Caller) -> pb.Tenant:
        name = TenantName.parse(request.name, "name")
        return _write(await tenants.get_tenant(self._database, caller, name))

    async def ListTenants(self, request: pb.ListTenantsRequest, caller: Caller) -> pb.ListTenantsResponse:
        parent = ProductName.parse(request.parent, "parent")
        size = paging.read_size(request.page_size)
        after = paging.read_number(request, request.page_token)
        page = await tenants.list_tenants(
            self._database, caller, parent, after, size, show_deleted=request.show_deleted
        )
        return pb.ListTenantsResponse(
            tenants=[_write(tenant) for tenant in page.items],
            next_page_token=paging.write_token(request, page.next_cursor),
        )

    async def DeleteTenant(self, request: pb.DeleteTenantRequest, caller: Caller) -> pb.Tenant:
        name = TenantName.parse(request.name, "name")
        return _write(await tenants.delete_tenant(self._database, caller, name))


def _write(tenant: Tenant) -> pb.Tenant:
    return pb.Tenant(
        name=str(tenant.name),
        display_name=tenant.display_name,
        state=TENANT_STATE.write(tenant.state),
        create_time=write_time(tenant.create_time),
        delete_time=write_time(tenant.delete_time),
    )
