"""`gatekey keys`: API keys."""

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from gatekey import _methods as methods
from gatekey._requests import access_mode
from gatekey.cli import names, streams
from gatekey.cli.calls import Connection, connect
from gatekey.cli.checks import read_secret
from gatekey.cli.names import KeyIds, TenantIds
from gatekey.cli.output import (
    Columns,
    DryRunOption,
    EtagOption,
    Output,
    OutputOption,
    credential_text,
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
    token_text,
)
from gatekey.cli.problems import Misuse, SecretLost
from gatekey.cli.times import read_duration, read_time
from gatekey.v1 import api_key_service_pb2 as pb
from gatekey.v1 import types_pb2

app = typer.Typer(no_args_is_help=True, help="API keys.")


NameOption = Annotated[str, typer.Option("--name", help="The name for people.", show_default=False)]
Mode: TypeAlias = types_pb2.AccessMode.ValueType


def _read_mode(text: str) -> Mode:
    try:
        return access_mode(text)
    except ValueError:
        raise typer.BadParameter(f"{text}: one of all, read-only and restricted is required") from None


MODE_OPTION = typer.Option(
    parser=_read_mode,
    metavar="all|read-only|restricted",
    help="The product's default, if it has one, where neither this nor --grant is given.",
)
ModeOption = Annotated[Any, MODE_OPTION]
DescriptionOption = Annotated[
    str | None, typer.Option("--description", help="What people should know of it.", show_default=False)
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="What programs should know of it; may be repeated."),
]
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
    str | None,
    typer.Option("--expires", metavar="TIME", help="When it stops working: 2027-01-01T00:00:00Z or a day."),
]
TtlOption = Annotated[
    str | None, typer.Option("--ttl", metavar="DURATION", help="How long it works: 90s, 15m, 12h, 30d, 2w.")
]
GraceOption = Annotated[
    str | None, typer.Option("--grace", help="How long the old secret goes on working: 1h. Else not at all.")
]


def _kind(key: pb.ApiKey) -> str:
    return enum_text(types_pb2.KeyKind, key.kind, "KEY_KIND_")


def _owner_in_tenant(key: pb.ApiKey) -> str:
    return "/".join(key.owner.split("/")[4:]) or ("the tenant" if key.owner else "")


def _state(key: pb.ApiKey) -> str:
    state = enum_text(pb.ApiKey.State, key.state, "STATE_")
    return f"{state}, stranded" if key.stranded else state


def _expires(key: pb.ApiKey) -> str:
    return time_text(key.expire_time if key.HasField("expire_time") else None)


def _grants(key: pb.ApiKey) -> str:
    return " ".join(f"{grant.resource}:{','.join(grant.actions)}" for grant in key.grants)


def _last_use(key: pb.ApiKey) -> str:
    return time_text(key.last_use_time if key.HasField("last_use_time") else None)


def _secrets(key: pb.ApiKey) -> str:
    return ", ".join(f"{secret.hint}…{_until(key, secret)}" for secret in key.secrets)


def _until(key: pb.ApiKey, secret: pb.ApiKey.Secret) -> str:
    """What the newest secret does not have: a time of its own, until which it works beside its successor."""
    is_old = any(other.create_time.ToNanoseconds() > secret.create_time.ToNanoseconds() for other in key.secrets)
    return f" (old, works until {time_text(secret.expire_time)})" if is_old else ""


def _note(key: pb.ApiKey) -> str:
    """What calls for attention in a list."""
    old = (f"{secret.hint}…{_until(key, secret)}" for secret in key.secrets if _until(key, secret))
    return ", ".join(filter(None, (key.revoke_reason, *old)))


def _maker(key: pb.ApiKey) -> str:
    """Who made a key: the actor if there was one, else the service token."""
    creator = key.creator
    if creator.actor:
        return "/".join(creator.actor.split("/")[4:])
    return token_text(creator.caller, creator.caller_display_name)


