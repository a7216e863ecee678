"""`gatekey members`: the people of a tenant."""

from typing import Annotated

import typer

from gatekey import _methods as methods
from gatekey.cli import names
from gatekey.cli.calls import connect
from gatekey.cli.names import MemberIds, TenantIds
from gatekey.cli.output import (
    Columns,
    DryRunOption,
    EtagOption,
    Output,
    OutputOption,
    id_of,
    name_of,
    show,
    show_deleted,
    show_pages,
    time_text,
)
from gatekey.cli.problems import Misuse
from gatekey.v1 import machine_user_service_pb2
from gatekey.v1 import member_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="The people of a tenant.")

ForceOption = Annotated[
    bool, typer.Option("--force", help="Even if it leaves the tenant without an owner.", show_default=False)
]

_MEMBER: Columns[pb.Member] = (
    ("Name", name_of),
    ("Role", lambda member: member.role),
    ("Display name", lambda member: member.display_name),
    ("Added", lambda member: time_text(member.create_time)),
)
_PEOPLE: Columns[pb.Person] = (
    ("ID", lambda person: id_of(_who(person))),
    ("Kind", lambda person: "machine user" if person.HasField("machine_user") else "member"),
    ("Role", lambda person: _who(person).role),
    ("Display name", lambda person: _who(person).display_name),
    ("Added", lambda person: time_text(_who(person).create_time)),
)


@app.command()
def add(
    ids: MemberIds,
    role: Annotated[str, typer.Option(help="One of the roles of the product's spec.")],
    display_name: Annotated[str, typer.Option()] = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add a person to a tenant: gatekey members add heyoo acme u_42 --role owner."""
    parent, member_id = names.split(names.resolve(ids, names.MEMBER))
    member = pb.Member(role=role, display_name=display_name)
    request = pb.AddMemberRequest(parent=parent, member_id=member_id, member=member, validate_only=dry_run)
    with connect() as gatekey:
        show(gatekey.call(methods.ADD_MEMBER, request), output, _MEMBER, dry_run=dry_run)


@app.command()
def get(ids: MemberIds, output: OutputOption = Output.TABLE) -> None:
    """Show a member."""
    request = pb.GetMemberRequest(name=names.resolve(ids, names.MEMBER))
    with connect() as gatekey:
        show(gatekey.call(methods.GET_MEMBER, request), output, _MEMBER)


@app.command("list")
def list_(ids: TenantIds, output: OutputOption = Output.TABLE) -> None:
    """List the people of a tenant, members and machine users, and count its users."""
    request = pb.ListPeopleRequest(parent=names.resolve(ids, names.TENANT))
    with connect() as gatekey:
        last = show_pages(gatekey.pages(methods.LIST_PEOPLE, request), "people", output, _PEOPLE)
    if output is Output.TABLE:
        typer.echo(f"\nUsers: {last.user_count} (machine users do not count)")


@app.command()
def update(
    ids: MemberIds,
    role: Annotated[str | None, typer.Option(help="The new role; counts at the next check.")] = None,
    display_name: Annotated[str | None, typer.Option()] = None,
    force: ForceOption = False,
    etag: EtagOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a member's role or name."""
    request = pb.UpdateMemberRequest(
        member=pb.Member(
            name=names.resolve(ids, names.MEMBER), role=role or "", display_name=display_name or "", etag=etag
        ),
        force=force,
        validate_only=dry_run,
    )
    changes = {"role": role, "display_name": display_name}
    request.update_mask.paths.extend(field for field, value in changes.items() if value is not None)
    if not request.update_mask.paths:
        raise Misuse("nothing is to be changed: give at least one of --role and --display-name")
    with connect() as gatekey:
        show(gatekey.call(methods.UPDATE_MEMBER, request), output, _MEMBER, dry_run=dry_run)


@app.command()
def remove(
    ids: MemberIds,
    force: ForceOption = False,
    etag: EtagOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove a person from a tenant, with all their keys."""
    name = names.resolve(ids, names.MEMBER)
    request = pb.RemoveMemberRequest(name=name, force=force, etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        response = gatekey.call(methods.REMOVE_MEMBER, request)
    show_deleted(name, response, output, dry_run=dry_run)


def _who(person: pb.Person) -> pb.Member | machine_user_service_pb2.MachineUser:
    return person.machine_user if person.HasField("machine_user") else person.member
