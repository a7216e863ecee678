"""Members and machine users on the wire."""

import secrets

from gatekey.core.decisions import CompiledSpec
from gatekey.core.entities import Principal
from gatekey.core.names import MachineUserName, TenantName, parse_id
from gatekey.core.secrets import ALPHABET
from gatekey.v1 import machine_user_service_pb2, member_service_pb2
from gatekey.wire.conversions import write_time


def read_new_machine_user(parent: TenantName, machine_user_id: str, field: str) -> MachineUserName:
    """Return the name of a new machine user. Where the request names no id, one is generated."""
    if machine_user_id:
        return MachineUserName(parent, parse_id(machine_user_id, field))
    return MachineUserName(parent, "mu_" + "".join(secrets.choice(ALPHABET) for _ in range(16)))


def write_machine_user(user: Principal, compiled: CompiledSpec) -> machine_user_service_pb2.MachineUser:
    """Return the message of a machine user, with the role that the spec gives it."""
    return machine_user_service_pb2.MachineUser(
        name=str(user.name),
        display_name=user.display_name,
        role=compiled.machine_user_role or "",
        create_time=write_time(user.create_time),
        etag=user.etag,
    )


def write_member(member: Principal) -> member_service_pb2.Member:
    """Return the message of a member."""
    return member_service_pb2.Member(
        name=str(member.name),
        role=member.role or "",
        display_name=member.display_name,
        create_time=write_time(member.create_time),
        etag=member.etag,
    )


def write_person(principal: Principal, compiled: CompiledSpec) -> member_service_pb2.Person:
    """Return the message of a member or a machine user, for lists of both."""
    if principal.is_machine_user:
        return member_service_pb2.Person(machine_user=write_machine_user(principal, compiled))
    return member_service_pb2.Person(member=write_member(principal))
