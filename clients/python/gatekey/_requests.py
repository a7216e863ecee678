"""The calls of the administration, each described once for both clients: parameters, request and response."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gatekey import _methods as methods
from gatekey import errors
from gatekey._calls import Call, Listing, Method
from gatekey._connection import PAGE_SIZE
from gatekey.v1 import api_key_service_pb2 as keys_pb
from gatekey.v1 import audit_service_pb2 as audit_pb
from gatekey.v1 import machine_user_service_pb2 as machine_users_pb
from gatekey.v1 import member_service_pb2 as members_pb
from gatekey.v1 import product_service_pb2 as products_pb
from gatekey.v1 import product_spec_pb2, types_pb2
from gatekey.v1 import tenant_service_pb2 as tenants_pb

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)
Mode = Literal["ALL", "READ_ONLY", "RESTRICTED"]


class Unset(enum.Enum):
    """Stands for what is not given, where None means something."""

    UNSET = enum.auto()


UNSET = Unset.UNSET


class Wait(enum.Enum):
    """For what a change waits before it returns."""

    EVERYWHERE = enum.auto()
    """Until no client cache decides by the state before the change, either: for 3.03 s."""


EVERYWHERE = Wait.EVERYWHERE


class Options(TypedDict, total=False):
    """What all calls take."""

    timeout: float
    """How many seconds it may take, all attempts included."""


class ChangeOptions(Options, total=False):
    """What all calls take that change something."""

    request_id: str
    """A UUID: for 24 hours the same call with the same id does nothing again. One is made where none is given."""
    validate_only: bool
    """Return what the call would do, and change nothing."""
    wait: Wait
    """Wait for the caches of all clients, not only for the servers."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What calls are about."""

    name: str = ""
    """The resource name of the product or the tenant; empty for the service as a whole."""
    actor: str = ""
    """The resource name of the member or machine user on whose behalf; empty for none."""

    def within(self, collection: str, id_or_name: str) -> str:
        """The resource name of what an id stands for, or a name. Raises `ValueError` for a name from elsewhere."""
        prefix = f"{self.name}/{collection}/" if self.name else f"{collection}/"
        id_ = id_or_name.removeprefix(prefix)
        if not id_ or "/" in id_:
            raise ValueError(f"neither an id nor a name of the form {prefix}ID")
        return prefix + id_


def call_of(
    method: Method[Q, R],
    request: Q,
    *,
    timeout: float | None = None,
    actor: str = "",
    everywhere: bool = False,
    validate: Callable[[R], None] | None = None,
) -> Call[R]:
    """Return the call of a method with this request.

    A mutation without a request id gets one, in the request itself: it can then be repeated when its response got lost.
    """
    mutation: Any = request
    if "request_id" in request.DESCRIPTOR.fields_by_name and not mutation.request_id:
        mutation.request_id = str(uuid.uuid4())
    return Call(method.path, request, method.response, timeout, actor, everywhere, validate)


def _read(scope: Scope, method: Method[Q, R], request: Q, options: Options) -> Call[R]:
    return call_of(method, request, timeout=options.get("timeout"), actor=scope.actor)


def _change(
    scope: Scope,
    method: Method[Q, R],
    request: Q,
    options: ChangeOptions,
    validate: Callable[[R], None] | None = None,
) -> Call[R]:
    mutation: Any = request
    mutation.request_id = options.get("request_id", "")
    mutation.validate_only = options.get("validate_only", False)
    if "request_id" in options or mutation.validate_only:
        validate = None
    return call_of(
        method,
        request,
        timeout=options.get("timeout"),
        actor=scope.actor,
        everywhere=options.get("wait") is EVERYWHERE,
        validate=validate,
    )


# ---------------------------------------------------------------- products


