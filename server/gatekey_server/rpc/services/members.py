"""`MemberService` on the wire."""

from gatekey.core.decisions import CompiledSpec
from gatekey.core.entities import Deleted, Principal
from gatekey.core.names import MemberName, TenantName, parse_display_name, parse_id
from gatekey.v1 import member_service_pb2
from gatekey.wire.conversions import read_mask, write_deleted

from gatekey_server.commands import principals
from gatekey_server.rpc.context import Call
from gatekey_server.rpc.wire import paging
from gatekey_server.rpc.wire.principals import write_member, write_person
from gatekey_server.store.database import Database

# ruff: noqa: N802 - methods are named and described by the protocol definition


class MemberServicer:
    """Manages the members of a tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def AddMember(self, request: member_service_pb2.AddMemberRequest, call: Call) -> member_service_pb2.Member:
        parent = TenantName.parse(request.parent, "parent")
        name = MemberName(parent, parse_id(request.member_id, "member_id"))
        member = await principals.add_member(
            self._database,
            call.mutation(request, write_member),
            name,
            role=request.member.role,
            display_name=parse_display_name(request.member.display_name, "member.display_name"),
        )
        return write_member(member)

    async def GetMember(self, request: member_service_pb2.GetMemberRequest, call: Call) -> member_service_pb2.Member:
        name = MemberName.parse(request.name, "name")
        member, _ = await principals.get_principal(self._database, call.caller, name)
        return write_member(member)

    async def ListPeople(
        self, request: member_service_pb2.ListPeopleRequest, call: Call
    ) -> member_service_pb2.ListPeopleResponse:
        parent = TenantName.parse(request.parent, "parent")
        after = paging.read_number(request, request.page_token)
        response = member_service_pb2.ListPeopleResponse()

        def page(compiled: CompiledSpec) -> paging.PageWriter[Principal]:
            return paging.PageWriter(
                response.people, lambda principal: write_person(principal, compiled), request.page_size
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
            call.mutation(request, write_member),
            MemberName.parse(member.name, "member.name"),
            member.etag,
            role=member.role if "role" in fields else None,
            display_name=parse_display_name(member.display_name, "member.display_name")
            if "display_name" in fields
            else None,
            force=request.force,
        )
        return write_member(updated)

    async def RemoveMember(
        self, request: member_service_pb2.RemoveMemberRequest, call: Call
    ) -> member_service_pb2.RemoveMemberResponse:
        name = MemberName.parse(request.name, "name")
        mutation = call.mutation(request, _write_removed_member)
        return _write_removed_member(
            await principals.remove_principal(self._database, mutation, name, request.etag, force=request.force)
        )


def _write_removed_member(deleted: Deleted) -> member_service_pb2.RemoveMemberResponse:
    return member_service_pb2.RemoveMemberResponse(deleted=write_deleted(deleted))