def _made_by(key: pb.ApiKey) -> str:
    creator = key.creator
    by = token_text(creator.caller, creator.caller_display_name)
    return f"{_maker(key)}, through {by}" if creator.actor else by


def _identified(key: pb.ApiKey) -> str:
    if not key.HasField("identified"):
        return ""
    secret = key.identified
    verb = "stopped working" if secret.expire_time.ToDatetime(tzinfo=UTC) <= datetime.now(UTC) else "stops working"
    return f"{secret.hint}…, {verb} {time_text(secret.expire_time)}"


_DETAILS: Columns[pb.ApiKey] = (
    ("Name", name_of),
    ("Display name", lambda key: key.display_name),
    ("Description", lambda key: key.description),
    ("Labels", lambda key: " ".join(f"{label}={value}" for label, value in sorted(key.labels.items()))),
    ("Kind", _kind),
    ("Owner", _owner_in_tenant),
    ("Mode", lambda key: mode_text(key.mode)),
    ("Grants", _grants),
    ("Actor", lambda key: "required" if key.actor_required else ""),
    ("State", _state),
    ("Stranded", lambda key: key.stranded),
    ("Revoked", lambda key: time_text(key.revoke_time if key.HasField("revoke_time") else None)),
    ("Reason", lambda key: key.revoke_reason),
    ("Secret", _secrets),
    ("This secret", _identified),
    ("Created", lambda key: time_text(key.create_time if key.HasField("create_time") else None)),
    ("Created by", _made_by),
    ("Expires", _expires),
    ("Last use", _last_use),
)
_LIST: Columns[pb.ApiKey] = (
    ("ID", id_of),
    ("Display name", lambda key: key.display_name),
    ("Owner", _owner_in_tenant),
    ("Mode", lambda key: mode_text(key.mode) or _kind(key)),
    ("State", _state),
    ("Expires", _expires),
    ("Last use", _last_use),
    ("Created by", _maker),
    ("Note", _note),
)
TOKENS: Columns[pb.ApiKey] = (
    ("ID", id_of),
    ("Display name", lambda key: key.display_name),
    ("Grants", lambda key: _grants(key) or mode_text(key.mode)),
    ("State", _state),
    ("Expires", _expires),
    ("Last use", _last_use),
    ("Note", lambda key: ", ".join(filter(None, ("names an actor" if key.actor_required else "", _note(key))))),
)
"""What people see of a list of service tokens."""


