"""`gatekey keys`: API keys."""

import enum
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from gatekey.cli import names
from gatekey.cli.checks import read_secret
from gatekey.cli.connection import connect
from gatekey.cli.names import KeyIds, TenantIds
from gatekey.cli.output import (
    Columns,
    DryRunOption,
    EtagOption,
    Output,
    OutputOption,
    enum_text,
    id_of,
    mode_text,
    name_of,
    show,
    show_deleted,
    show_json,
    show_pages,
    show_secret,
    time_text,
)
from gatekey.cli.problems import Misuse
from gatekey.v1 import api_key_service_pb2 as pb
from gatekey.v1 import types_pb2

app = typer.Typer(no_args_is_help=True, help="API keys.")


class Mode(enum.StrEnum):
    """An access mode, as people write it."""

    ALL = "all"
    READ_ONLY = "read-only"
    RESTRICTED = "restricted"


_TTL = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

NameOption = Annotated[str, typer.Option("--name", help="The name for people.", show_default=False)]
ModeOption = Annotated[Mode | None, typer.Option(help="The product's default if neither this nor --grant is given.")]
GrantOption = Annotated[
    list[str] | None,
    typer.Option(
        "--grant",
        metavar="RESOURCE:ACTION[,ACTION…]",
        help="May be repeated. Means --mode restricted.",
        show_default=False,
    ),
]
ExpiresOption = Annotated[
    str | None, typer.Option("--expires", metavar="TIME", help="When it stops working: 2027-01-01T00:00:00Z.")
]
TtlOption = Annotated[
    str | None, typer.Option("--ttl", metavar="DURATION", help="How long it works: 90s, 15m, 12h, 30d, 2w.")
]


def _kind(key: pb.ApiKey) -> str:
    return enum_text(types_pb2.KeyKind, key.kind, "KEY_KIND_")


def _owner_in_tenant(key: pb.ApiKey) -> str:
    return "/".join(key.owner.split("/")[4:])


def _state(key: pb.ApiKey) -> str:
    return enum_text(pb.ApiKey.State, key.state, "STATE_")


def _expires(key: pb.ApiKey) -> str:
    return time_text(key.expire_time if key.HasField("expire_time") else None)


_DETAILS: Columns[pb.ApiKey] = (
    ("Name", name_of),
    ("Display name", lambda key: key.display_name),
    ("Kind", _kind),
    ("Owner", _owner_in_tenant),
    ("Mode", lambda key: mode_text(key.mode)),
    ("Grants", lambda key: " ".join(f"{grant.resource}:{','.join(grant.actions)}" for grant in key.grants)),
    ("State", _state),
    ("Secret", lambda key: " ".join(f"{secret.hint}…" for secret in key.secrets)),
    ("Created", lambda key: time_text(key.create_time)),
    ("Expires", _expires),
)
_LIST: Columns[pb.ApiKey] = (
    ("ID", id_of),
    ("Display name", lambda key: key.display_name),
    ("Owner", _owner_in_tenant),
    ("Mode", lambda key: mode_text(key.mode) or _kind(key)),
    ("State", _state),
    ("Expires", _expires),
)


