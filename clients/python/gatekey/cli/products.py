"""`gatekey products`: the APIs that keys open."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from gatekey import _methods as methods
from gatekey._connection import ADMIN_S
from gatekey.cli import names, specs, streams
from gatekey.cli.calls import connect
from gatekey.cli.names import ProductIds
from gatekey.cli.output import (
    Columns,
    DryRunOption,
    EtagOption,
    Output,
    OutputOption,
    credential_text,
    id_of,
    mode_text,
    name_of,
    show,
    show_deleted,
    show_pages,
    time_text,
)
from gatekey.cli.problems import Failure, Misuse
from gatekey.v1 import product_service_pb2 as pb
from gatekey.v1.product_spec_pb2 import ProductSpec

app = typer.Typer(no_args_is_help=True, help="The APIs that keys open, each described by a spec.")

_LOOK_THROUGH_S = 300.0
_DELETE_TENANTS_S = 600.0


class ProductOutput(enum.StrEnum):
    """How a product is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def _prefixes(product: pb.Product) -> str:
    spec = product.spec
    return " ".join(prefix for prefix in (spec.secret_keys.prefix, spec.publishable_keys.prefix) if prefix)


def _modes(product: pb.Product) -> str:
    return " ".join(mode_text(mode) for mode in product.spec.secret_keys.modes)


_DETAILS: Columns[pb.Product] = (
    ("Name", name_of),
    ("Display name", lambda product: product.spec.display_name),
    ("Keys", _prefixes),
    ("Presented as", lambda product: credential_text(product.spec.credential)),
    ("Modes", _modes),
    ("Collections", lambda product: " ".join(each.pattern for each in product.spec.collections)),
    ("Roles", lambda product: " ".join(role.role for role in product.spec.roles)),
    ("Version", lambda product: str(product.spec_version)),
    ("Created", lambda product: time_text(product.create_time)),
    ("Updated", lambda product: time_text(product.update_time)),
)
_LIST: Columns[pb.Product] = (
    ("ID", id_of),
    ("Display name", lambda product: product.spec.display_name),
    ("Keys", _prefixes),
    ("Modes", _modes),
    ("Version", lambda product: str(product.spec_version)),
)


@app.command()
def apply(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Specs, in YAML; - reads standard input.", show_default=False),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Replace a spec even where that leaves members or keys without permissions.")
    ] = False,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create the products of these specs, or replace their specs. Every problem of a spec is told."""
    requests = [
        (file, pb.ApplyProductRequest(spec=spec, force=force, validate_only=dry_run)) for file, spec in _read_all(files)
    ]
    applied, versions = pb.ListProductsResponse(), dict[str, str]()
    try:
        with connect() as gatekey:
            for file, request in requests:
                try:
                    product, trailers = gatekey.call_with_trailers(methods.APPLY_PRODUCT, request, _LOOK_THROUGH_S)
                except Failure as failure:
                    more = map(specs.in_yaml, failure.more)
                    raise Failure(f"{streams.label(file)}: {failure.message}", *more, reason=failure.reason) from None
                applied.products.append(product)
                is_unchanged = "gatekey-unchanged" in trailers
                versions[product.name] = f"{product.spec_version}{', unchanged' if is_unchanged else ''}"
    finally:
        if applied.products:
            columns = (*_LIST[:-1], ("Version", lambda product: versions[product.name]))
            show_pages(iter([applied]), "products", output, columns, dry_run=dry_run)


@app.command()
def get(
    product: ProductIds,
    output: Annotated[
        ProductOutput, typer.Option("--output", "-o", help="yaml: the spec, as `apply` reads it.")
    ] = ProductOutput.TABLE,
) -> None:
    """Show a product, or its spec."""
    request = pb.GetProductRequest(name=names.resolve([product], names.PRODUCT))
    with connect() as gatekey:
        found = gatekey.call(methods.GET_PRODUCT, request)
    if output is ProductOutput.YAML:
        typer.echo(specs.write_spec(found.spec), nl=False)
    else:
        show(found, Output(output), _DETAILS)


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List the products."""
    with connect() as gatekey:
        pages = gatekey.pages(methods.LIST_PRODUCTS, pb.ListProductsRequest())
        show_pages(pages, "products", output, _LIST)


@app.command()
def delete(
    product: ProductIds,
    force: Annotated[
        bool, typer.Option("--force", help="Delete its tenants with it, and all their keys, for good.")
    ] = False,
    etag: EtagOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Delete a product. Refused while it has tenants, unless forced."""
    name = names.resolve([product], names.PRODUCT)
    request = pb.DeleteProductRequest(name=name, force=force, etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        response = gatekey.call(methods.DELETE_PRODUCT, request, _DELETE_TENANTS_S if force else ADMIN_S)
    show_deleted(name, response, output, dry_run=dry_run)


def _read_all(files: list[Path]) -> list[tuple[Path, ProductSpec]]:
    if files.count(Path("-")) > 1:
        raise Misuse("`-` is given more than once")
    read, problems = [], []
    for file in files:
        try:
            read.append((file, specs.read_spec(file)))
        except Failure as failure:
            problems.append(failure)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [line for problem in problems for line in problem.lines]
        raise Failure(f"{len(problems)} specs cannot be used; nothing was applied", *lines)
    return read
