"""`TenantService` on the wire."""

from datetime import timedelta

from gatekey.core.entities import Deleted, Tenant
from gatekey.core.names import ProductName, TenantName, parse_display_name, parse_id
from gatekey.v1 import tenant_service_pb2 as pb
from gatekey.wire.conversions import TENANT_STATE, read_mask, write_deleted, write_time

from gatekey_server.commands import tenants
from gatekey_server.rpc.context import Call
from gatekey_server.rpc.wire import paging
from gatekey_server.store.database import Database

# ruff: noqa: N802 - methods are named and described by the protocol definition


class TenantServicer:
    """Manages tenants."""

    def __init__(self, database: Database, retention: timedelta) -> None:
        self._database = database
        self._retention = retention

    async def CreateTenant(self, request: pb.CreateTenantRequest, call: Call) -> pb.Tenant:
        parent = ProductName.parse(request.parent, "parent")
        name = TenantName(parent.product, parse_id(request.tenant_id, "tenant_id"))
        display_name = parse_display_name(request.tenant.display_name, "tenant.display_name")
        mutation = call.mutation(request, _write)
        return _write(await tenants.create_tenant(self._database, mutation, name, display_name))

    async def GetTenant(self, request: pb.GetTenantRequest, call: Call) -> pb.Tenant:
        name = TenantName.parse(request.name, "name")
        return _write(await tenants.get_tenant(self._database, call.caller, name))

    async def ListTenants(self, request: pb.ListTenantsRequest, call: Call) -> pb.ListTenantsResponse:
        parent = ProductName.parse(request.parent, "parent")
        after = paging.read_number(request, request.page_token)
        response = pb.ListTenantsResponse()
        page = paging.PageWriter(response.tenants, _write, request.page_size)
        following = await tenants.list_tenants(
            self._database, call.caller, parent, after, page, show_deleted=request.show_deleted
        )
        response.next_page_token = paging.write_token(request, following)
        return response

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, call: Call) -> pb.Tenant:
        name = TenantName.parse(request.tenant.name, "tenant.name")
        read_mask(request.update_mask, ["display_name"], "a tenant")
        display_name = parse_display_name(request.tenant.display_name, "tenant.display_name")
        mutation = call.mutation(request, _write)
        return _write(
            await tenants.update_tenant(self._database, mutation, name, request.tenant.etag, display_name=display_name)
        )

    async def SuspendTenant(self, request: pb.SuspendTenantRequest, call: Call) -> pb.Tenant:
        name, mutation = TenantName.parse(request.name, "name"), call.mutation(request, _write)
        return _write(await tenants.suspend_tenant(self._database, mutation, name, request.etag))

    async def ResumeTenant(self, request: pb.ResumeTenantRequest, call: Call) -> pb.Tenant:
        name, mutation = TenantName.parse(request.name, "name"), call.mutation(request, _write)
        return _write(await tenants.resume_tenant(self._database, mutation, name, request.etag))

    async def DeleteTenant(self, request: pb.DeleteTenantRequest, call: Call) -> pb.DeleteTenantResponse:
        name, mutation = TenantName.parse(request.name, "name"), call.mutation(request, _write_deleted)
        return _write_deleted(
            await tenants.delete_tenant(self._database, mutation, name, request.etag, self._retention)
        )

    async def UndeleteTenant(self, request: pb.UndeleteTenantRequest, call: Call) -> pb.Tenant:
        name, mutation = TenantName.parse(request.name, "name"), call.mutation(request, _write)
        return _write(await tenants.undelete_tenant(self._database, mutation, name, request.etag))


def _write_deleted(result: tuple[Tenant, Deleted]) -> pb.DeleteTenantResponse:
    tenant, deleted = result
    return pb.DeleteTenantResponse(tenant=_write(tenant), deleted=write_deleted(deleted))


def _write(tenant: Tenant) -> pb.Tenant:
    return pb.Tenant(
        name=str(tenant.name),
        display_name=tenant.display_name,
        state=TENANT_STATE.write(tenant.state),
        create_time=write_time(tenant.create_time),
        delete_time=write_time(tenant.delete_time),
        suspend_time=write_time(tenant.suspend_time),
        purge_time=write_time(tenant.purge_time),
        etag=tenant.etag,
    )