@app.command()
def create(
    ids: TenantIds,
    name: NameOption,
    member: Annotated[str | None, typer.Option(metavar="ID", help="The member who owns it.")] = None,
    machine_user: Annotated[str | None, typer.Option(metavar="ID", help="The machine user that owns it.")] = None,
    new_machine_user: Annotated[
        bool, typer.Option("--new-machine-user", help="Create a machine user that owns it.")
    ] = False,
    machine_user_id: Annotated[
        str | None, typer.Option(metavar="ID", help="The id of the new machine user; else one is made.")
    ] = None,
    publishable: Annotated[
        bool, typer.Option("--publishable", help="A publishable key, which the tenant owns.")
    ] = False,
    mode: ModeOption = None,
    grant: GrantOption = None,
    expires: ExpiresOption = None,
    ttl: TtlOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a key, and show its secret this once.

    For a member (--member), a machine user (--machine-user or --new-machine-user), or --publishable:
    gatekey keys create heyoo acme --name CI --member u_42 --grant links:read,update
    """
    if [member is not None, machine_user is not None, new_machine_user, publishable].count(True) != 1:
        raise Misuse("exactly one of --member, --machine-user, --new-machine-user and --publishable is required")
    if machine_user_id is not None and not new_machine_user:
        raise Misuse("--machine-user-id needs --new-machine-user")
    parent = names.resolve(ids, names.TENANT)
    request = new_key(parent, name, mode, grant, expires, ttl)
    if publishable:
        request.api_key.kind = types_pb2.KEY_KIND_PUBLISHABLE
    if new_machine_user:
        request.new_machine_user.machine_user_id = machine_user_id or ""
        request.new_machine_user.SetInParent()
    request.api_key.owner = _owner(parent, member, machine_user)
    create_key(request, output, "The secret", dry_run=dry_run)


@app.command("list")
def list_(
    ids: TenantIds,
    member: Annotated[str | None, typer.Option(metavar="ID", help="Only the keys of this member.")] = None,
    machine_user: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this machine user.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the keys of a tenant, without their secrets."""
    if member is not None and machine_user is not None:
        raise Misuse("only one of --member and --machine-user can be given")
    parent = names.resolve(ids, names.TENANT)
    request = pb.ListApiKeysRequest(parent=parent, owner=_owner(parent, member, machine_user))
    with connect() as gatekey:
        pages = gatekey.pages(gatekey.keys.ListApiKeys, request)
        show_pages(pages, "api_keys", output, _LIST)


@app.command()
def get(ids: KeyIds, output: OutputOption = Output.TABLE) -> None:
    """Show a key, without its secret."""
    request = pb.GetApiKeyRequest(name=names.resolve(ids, names.API_KEY))
    with connect() as gatekey:
        show(gatekey.call(gatekey.keys.GetApiKey, request), output, _DETAILS)


@app.command()
def update(
    ids: KeyIds,
    name: Annotated[str | None, typer.Option("--name", help="The new name for people.")] = None,
    description: Annotated[str | None, typer.Option()] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="All its labels; may be repeated.")
    ] = None,
    mode: ModeOption = None,
    grant: GrantOption = None,
    expires: ExpiresOption = None,
    ttl: TtlOption = None,
    never_expires: Annotated[bool, typer.Option("--never-expires", show_default=False)] = False,
    etag: EtagOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a key; what is not given stays as it is."""
    request = new_key("", name or "", mode, grant, expires, ttl)
    key = request.api_key
    key.MergeFrom(pb.ApiKey(name=names.resolve(ids, names.API_KEY), etag=etag, description=description or ""))
    key.labels.update(_label(text) for text in label or ())
    changes = {
        "display_name": name is not None,
        "description": description is not None,
        "labels": label is not None,
        "mode": mode is not None or bool(grant),
        "grants": bool(grant),
        "expire_time": expires is not None or ttl is not None or never_expires,
    }
    if never_expires and (expires is not None or ttl is not None):
        raise Misuse("only one of --expires, --ttl and --never-expires can be given")
    update = pb.UpdateApiKeyRequest(api_key=key, validate_only=dry_run)
    update.update_mask.paths.extend(field for field, given in changes.items() if given)
    with connect() as gatekey:
        show(gatekey.call(gatekey.keys.UpdateApiKey, update), output, _DETAILS, dry_run=dry_run)


@app.command()
def disable(
    ids: KeyIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Switch a key off until it is enabled."""
    request = pb.DisableApiKeyRequest(name=names.resolve(ids, names.API_KEY), etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        show(gatekey.call(gatekey.keys.DisableApiKey, request), output, _DETAILS, dry_run=dry_run)


@app.command()
def enable(
    ids: KeyIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Switch a disabled key on."""
    request = pb.EnableApiKeyRequest(name=names.resolve(ids, names.API_KEY), etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        show(gatekey.call(gatekey.keys.EnableApiKey, request), output, _DETAILS, dry_run=dry_run)


@app.command()
def revoke(
    ids: KeyIds,
    reason: Annotated[str, typer.Option(help="Why, for people.")] = "",
    etag: EtagOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Switch a key off for good."""
    request = pb.RevokeApiKeyRequest(
        name=names.resolve(ids, names.API_KEY), reason=reason, etag=etag, validate_only=dry_run
    )
    with connect() as gatekey:
        show(gatekey.call(gatekey.keys.RevokeApiKey, request), output, _DETAILS, dry_run=dry_run)


@app.command()
def rotate(
    ids: KeyIds,
    grace: Annotated[
        str | None, typer.Option(help="How long the old secret goes on working: 1h. Else not at all.")
    ] = None,
    etag: EtagOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a key a new secret."""
    request = pb.RotateApiKeyRequest(name=names.resolve(ids, names.API_KEY), etag=etag, validate_only=dry_run)
    if grace is not None:
        request.grace.FromTimedelta(_duration("--grace", grace))
    with connect() as gatekey:
        rotated = gatekey.call(gatekey.keys.RotateApiKey, request)
    _show_with_secret(rotated, output, "The secret", dry_run=dry_run)


@app.command()
def identify(
    secret: Annotated[str, typer.Argument(help="The secret; - reads it from standard input.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell which key a secret belongs to."""
    request = pb.IdentifySecretRequest(secret=read_secret(secret))
    with connect() as gatekey:
        show(gatekey.call(gatekey.keys.IdentifySecret, request), output, _DETAILS)


@app.command()
def delete(
    ids: KeyIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Delete a key; its machine user goes with it where it lives only as long as its keys."""
    name = names.resolve(ids, names.API_KEY)
    request = pb.DeleteApiKeyRequest(name=name, etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        answer = gatekey.call(gatekey.keys.DeleteApiKey, request)
    show_deleted(name, answer, output, dry_run=dry_run)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise Misuse(f"--label {text}: KEY=VALUE is required")
    return key, value


def create_key(request: pb.CreateApiKeyRequest, output: Output, what: str, *, dry_run: bool) -> None:
    """Create a key and print it with its secret; `what` is what people call the secret."""
    request.validate_only = dry_run
    with connect() as gatekey:
        created = gatekey.call(gatekey.keys.CreateApiKey, request)
    _show_with_secret(created, output, what, dry_run=dry_run)


def _show_with_secret(
    answer: pb.CreateApiKeyResponse | pb.RotateApiKeyResponse, output: Output, what: str, *, dry_run: bool
) -> None:
    if output is Output.JSON:
        show_json(answer)
        return
    show(answer.api_key, output, _DETAILS, dry_run=dry_run)
    if answer.secret:
        show_secret(answer.secret, what)


def new_key(
    parent: str, name: str, mode: Mode | None, grants: Sequence[str] | None, expires: str | None, ttl: str | None
) -> pb.CreateApiKeyRequest:
    """Read what is common to all keys. Raises `Misuse`."""
    key = pb.ApiKey(display_name=name, grants=[_grant(text) for text in grants or ()])
    if mode is None and grants:
        mode = Mode.RESTRICTED
    if mode is not None:
        key.mode = types_pb2.AccessMode.Value(f"ACCESS_MODE_{mode.name}")
    expire_time = _expire_time(expires, ttl)
    if expire_time is not None:
        key.expire_time.CopyFrom(expire_time)
    return pb.CreateApiKeyRequest(parent=parent, api_key=key)


def _grant(text: str) -> types_pb2.Grant:
    # The last colon: ids may hold colons as well.
    resource, _, actions = text.rpartition(":")
    if not resource or not all(actions.split(",")):
        raise Misuse(f"--grant {text}: RESOURCE:ACTION[,ACTION…] is required")
    return types_pb2.Grant(resource=resource, actions=actions.split(","))


def _expire_time(expires: str | None, ttl: str | None) -> Timestamp | None:
    if expires is not None and ttl is not None:
        raise Misuse("only one of --expires and --ttl can be given")
    time = Timestamp()
    try:
        if expires is not None:
            time.FromJsonString(expires)
        elif ttl is not None:
            time.FromDatetime(datetime.now(UTC) + _duration("--ttl", ttl))
        else:
            return None
    except ValueError:
        raise Misuse(f"--expires {expires}: a time such as 2027-01-01T00:00:00Z is required") from None
    except OverflowError:
        raise Misuse(f"--ttl {ttl}: ends after the year 9999") from None
    return time


def _duration(option: str, text: str) -> timedelta:
    match = _TTL.fullmatch(text)
    if match is None:
        raise Misuse(f"{option} {text}: a duration such as 90s, 15m, 12h, 30d or 2w is required")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _owner(parent: str, member: str | None, machine_user: str | None) -> str:
    if member is not None:
        return names.within(parent, "members", member)
    return names.within(parent, "machineUsers", machine_user) if machine_user is not None else ""