def apply_product(
    scope: Scope,
    spec: product_spec_pb2.ProductSpec,
    *,
    force: bool = False,
    etag: str = "",
    **options: Unpack[ChangeOptions],
) -> Call[products_pb.Product]:
    """Create the product of a spec, or replace its spec; `force`: even where that strands members or keys."""
    request = products_pb.ApplyProductRequest(spec=spec, force=force, etag=etag)
    return _change(scope, methods.APPLY_PRODUCT, request, options)


def get_product(scope: Scope, product: str, **options: Unpack[Options]) -> Call[products_pb.Product]:
    """Read a product."""
    request = products_pb.GetProductRequest(name=scope.within("products", product))
    return _read(scope, methods.GET_PRODUCT, request, options)


def list_products(
    scope: Scope, **options: Unpack[Options]
) -> Listing[products_pb.ListProductsResponse, products_pb.Product]:
    """All products, by id."""
    request = products_pb.ListProductsRequest(page_size=PAGE_SIZE)
    call = _read(scope, methods.LIST_PRODUCTS, request, options)
    return Listing(call, lambda page: page.products)


def delete_product(
    scope: Scope, product: str, *, force: bool = False, etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[products_pb.DeleteProductResponse]:
    """Delete a product; `force`: with all its tenants, for good."""
    request = products_pb.DeleteProductRequest(name=scope.within("products", product), force=force, etag=etag)
    return _change(scope, methods.DELETE_PRODUCT, request, options)


# ---------------------------------------------------------------- tenants


def create_tenant(
    scope: Scope, tenant_id: str, *, display_name: str = "", **options: Unpack[ChangeOptions]
) -> Call[tenants_pb.Tenant]:
    """Create a tenant."""
    request = tenants_pb.CreateTenantRequest(
        parent=scope.name, tenant_id=tenant_id, tenant=tenants_pb.Tenant(display_name=display_name)
    )
    return _change(scope, methods.CREATE_TENANT, request, options)


def get_tenant(scope: Scope, tenant: str, **options: Unpack[Options]) -> Call[tenants_pb.Tenant]:
    """Read a tenant, also a deleted one."""
    request = tenants_pb.GetTenantRequest(name=scope.within("tenants", tenant))
    return _read(scope, methods.GET_TENANT, request, options)


def list_tenants(
    scope: Scope, *, show_deleted: bool = False, **options: Unpack[Options]
) -> Listing[tenants_pb.ListTenantsResponse, tenants_pb.Tenant]:
    """All tenants of the product, in the order of their creation."""
    request = tenants_pb.ListTenantsRequest(parent=scope.name, page_size=PAGE_SIZE, show_deleted=show_deleted)
    call = _read(scope, methods.LIST_TENANTS, request, options)
    return Listing(call, lambda page: page.tenants)


def update_tenant(
    scope: Scope, tenant: str, *, display_name: str | None = None, etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[tenants_pb.Tenant]:
    """Change what is given of a tenant."""
    changed = tenants_pb.Tenant(name=scope.within("tenants", tenant), display_name=display_name or "", etag=etag)
    mask = _mask(display_name=display_name is not None)
    request = tenants_pb.UpdateTenantRequest(tenant=changed, update_mask=mask)
    return _change(scope, methods.UPDATE_TENANT, request, options)


def suspend_tenant(
    scope: Scope, tenant: str, *, etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[tenants_pb.Tenant]:
    """Deny all keys of a tenant until it is resumed."""
    request = tenants_pb.SuspendTenantRequest(name=scope.within("tenants", tenant), etag=etag)
    return _change(scope, methods.SUSPEND_TENANT, request, options)


def resume_tenant(
    scope: Scope, tenant: str, *, etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[tenants_pb.Tenant]:
    """End a suspension."""
    request = tenants_pb.ResumeTenantRequest(name=scope.within("tenants", tenant), etag=etag)
    return _change(scope, methods.RESUME_TENANT, request, options)


def delete_tenant(
    scope: Scope, tenant: str, *, etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[tenants_pb.DeleteTenantResponse]:
    """Delete a tenant: its keys stop working at once. It can be undeleted for a while."""
    request = tenants_pb.DeleteTenantRequest(name=scope.within("tenants", tenant), etag=etag)
    return _change(scope, methods.DELETE_TENANT, request, options)


def undelete_tenant(
    scope: Scope, tenant: str, *, etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[tenants_pb.Tenant]:
    """Take a deletion back."""
    request = tenants_pb.UndeleteTenantRequest(name=scope.within("tenants", tenant), etag=etag)
    return _change(scope, methods.UNDELETE_TENANT, request, options)


# ---------------------------------------------------------------- people


def add_member(
    scope: Scope, member_id: str, role: str, *, display_name: str = "", **options: Unpack[ChangeOptions]
) -> Call[members_pb.Member]:
    """Add a person to the tenant, under your own id."""
    member = members_pb.Member(role=role, display_name=display_name)
    request = members_pb.AddMemberRequest(parent=scope.name, member_id=member_id, member=member)
    return _change(scope, methods.ADD_MEMBER, request, options)


def get_member(scope: Scope, member: str, **options: Unpack[Options]) -> Call[members_pb.Member]:
    """Read a member."""
    request = members_pb.GetMemberRequest(name=scope.within("members", member))
    return _read(scope, methods.GET_MEMBER, request, options)


def update_member(
    scope: Scope,
    member: str,
    *,
    role: str | None = None,
    display_name: str | None = None,
    force: bool = False,
    etag: str = "",
    **options: Unpack[ChangeOptions],
) -> Call[members_pb.Member]:
    """Change what is given of a member; `force`: even where that leaves the tenant without an owner."""
    changed = members_pb.Member(
        name=scope.within("members", member), role=role or "", display_name=display_name or "", etag=etag
    )
    mask = _mask(role=role is not None, display_name=display_name is not None)
    request = members_pb.UpdateMemberRequest(member=changed, update_mask=mask, force=force)
    return _change(scope, methods.UPDATE_MEMBER, request, options)


def remove_member(
    scope: Scope, member: str, *, force: bool = False, etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[members_pb.RemoveMemberResponse]:
    """Remove a person with all their keys; `force`: even where that leaves the tenant without an owner."""
    request = members_pb.RemoveMemberRequest(name=scope.within("members", member), force=force, etag=etag)
    return _change(scope, methods.REMOVE_MEMBER, request, options)


def list_people(scope: Scope, **options: Unpack[Options]) -> Listing[members_pb.ListPeopleResponse, members_pb.Person]:
    """Members and machine users together, in the order in which they were added."""
    return Listing(page_of_people(scope, page_size=PAGE_SIZE, **options), lambda page: page.people)


def page_of_people(
    scope: Scope, *, page_size: int = 0, page_token: str = "", **options: Unpack[Options]
) -> Call[members_pb.ListPeopleResponse]:
    """One page of the people, with `user_count`, the number of members over all pages."""
    request = members_pb.ListPeopleRequest(parent=scope.name, page_size=page_size, page_token=page_token)
    return _read(scope, methods.LIST_PEOPLE, request, options)


# ---------------------------------------------------------------- machine users


def create_machine_user(
    scope: Scope, machine_user_id: str = "", *, display_name: str = "", **options: Unpack[ChangeOptions]
) -> Call[machine_users_pb.MachineUser]:
    """Create a machine user without keys; without an id, one is made."""
    request = machine_users_pb.CreateMachineUserRequest(
        parent=scope.name,
        machine_user_id=machine_user_id,
        machine_user=machine_users_pb.MachineUser(display_name=display_name),
    )
    return _change(scope, methods.CREATE_MACHINE_USER, request, options)


def get_machine_user(scope: Scope, machine_user: str, **options: Unpack[Options]) -> Call[machine_users_pb.MachineUser]:
    """Read a machine user."""
    request = machine_users_pb.GetMachineUserRequest(name=scope.within("machineUsers", machine_user))
    return _read(scope, methods.GET_MACHINE_USER, request, options)


def list_machine_users(
    scope: Scope, **options: Unpack[Options]
) -> Listing[machine_users_pb.ListMachineUsersResponse, machine_users_pb.MachineUser]:
    """All machine users of the tenant, in the order of their creation."""
    request = machine_users_pb.ListMachineUsersRequest(parent=scope.name, page_size=PAGE_SIZE)
    return Listing(_read(scope, methods.LIST_MACHINE_USERS, request, options), lambda page: page.machine_users)


def update_machine_user(
    scope: Scope,
    machine_user: str,
    *,
    display_name: str | None = None,
    etag: str = "",
    **options: Unpack[ChangeOptions],
) -> Call[machine_users_pb.MachineUser]:
    """Change what is given of a machine user."""
    changed = machine_users_pb.MachineUser(
        name=scope.within("machineUsers", machine_user), display_name=display_name or "", etag=etag
    )
    mask = _mask(display_name=display_name is not None)
    request = machine_users_pb.UpdateMachineUserRequest(machine_user=changed, update_mask=mask)
    return _change(scope, methods.UPDATE_MACHINE_USER, request, options)


def delete_machine_user(
    scope: Scope, machine_user: str, *, etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[machine_users_pb.DeleteMachineUserResponse]:
    """Delete a machine user with all its keys."""
    request = machine_users_pb.DeleteMachineUserRequest(name=scope.within("machineUsers", machine_user), etag=etag)
    return _change(scope, methods.DELETE_MACHINE_USER, request, options)


# ---------------------------------------------------------------- keys


def create_key(
    scope: Scope,
    display_name: str,
    *,
    owner: str | None = None,
    member: str | None = None,
    machine_user: str | None = None,
    new_machine_user: str | None = None,
    publishable: bool = False,
    mode: Mode | None = None,
    grants: Mapping[str, Iterable[str]] | None = None,
    expire_time: datetime | None = None,
    ttl: timedelta | None = None,
    description: str = "",
    labels: Mapping[str, str] | None = None,
    actor_required: bool = False,
    **options: Unpack[ChangeOptions],
) -> Call[keys_pb.CreateApiKeyResponse]:
    """Create a key of a member or of a machine user, by id or name, or with a new machine user, or a publishable one.

    `owner` is the resource name of a member, of a machine user, or of the tenant for a key that belongs to the tenant
    itself. Where nobody is named, the product's default owner. `new_machine_user` is the id of the new one; empty: one
    is made. `grants` are actions by resource pattern; with them the mode is `RESTRICTED`. Only this response
    holds the secret. `actor_required` is for service tokens. Raises `SecretWithheld` where the secret got lost.
    """
    owners = (owner, member, machine_user, new_machine_user)
    if sum(each is not None for each in owners) + publishable > 1:
        raise ValueError("only one of owner, member, machine_user, new_machine_user and publishable can be given")
    key = keys_pb.ApiKey(
        display_name=display_name,
        kind=types_pb2.KEY_KIND_PUBLISHABLE if publishable else types_pb2.KEY_KIND_UNSPECIFIED,
        mode=_mode(mode, grants),
        grants=_grants(grants),
        expire_time=_timestamp(expire_time),
        description=description,
        labels=labels,
        actor_required=actor_required,
    )
    if owner is not None:
        key.owner = owner
    if member is not None:
        key.owner = scope.within("members", member)
    if machine_user is not None:
        key.owner = scope.within("machineUsers", machine_user)
    request = keys_pb.CreateApiKeyRequest(parent=scope.name, api_key=key, ttl=_duration(ttl))
    if new_machine_user is not None:
        request.new_machine_user.machine_user_id = new_machine_user
        request.new_machine_user.SetInParent()
    return _change(scope, methods.CREATE_API_KEY, request, options, _has_secret)


def get_key(scope: Scope, key: str, **options: Unpack[Options]) -> Call[keys_pb.ApiKey]:
    """Read a key, without its secret."""
    request = keys_pb.GetApiKeyRequest(name=scope.within("apiKeys", key))
    return _read(scope, methods.GET_API_KEY, request, options)


def list_keys(
    scope: Scope,
    *,
    owner: str | None = None,
    member: str | None = None,
    machine_user: str | None = None,
    **options: Unpack[Options],
) -> Listing[keys_pb.ListApiKeysResponse, keys_pb.ApiKey]:
    """All keys in the tenant, or of one member or machine user, in the order of their creation; without secrets.

    `owner` is the resource name of a member, of a machine user, or of the tenant for the keys of the tenant itself.
    """
    if sum(each is not None for each in (owner, member, machine_user)) > 1:
        raise ValueError("only one of owner, member and machine_user can be given")
    if member is not None:
        owner = scope.within("members", member)
    if machine_user is not None:
        owner = scope.within("machineUsers", machine_user)
    request = keys_pb.ListApiKeysRequest(parent=scope.name, page_size=PAGE_SIZE, owner=owner or "")
    call = _read(scope, methods.LIST_API_KEYS, request, options)
    return Listing(call, lambda page: page.api_keys)


def update_key(
    scope: Scope,
    key: str,
    *,
    display_name: str | None = None,
    description: str | None = None,
    labels: Mapping[str, str] | None = None,
    mode: Mode | None = None,
    grants: Mapping[str, Iterable[str]] | None = None,
    expire_time: datetime | Unset | None = UNSET,
    etag: str = "",
    **options: Unpack[ChangeOptions],
) -> Call[keys_pb.ApiKey]:
    """Change what is given of a key. `expire_time=None`: as late as the product allows."""
    changed = keys_pb.ApiKey(
        name=scope.within("apiKeys", key),
        display_name=display_name or "",
        description=description or "",
        labels=labels,
        mode=_mode(mode, grants),
        grants=_grants(grants),
        expire_time=None if isinstance(expire_time, Unset) else _timestamp(expire_time),
        etag=etag,
    )
    mask = _mask(
        display_name=display_name is not None,
        description=description is not None,
        labels=labels is not None,
        mode=mode is not None or grants is not None,
        grants=grants is not None,
        expire_time=expire_time is not UNSET,
    )
    request = keys_pb.UpdateApiKeyRequest(api_key=changed, update_mask=mask)
    return _change(scope, methods.UPDATE_API_KEY, request, options)


def disable_key(scope: Scope, key: str, *, etag: str = "", **options: Unpack[ChangeOptions]) -> Call[keys_pb.ApiKey]:
    """Switch a key off until it is enabled."""
    request = keys_pb.DisableApiKeyRequest(name=scope.within("apiKeys", key), etag=etag)
    return _change(scope, methods.DISABLE_API_KEY, request, options)


def enable_key(scope: Scope, key: str, *, etag: str = "", **options: Unpack[ChangeOptions]) -> Call[keys_pb.ApiKey]:
    """Switch a disabled key on."""
    request = keys_pb.EnableApiKeyRequest(name=scope.within("apiKeys", key), etag=etag)
    return _change(scope, methods.ENABLE_API_KEY, request, options)


def revoke_key(
    scope: Scope, key: str, *, reason: str = "", etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[keys_pb.ApiKey]:
    """Revoke a key for good.

    No check that starts after this call returns is decided by the key's earlier state.
    """
    request = keys_pb.RevokeApiKeyRequest(name=scope.within("apiKeys", key), reason=reason, etag=etag)
    return _change(scope, methods.REVOKE_API_KEY, request, options)


def rotate_key(
    scope: Scope, key: str, *, grace: timedelta | None = None, etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[keys_pb.RotateApiKeyResponse]:
    """Give a key a new secret; the old one works for `grace` longer, or no longer.

    Only this response holds the new secret. Raises `SecretWithheld` where it got lost.
    """
    request = keys_pb.RotateApiKeyRequest(name=scope.within("apiKeys", key), grace=_duration(grace), etag=etag)
    return _change(scope, methods.ROTATE_API_KEY, request, options, _has_secret)


def delete_key(
    scope: Scope, key: str, *, etag: str = "", **options: Unpack[ChangeOptions]
) -> Call[keys_pb.DeleteApiKeyResponse]:
    """Delete a key, and its machine user with it where that lives only as long as its keys."""
    request = keys_pb.DeleteApiKeyRequest(name=scope.within("apiKeys", key), etag=etag)
    return _change(scope, methods.DELETE_API_KEY, request, options)


def identify_secret(scope: Scope, secret: str, **options: Unpack[Options]) -> Call[keys_pb.ApiKey]:
    """Tell which key a secret belongs to, in whatever state the key is."""
    request = keys_pb.IdentifySecretRequest(secret=secret)
    return _read(scope, methods.IDENTIFY_SECRET, request, options)


# ---------------------------------------------------------------- audit


def list_audit_events(
    scope: Scope,
    *,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    target: str = "",
    actor: str = "",
    verb: str = "",
    **options: Unpack[Options],
) -> Listing[audit_pb.ListAuditEventsResponse, audit_pb.AuditEvent]:
    """The events of the product itself, or of the tenant, in their order."""
    request = audit_pb.ListAuditEventsRequest(
        parent=scope.name,
        page_size=PAGE_SIZE,
        start_time=_timestamp(start_time),
        end_time=_timestamp(end_time),
        target=target,
        actor=actor,
        verb=verb,
    )
    call = _read(scope, methods.LIST_AUDIT_EVENTS, request, options)
    return Listing(call, lambda page: page.audit_events)


def list_audit_chains(
    scope: Scope, **options: Unpack[Options]
) -> Listing[audit_pb.ListAuditChainsResponse, audit_pb.AuditChain]:
    """The chains of events of the product and its tenants, or of all products; also those of what is gone."""
    request = audit_pb.ListAuditChainsRequest(parent=scope.name, page_size=PAGE_SIZE)
    call = _read(scope, methods.LIST_AUDIT_CHAINS, request, options)
    return Listing(call, lambda page: page.audit_chains)


# ---------------------------------------------------------------- values


def _mask(**given: bool) -> FieldMask:
    return FieldMask(paths=[name for name, is_given in given.items() if is_given])


def _mode(mode: Mode | None, grants: object) -> types_pb2.AccessMode.ValueType:
    if mode is None:
        return types_pb2.ACCESS_MODE_UNSPECIFIED if grants is None else types_pb2.ACCESS_MODE_RESTRICTED
    return access_mode(mode)


def access_mode(text: str) -> types_pb2.AccessMode.ValueType:
    """Read an access mode in any spelling: `READ_ONLY`, `read-only`, `readOnly`, `ACCESS_MODE_READ_ONLY`.

    Raises `ValueError`.
    """
    letters = "".join(filter(str.isalnum, text)).upper().removeprefix("ACCESSMODE")
    for name, mode in types_pb2.AccessMode.items():
        if letters == name.removeprefix("ACCESS_MODE_").replace("_", "") and mode:
            return mode
    raise ValueError(f"{text!r} is no access mode: ALL, READ_ONLY or RESTRICTED is required")


def _grants(grants: Mapping[str, Iterable[str]] | None) -> Sequence[types_pb2.Grant]:
    return [types_pb2.Grant(resource=resource, actions=actions) for resource, actions in (grants or {}).items()]


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("the time has no time zone")
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def _duration(duration: timedelta | None) -> Duration | None:
    if duration is None:
        return None
    message = Duration()
    message.FromTimedelta(duration)
    return message


def _has_secret(response: keys_pb.CreateApiKeyResponse | keys_pb.RotateApiKeyResponse) -> None:
    # The id of the request is ours and new: that the secret was shown before means that nobody saw it.
    if response.secret_withheld:
        name = response.api_key.name
        raise errors.SecretWithheld(
            f"{name} has a secret that nobody has seen: rotate the key, or delete it", "SECRET_WITHHELD", {"name": name}
        )
