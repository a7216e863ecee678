"""`MachineUserService` on the wire."""

from gatekey.core.decisions import CompiledSpec
from gatekey.core.entities import Deleted, Principal
from gatekey.core.names import MachineUserName, TenantName, parse_display_name
from gatekey.v1 import machine_user_service_pb2
from gatekey.wire.conversions import read_mask, write_deleted

from gatekey_server.commands import principals
from gatekey_server.rpc.context import Call
from gatekey_server.rpc.wire import paging
from gatekey_server.rpc.wire.principals import read_new_machine_user, write_machine_user
from gatekey_server.store.database import Database

# ruff: noqa: N802 - methods are named and described by the protocol definition


class MachineUserServicer:
    """Manages machine users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def CreateMachineUser(
        self, request: machine_user_service_pb2.CreateMachineUserRequest, call: Call
    ) -> machine_user_service_pb2.MachineUser:
        parent = TenantName.parse(request.parent, "parent")
        name = read_new_machine_user(parent, request.machine_user_id, "machine_user_id")
        display_name = parse_display_name(request.machine_user.display_name, "machine_user.display_name")
        mutation = call.mutation(request, _write_machine_user)
        return _write_machine_user(await principals.create_machine_user(self._database, mutation, name, display_name))

    async def GetMachineUser(
        self, request: machine_user_service_pb2.GetMachineUserRequest, call: Call
    ) -> machine_user_service_pb2.MachineUser:
        name = MachineUserName.parse(request.name, "name")
        user, compiled = await principals.get_principal(self._database, call.caller, name)
        return write_machine_user(user, compiled)

    async def ListMachineUsers(
        self, request: machine_user_service_pb2.ListMachineUsersRequest, call: Call
    ) -> machine_user_service_pb2.ListMachineUsersResponse:
        parent = TenantName.parse(request.parent, "parent")
        after = paging.read_number(request, request.page_token)
        response = machine_user_service_pb2.ListMachineUsersResponse()

        def page(compiled: CompiledSpec) -> paging.PageWriter[Principal]:
            return paging.PageWriter(
                response.machine_users, lambda user: write_machine_user(user, compiled), request.page_size
            )

        following = await principals.list_machine_users(self._database, call.caller, parent, after, page)
        response.next_page_token = paging.write_token(request, following)
        return response

    async def UpdateMachineUser(
        self, request: machine_user_service_pb2.UpdateMachineUserRequest, call: Call
    ) -> machine_user_service_pb2.MachineUser:
        user = request.machine_user
        name = MachineUserName.parse(user.name, "machine_user.name")
        read_mask(request.update_mask, ["display_name"], "a machine user")
        display_name = parse_display_name(user.display_name, "machine_user.display_name")
        mutation = call.mutation(request, _write_machine_user)
        return _write_machine_user(
            await principals.update_machine_user(self._database, mutation, name, user.etag, display_name=display_name)
        )

    async def DeleteMachineUser(
        self, request: machine_user_service_pb2.DeleteMachineUserRequest, call: Call
    ) -> machine_user_service_pb2.DeleteMachineUserResponse:
        name = MachineUserName.parse(request.name, "name")
        mutation = call.mutation(request, _write_deleted_machine_user)
        return _write_deleted_machine_user(
            await principals.remove_principal(self._database, mutation, name, request.etag)
        )


def _write_machine_user(person: principals.PrincipalAndSpec) -> machine_user_service_pb2.MachineUser:
    return write_machine_user(*person)


def _write_deleted_machine_user(deleted: Deleted) -> machine_user_service_pb2.DeleteMachineUserResponse:
    return machine_user_service_pb2.DeleteMachineUserResponse(deleted=write_deleted(deleted))
