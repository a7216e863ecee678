"""`gatekey tenants`: the containers of a product's customers."""

from typing import Annotated

import typer

from gatekey import _methods as methods
from gatekey.cli import names
from gatekey.cli.calls import connect
from gatekey.cli.names import ProductIds, TenantIds
from gatekey.cli.output import (
    Columns,
    DryRunOption,
    EtagOption,
    Output,
    OutputOption,
    enum_text,
    id_of,
    name_of,
    show,
    show_deleted,
    show_pages,
    time_text,
)
from gatekey.v1 import tenant_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="The containers of a product's customers.")

_COLUMNS: Columns[pb.Tenant] = (
    ("Display name", lambda tenant: tenant.display_name),
    ("State", lambda tenant: enum_text(pb.Tenant.State, tenant.state, "STATE_")),
    ("Created", lambda tenant: time_text(tenant.create_time)),
    ("Deleted", lambda tenant: time_text(tenant.delete_time if tenant.HasField("delete_time") else None)),
)


@app.command()
def create(
    ids: TenantIds,
    display_name: Annotated[str, typer.Option()] = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a tenant: gatekey tenants create heyoo acme --display-name Acme."""
    parent, tenant_id = names.split(names.resolve(ids, names.TENANT))
    tenant = pb.Tenant(display_name=display_name)
    request = pb.CreateTenantRequest(parent=parent, tenant_id=tenant_id, tenant=tenant, validate_only=dry_run)
    with connect() as gatekey:
        _show(gatekey.call(methods.CREATE_TENANT, request), output, dry_run=dry_run)


@app.command()
def get(ids: TenantIds, output: OutputOption = Output.TABLE) -> None:
    """Show a tenant, also a deleted one."""
    request = pb.GetTenantRequest(name=names.resolve(ids, names.TENANT))
    with connect() as gatekey:
        _show(gatekey.call(methods.GET_TENANT, request), output)


@app.command("list")
def list_(
    product: ProductIds,
    show_deleted: Annotated[bool, typer.Option("--show-deleted", help="Deleted tenants as well.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the tenants of a product."""
    request = pb.ListTenantsRequest(parent=names.resolve([product], names.PRODUCT), show_deleted=show_deleted)
    with connect() as gatekey:
        pages = gatekey.pages(methods.LIST_TENANTS, request)
        show_pages(pages, "tenants", output, [("ID", id_of), *_COLUMNS])


@app.command()
def update(
    ids: TenantIds,
    display_name: Annotated[str, typer.Option(help="The new name for people.")],
    etag: EtagOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a tenant another name for people."""
    tenant = pb.Tenant(name=names.resolve(ids, names.TENANT), display_name=display_name, etag=etag)
    request = pb.UpdateTenantRequest(tenant=tenant, validate_only=dry_run)
    request.update_mask.paths.append("display_name")
    with connect() as gatekey:
        _show(gatekey.call(methods.UPDATE_TENANT, request), output, dry_run=dry_run)


@app.command()
def suspend(
    ids: TenantIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Deny all keys of a tenant until it is resumed."""
    request = pb.SuspendTenantRequest(name=names.resolve(ids, names.TENANT), etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        _show(gatekey.call(methods.SUSPEND_TENANT, request), output, dry_run=dry_run)


@app.command()
def resume(
    ids: TenantIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """End the suspension of a tenant."""
    request = pb.ResumeTenantRequest(name=names.resolve(ids, names.TENANT), etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        _show(gatekey.call(methods.RESUME_TENANT, request), output, dry_run=dry_run)


@app.command()
def undelete(
    ids: TenantIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Take the deletion of a tenant back, as long as it was not purged."""
    request = pb.UndeleteTenantRequest(name=names.resolve(ids, names.TENANT), etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        _show(gatekey.call(methods.UNDELETE_TENANT, request), output, dry_run=dry_run)


@app.command()
def delete(
    ids: TenantIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Delete a tenant: its keys stop working at once. It can be undeleted until it is purged."""
    name = names.resolve(ids, names.TENANT)
    request = pb.DeleteTenantRequest(name=name, etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        response = gatekey.call(methods.DELETE_TENANT, request)
    show_deleted(name, response, output, dry_run=dry_run)


def _show(tenant: pb.Tenant, output: Output, *, dry_run: bool = False) -> None:
    show(tenant, output, [("Name", name_of), *_COLUMNS], dry_run=dry_run)
