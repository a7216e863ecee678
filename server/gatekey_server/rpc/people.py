"""`MemberService` and `MachineUserService` on the wire."""

import secrets

from gatekey.v1 import machine_user_service_pb2, member_service_pb2

from gatekey_server.commands import principals
from gatekey_server.domain.decisions import CompiledSpec
from gatekey_server.domain.entities import Deleted, Principal
from gatekey_server.domain.names import MachineUserName, MemberName, TenantName, parse_display_name, parse_id
from gatekey_server.domain.secrets import ALPHABET
from gatekey_server.rpc import paging
from gatekey_server.rpc.context import Call
from gatekey_server.rpc.values import read_mask, write_deleted, write_time
from gatekey_server.store.database import Database

# ruff: noqa: N802 - methods are named and described by the protocol definition


class MemberServicer:
    """Manages the people of a tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def AddMember(self, request: member_service_pb2.AddMemberRequest, call: Call) -> member_service_pb2.Member:
        parent = TenantName.parse(request.parent, "parent")
        name = MemberName(parent, parse_id(request.member_id, "member_id"))
        member = await principals.add_member(
            self._database,
            call.mutation(request, _write_member),
            name,
            role=request.member.role,
            display_name=parse_display_name(request.member.display_name, "member.display_name"),
        )
        return _write_member(member)

    async def GetMember(self, request: member_service_pb2.GetMemberRequest, call: Call) -> member_service_pb2.Member:
        name = MemberName.parse(request.name, "name")
        member, _ = await principals.get_principal(self._database, call.caller, name)
        return _write_member(member)

    async def ListPeople(
        self, request: member_service_pb2.ListPeopleRequest, call: Call
    ) -> member_service_pb2.ListPeopleResponse:
        parent = TenantName.parse(request.parent, "parent")
        after = paging.read_number(request, request.page_token)
        response = member_service_pb2.ListPeopleResponse()

        def page(compiled: CompiledSpec) -> paging.PageWriter[Principal]:
            return paging.PageWriter(
                response.people, lambda principal: _write_person(principal, compiled), request.page_size
            )

        following, response.user_count = await principals.list_principals(
            self._database, call.caller, parent, after, page
        )
        response.next_page_token = paging.write_token(request, following)
        return response

    async def UpdateMember(
        self, request: member_service_pb2.UpdateMemberRequest, call: Call
    ) -> member_service_pb2.Member:
        member = request.member
        fields = read_mask(request.update_mask, ["role", "display_name"], "a member")
        updated = await principals.update_member(
            self._database,
            call.mutation(request, _write_member),
            MemberName.parse(member.name, "member.name"),
            member.etag,
            role=member.role if "role" in fields else None,
            display_name=parse_display_name(member.display_name, "member.display_name")
            if "display_name" in fields
            else None,
            force=request.force,
        )
        return _write_member(updated)

    async def RemoveMember(
        self, request: member_service_pb2.RemoveMemberRequest, call: Call
    ) -> member_service_pb2.RemoveMemberResponse:
        name = MemberName.parse(request.name, "name")
        mutation = call.mutation(request, _write_removed_member)
        return _write_removed_member(
            await principals.remove_principal(self._database, mutation, name, request.etag, force=request.force)
        )


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


def read_new_machine_user(parent: TenantName, machine_user_id: str, field: str) -> MachineUserName:
    """The name of a new machine user; where no id is chosen, one is made."""
    if machine_user_id:
        return MachineUserName(parent, parse_id(machine_user_id, field))
    return MachineUserName(parent, "mu_" + "".join(secrets.choice(ALPHABET) for _ in range(16)))


def write_machine_user(user: Principal, compiled: CompiledSpec) -> machine_user_service_pb2.MachineUser:
    """A machine user, with the role that the spec gives it."""
    return machine_user_service_pb2.MachineUser(
        name=str(user.name),
        display_name=user.display_name,
        role=compiled.machine_user_role or "",
        create_time=write_time(user.create_time),
        etag=user.etag,
    )


def _write_machine_user(person: principals.PrincipalAndSpec) -> machine_user_service_pb2.MachineUser:
    return write_machine_user(*person)


def _write_deleted_machine_user(deleted: Deleted) -> machine_user_service_pb2.DeleteMachineUserResponse:
    return machine_user_service_pb2.DeleteMachineUserResponse(deleted=write_deleted(deleted))


def _write_removed_member(deleted: Deleted) -> member_service_pb2.RemoveMemberResponse:
    return member_service_pb2.RemoveMemberResponse(deleted=write_deleted(deleted))


def _write_member(member: Principal) -> member_service_pb2.Member:
    return member_service_pb2.Member(
        name=str(member.name),
        role=member.role or "",
        display_name=member.display_name,
        create_time=write_time(member.create_time),
        etag=member.etag,
    )


def _write_person(principal: Principal, compiled: CompiledSpec) -> member_service_pb2.Person:
    if principal.is_machine_user:
        return member_service_pb2.Person(machine_user=write_machine_user(principal, compiled))
    return member_service_pb2.Person(member=_write_member(principal))
