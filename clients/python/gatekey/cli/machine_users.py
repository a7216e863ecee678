"""`gatekey machine-users`: principals that are no person."""

from typing import Annotated

import typer

from gatekey import _methods as methods
from gatekey.cli import names
from gatekey.cli.calls import connect
from gatekey.cli.names import MachineUserIds, TenantIds
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
from gatekey.v1 import machine_user_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Principals that are no person.")

_COLUMNS: Columns[pb.MachineUser] = (
    ("Role", lambda user: user.role),
    ("Display name", lambda user: user.display_name),
    ("Created", lambda user: time_text(user.create_time)),
)


@app.command()
def create(
    ids: MachineUserIds,
    display_name: Annotated[str, typer.Option()] = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a machine user without keys, where the product lets it live without."""
    parent, machine_user_id = names.split(names.resolve(ids, names.MACHINE_USER))
    user = pb.MachineUser(display_name=display_name)
    request = pb.CreateMachineUserRequest(
        parent=parent, machine_user_id=machine_user_id, machine_user=user, validate_only=dry_run
    )
    with connect() as gatekey:
        _show(gatekey.call(methods.CREATE_MACHINE_USER, request), output, dry_run=dry_run)


@app.command()
def get(ids: MachineUserIds, output: OutputOption = Output.TABLE) -> None:
    """Show a machine user."""
    request = pb.GetMachineUserRequest(name=names.resolve(ids, names.MACHINE_USER))
    with connect() as gatekey:
        _show(gatekey.call(methods.GET_MACHINE_USER, request), output)


@app.command("list")
def list_(ids: TenantIds, output: OutputOption = Output.TABLE) -> None:
    """List the machine users of a tenant."""
    request = pb.ListMachineUsersRequest(parent=names.resolve(ids, names.TENANT))
    with connect() as gatekey:
        pages = gatekey.pages(methods.LIST_MACHINE_USERS, request)
        show_pages(pages, "machine_users", output, [("ID", id_of), *_COLUMNS])


@app.command()
def update(
    ids: MachineUserIds,
    display_name: Annotated[str, typer.Option(help="The new name for people.")],
    etag: EtagOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a machine user another name for people."""
    user = pb.MachineUser(name=names.resolve(ids, names.MACHINE_USER), display_name=display_name, etag=etag)
    request = pb.UpdateMachineUserRequest(machine_user=user, validate_only=dry_run)
    request.update_mask.paths.append("display_name")
    with connect() as gatekey:
        _show(gatekey.call(methods.UPDATE_MACHINE_USER, request), output, dry_run=dry_run)


@app.command()
def delete(
    ids: MachineUserIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Delete a machine user with all its keys."""
    name = names.resolve(ids, names.MACHINE_USER)
    request = pb.DeleteMachineUserRequest(name=name, etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        response = gatekey.call(methods.DELETE_MACHINE_USER, request)
    show_deleted(name, response, output, dry_run=dry_run)


def _show(user: pb.MachineUser, output: Output, *, dry_run: bool = False) -> None:
    show(user, output, [("Name", name_of), *_COLUMNS], dry_run=dry_run)
