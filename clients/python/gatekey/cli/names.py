"""Resource names on the command line: ids as people write them, or the full name as commands print it."""

from collections.abc import Sequence
from typing import Annotated

import typer

from gatekey.cli.problems import Misuse

PRODUCT = ("products",)
TENANT = (*PRODUCT, "tenants")
MEMBER = (*TENANT, "members")
MACHINE_USER = (*TENANT, "machineUsers")
API_KEY = (*TENANT, "apiKeys")

_METAVARS = {
    "products": "PRODUCT",
    "tenants": "TENANT",
    "members": "MEMBER",
    "machineUsers": "MACHINE_USER",
    "apiKeys": "KEY",
}
_HELP = "The ids; a full name, as other commands print it, can stand for the first of them or for all."

ProductIds = Annotated[str, typer.Argument(metavar="PRODUCT", help="The id or the full name.", show_default=False)]
TenantIds = Annotated[list[str], typer.Argument(metavar="PRODUCT TENANT", help=_HELP, show_default=False)]
MemberIds = Annotated[list[str], typer.Argument(metavar="PRODUCT TENANT MEMBER", help=_HELP, show_default=False)]
MachineUserIds = Annotated[
    list[str], typer.Argument(metavar="PRODUCT TENANT MACHINE_USER", help=_HELP, show_default=False)
]
KeyIds = Annotated[list[str], typer.Argument(metavar="PRODUCT TENANT KEY", help=_HELP, show_default=False)]


def resolve(ids: Sequence[str], collections: Sequence[str]) -> str:
    """Write the full name: `heyoo acme` and `products/heyoo acme` are `products/heyoo/tenants/acme`.

    Raises `Misuse`.
    """
    first = ids[0].split("/") if ids[0].startswith("products/") else ["products", ids[0]]
    segments = [*first]
    for collection, id_ in zip(collections[len(first) // 2 :], ids[1:], strict=False):
        segments += [collection, id_]
    is_whole = len(first) // 2 + len(ids) - 1 == len(collections) and segments[::2] == [*collections]
    if not is_whole or any("/" in segment for segment in segments):
        wanted = " ".join(_METAVARS[collection] for collection in collections)
        name = "/".join(f"{collection}/{_METAVARS[collection]}" for collection in collections)
        raise Misuse(f"{wanted} is required, or the name {name}")
    return "/".join(segments)


def split(name: str) -> tuple[str, str]:
    """The parent's name and the id: `products/heyoo/tenants/acme` is `acme` in `products/heyoo`."""
    parent, _, id_ = name.rsplit("/", 2)
    return parent, id_


def within(parent: str, collection: str, id_or_name: str) -> str:
    """The full name of what the id stands for in the parent; a full name stays as it is."""
    return id_or_name if id_or_name.startswith("products/") else f"{parent}/{collection}/{id_or_name}"