@app.command()
def create(
    ids: TenantIds,
    name: NameOption,
    description: DescriptionOption = None,
    label: LabelOption = None,
    member: Annotated[str | None, typer.Option(metavar="ID", help="The member who owns it.")] = None,
    machine_user: Annotated[str | None, typer.Option(metavar="ID", help="The machine user that owns it.")] = None,
    new_machine_user: Annotated[
        bool, typer.Option("--new-machine-user", help="Create a machine user that owns it.")
    ] = False,
    machine_user_id: Annotated[
        str | None, typer.Option(metavar="ID", help="The id of the new machine user; else one is made.")
    ] = None,
    tenant_key: Annotated[
        bool, typer.Option("--tenant-key", help="It belongs to the tenant itself, and to nobody in it.")
    ] = False,
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

    For a member (--member), a machine user (--machine-user or --new-machine-user), the tenant (--tenant-key), or
    --publishable; without these, for the product's default owner:
    gatekey keys create heyoo acme --name CI --member u_42 --grant campaigns:read,write
    """
    if [member is not None, machine_user is not None, new_machine_user, tenant_key, publishable].count(True) > 1:
        raise Misuse(
            "exactly one of --member, --machine-user, --new-machine-user, --tenant-key and --publishable can be given,"
            " or none for the product's default owner"
        )
    if machine_user_id is not None and not new_machine_user:
        raise Misuse("--machine-user-id needs --new-machine-user")
    parent = names.resolve(ids, names.TENANT)
    request = new_key(parent, name, mode, grant, expires, ttl)
    describe(request.api_key, description, label)
    if publishable:
        request.api_key.kind = types_pb2.KEY_KIND_PUBLISHABLE
    if new_machine_user:
        request.new_machine_user.machine_user_id = machine_user_id or ""
        request.new_machine_user.SetInParent()
    request.api_key.owner = parent if tenant_key else _owner(parent, member, machine_user)
    create_key(request, output, "The secret", dry_run=dry_run)


@app.command("list")
def list_(
    ids: TenantIds,
    member: Annotated[str | None, typer.Option(metavar="ID", help="Only the keys of this member.")] = None,
    machine_user: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this machine user.")] = None,
    tenant_key: Annotated[bool, typer.Option("--tenant-key", help="Only those of the tenant itself.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the keys in a tenant, without their secrets."""
    if [member is not None, machine_user is not None, tenant_key].count(True) > 1:
        raise Misuse("only one of --member, --machine-user and --tenant-key can be given")
    parent = names.resolve(ids, names.TENANT)
    owner = parent if tenant_key else _owner(parent, member, machine_user)
    request = pb.ListApiKeysRequest(parent=parent, owner=owner)
    with connect() as gatekey:
        pages = gatekey.pages(methods.LIST_API_KEYS, request)
        show_pages(pages, "api_keys", output, _LIST)


@app.command()
def get(ids: KeyIds, output: OutputOption = Output.TABLE) -> None:
    """Show a key, without its secret."""
    request = pb.GetApiKeyRequest(name=names.resolve(ids, names.API_KEY))
    with connect() as gatekey:
        show(gatekey.call(methods.GET_API_KEY, request), output, _DETAILS)


@app.command()
def update(
    ids: KeyIds,
    name: Annotated[str | None, typer.Option("--name", help="The new name for people.")] = None,
    description: DescriptionOption = None,
    label: LabelOption = None,
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
    key.MergeFrom(pb.ApiKey(name=names.resolve(ids, names.API_KEY), etag=etag))
    describe(key, description, label)
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
    if not any(changes.values()):
        raise Misuse("nothing is to be changed: give at least one of the options")
    update.update_mask.paths.extend(field for field, given in changes.items() if given)
    with connect() as gatekey:
        show(gatekey.call(methods.UPDATE_API_KEY, update), output, _DETAILS, dry_run=dry_run)


@app.command()
def disable(
    ids: KeyIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Switch a key off until it is enabled."""
    request = pb.DisableApiKeyRequest(name=names.resolve(ids, names.API_KEY), etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        show(gatekey.call(methods.DISABLE_API_KEY, request), output, _DETAILS, dry_run=dry_run)


@app.command()
def enable(
    ids: KeyIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Switch a disabled key on."""
    request = pb.EnableApiKeyRequest(name=names.resolve(ids, names.API_KEY), etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        show(gatekey.call(methods.ENABLE_API_KEY, request), output, _DETAILS, dry_run=dry_run)


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
        show(gatekey.call(methods.REVOKE_API_KEY, request), output, _DETAILS, dry_run=dry_run)


@app.command()
def rotate(
    ids: KeyIds,
    grace: GraceOption = None,
    etag: EtagOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a key a new secret."""
    request = pb.RotateApiKeyRequest(name=names.resolve(ids, names.API_KEY), etag=etag, validate_only=dry_run)
    if grace is not None:
        request.grace.FromTimedelta(read_duration("--grace", grace))
    streams.require_output()
    with connect() as gatekey:
        rotated = gatekey.call(methods.ROTATE_API_KEY, request)
    _show_with_secret(rotated, output, "The secret", dry_run=dry_run)


@app.command()
def identify(
    secret: Annotated[str, typer.Argument(help="The secret; - reads it from standard input.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell which key a secret belongs to."""
    request = pb.IdentifySecretRequest(secret=read_secret(secret))
    with connect() as gatekey:
        show(gatekey.call(methods.IDENTIFY_SECRET, request), output, _DETAILS)


@app.command()
def delete(
    ids: KeyIds, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Delete a key; its machine user goes with it where it lives only as long as its keys."""
    name = names.resolve(ids, names.API_KEY)
    request = pb.DeleteApiKeyRequest(name=name, etag=etag, validate_only=dry_run)
    with connect() as gatekey:
        response = gatekey.call(methods.DELETE_API_KEY, request)
    show_deleted(name, response, output, dry_run=dry_run)


def describe(key: pb.ApiKey, description: str | None, labels: Sequence[str] | None) -> None:
    """Set what is told of a key beside its name. Raises `Misuse`."""
    key.description = description or ""
    key.labels.update(_label(text) for text in labels or ())


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise Misuse(f"--label {text}: KEY=VALUE is required")
    return key, value


def create_key(
    request: pb.CreateApiKeyRequest,
    output: Output,
    what: str,
    *,
    dry_run: bool,
    look: Callable[[Connection], None] = lambda _: None,
) -> None:
    """Create a key and print it with its secret; `what` is what people call the secret.

    `look` is called before, with the connection: to warn of what will be of no use.
    """
    request.validate_only = dry_run
    streams.require_output()
    with connect() as gatekey:
        look(gatekey)
        created = gatekey.call(methods.CREATE_API_KEY, request)
    _show_with_secret(created, output, what, dry_run=dry_run)


def _show_with_secret(
    response: pb.CreateApiKeyResponse | pb.RotateApiKeyResponse, output: Output, what: str, *, dry_run: bool
) -> None:
    if response.secret_withheld and not dry_run:
        raise _lost(response, "the connection broke when its secret was on the way")
    try:
        if output is Output.JSON:
            show_json(response)
        else:
            show(response.api_key, output, _DETAILS, dry_run=dry_run)
            if response.secret:
                typer.echo(f"\nPresent it as `{credential_text(response.credential)}`.")
                show_secret(response.secret, what)
        sys.stdout.flush()
    except (OSError, KeyboardInterrupt) as error:
        if dry_run:
            raise
        streams.discard_output()
        why = error.strerror if isinstance(error, OSError) else "interrupted"
        raise _lost(response, f"its secret could not be written: {why}") from None


def _lost(response: pb.CreateApiKeyResponse | pb.RotateApiKeyResponse, why: str) -> SecretLost:
    name = response.api_key.name
    was_rotated = isinstance(response, pb.RotateApiKeyResponse)
    return SecretLost(
        f"{name} was {'rotated' if was_rotated else 'created'}, but {why}",
        "the secret cannot be shown again. For another one:",
        f"    gatekey keys rotate {name}",
        "or, if the key is not needed:",
        f"    gatekey keys delete {name}",
    )


def new_key(
    parent: str, name: str, mode: Mode | None, grants: Sequence[str] | None, expires: str | None, ttl: str | None
) -> pb.CreateApiKeyRequest:
    """Read what is common to all keys. Raises `Misuse`."""
    key = pb.ApiKey(display_name=name, grants=[_grant(text) for text in grants or ()])
    if mode is None and grants:
        mode = types_pb2.ACCESS_MODE_RESTRICTED
    if mode is not None:
        key.mode = mode
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
            return read_time(expires)
        if ttl is not None:
            time.FromDatetime(datetime.now(UTC) + read_duration("--ttl", ttl))
        else:
            return None
    except ValueError:
        raise Misuse(f"--expires {expires}: a time such as 2027-01-01T00:00:00Z, or a day, is required") from None
    except OverflowError:
        raise Misuse(f"--ttl {ttl}: ends after the year 9999") from None
    return time


def _owner(parent: str, member: str | None, machine_user: str | None) -> str:
    if member is not None:
        return names.within(parent, "members", member)
    return names.within(parent, "machineUsers", machine_user) if machine_user is not None else ""
