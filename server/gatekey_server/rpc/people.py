"""`MemberService` and `MachineUserService` on the wire."""

import secrets

from gatekey.v1 import machine_user_service_pb2, member_service_pb2
from google.protobuf.empty_pb2 import Empty

from gatekey_server.commands import people
from gatekey_server.commands.callers import Caller
from gatekey_server.domain.decisions import Policy
from gatekey_server.domain.entities import Principal
from gatekey_server.domain.names import MachineUserName, MemberName, TenantName, parse_display_name, parse_id
from gatekey_server.domain.secrets import ALPHABET
from gatekey_server.rpc import paging
from gatekey_server.rpc.values import write_time
from gatekey_server.store.database import Database

# ruff: noqa: N802 - methods are named and described by the protocol definition


class MemberServicer:
    """Manages the people of a tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def AddMember(
        self, request: member_service_pb2.AddMemberRequest, caller: Caller
    ) -> member_service_pb2.Member:
        parent = TenantName.parse(request.parent, "parent")
        name = MemberName(parent, parse_id(request.member_id, "member_id"))
        member = await people.add_member(
            self._database,
            caller,
            name,
            role=request.member.role,
            display_name=parse_display_name(request.member.display_name, "member.display_name"),
        )
        return _write_member(member)

    async def GetMember(
        self, request: member_service_pb2.GetMemberRequest, caller: Caller
    ) -> member_service_pb2.Member:
        name = MemberName.parse(request.name, "name")
        member, _ = await people.get_person(self._database, caller, name)
        return _write_member(member)

    async def ListPeople(
        self, request: member_service_pb2.ListPeopleRequest, caller: Caller
    ) -> member_service_pb2.ListPeopleResponse:
        parent = TenantName.parse(request.parent, "parent")
        size = paging.read_size(request.page_size)
        after = paging.read_number(request, request.page_token)
        page, policy, users = await people.list_people(self._database, caller, parent, after, size)
        return member_service_pb2.ListPeopleResponse(
            people=[_write_person(principal, policy) for principal in page.items],
            next_page_token=paging.write_token(request, page.next_cursor),
            user_count=users,
        )

    async def RemoveMember(self, request: member_service_pb2.RemoveMemberRequest, caller: Caller) -> Empty:
        await people.remove_person(self._database, caller, MemberName.parse(request.name, "name"))
        return Empty()


class MachineUserServicer:
    """Manages machine users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def CreateMachineUser(
        self, request: machine_user_service_pb2.CreateMachineUserRequest, caller: Caller
    ) -> machine_user_service_pb2.MachineUser:
        parent = TenantName.parse(request.parent, "parent")
        name = read_new_machine_user(parent, request.machine_user_id, "machine_user_id")
        display_name = parse_display_name(request.machine_user.display_name, "machine_user.display_name")
        user, policy = await people.create_machine_user(self._database, caller, name, display_name)
        return write_machine_user(user, policy)

    async def GetMachineUser(
        self, request: machine_user_service_pb2.GetMachineUserRequest, caller: Caller
    ) -> machine_user_service_pb2.MachineUser:
        name = MachineUserName.parse(request.name, "name")
        user, policy = await people.get_person(self._database, caller, name)
        return write_machine_user(user, policy)

    async def ListMachineUsers(
        self, request: machine_user_service_pb2.ListMachineUsersRequest, caller: Caller
    ) -> machine_user_service_pb2.ListMachineUsersResponse:
        parent = TenantName.parse(request.parent, "parent")
        size = paging.read_size(request.page_size)
        after = paging.read_number(request, request.page_token)
        page, policy = await people.list_machine_users(self._database, caller, parent, after, size)
        return machine_user_service_pb2.ListMachineUsersResponse(
            machine_users=[write_machine_user(user, policy) for user in page.items],
            next_page_token=paging.write_token(request, page.next_cursor),
        )

    async def DeleteMachineUser(
        self, request: machine_user_service_pb2.DeleteMachineUserRequest, caller: Caller
    ) -> Empty:
        await people.remove_person(self._database, caller, MachineUserName.parse(request.name, "name"))
        return Empty()


def read_new_machine_user(parent: TenantName, machine_user_id: str, field: str) -> MachineUserName:
    """The name of a new machine user; where no id is chosen, one is made."""
    if machine_user_id:
        return MachineUserName(parent, parse_id(machine_user_id, field))
    return MachineUserName(parent, "mu_" + "".join(secrets.choice(ALPHABET) for _ in range(16)))


def write_machine_user(user: Principal, policy: Policy) -> machine_user_service_pb2.MachineUser:
    """A machine user, with the role that the policy gives it."""
    return machine_user_service_pb2.MachineUser(
        name=str(user.name),
        display_name=user.display_name,
        role=policy.machine_user_role or "",
        create_time=write_time(user.create_time),
    )


def _write_member(member: Principal) -> member_service_pb2.Member:
    return member_service_pb2.Member(
        name=str(member.name),
        role=member.role or "",
        display_name=member.display_name,
        create_time=write_time(member.create_time),
    )


def _write_person(principal: Principal, policy: Policy) -> member_service_pb2.Person:
    if principal.is_machine_user:
        return member_service_pb2.Person(machine_user=write_machine_user(principal, policy))
    return member_service_pb2.Person(member=_write_member(principal))
