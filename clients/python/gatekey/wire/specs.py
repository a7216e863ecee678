"""Product specs on the wire."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from gatekey.core import specs
from gatekey.core.errors import InvalidRequest, Violation
from gatekey.core.specs import (
    AccessMode,
    Collection,
    CredentialHeader,
    KeyOwner,
    MachineUserPolicy,
    ProductSpec,
    PublishableKeyPolicy,
    RestrictedPolicy,
    Role,
    SecretKeyPolicy,
    TenantLimits,
)
from gatekey.v1 import product_spec_pb2 as pb
from gatekey.v1 import types_pb2
from gatekey.wire.conversions import (
    ACCESS_MODE,
    KEY_OWNER,
    LIFETIME,
    SCOPE,
    read_duration,
    read_grants,
    write_duration,
    write_grants,
)

S = TypeVar("S")
T = TypeVar("T")


def refuse_too_large(message: pb.ProductSpec) -> None:
    """Refuse a spec that is larger than any valid one, before anything of it is read.

    Raises `InvalidRequest` (`SPEC_INVALID`).
    """
    if message.ByteSize() > specs.MAX_SPEC_BYTES:
        too_large = Violation("", "SPEC_TOO_LARGE", f"a spec has at most {specs.MAX_SPEC_BYTES} bytes")
        raise InvalidRequest.all("SPEC_INVALID", [too_large])
    excess = specs.too_many(message)
    if excess is not None:
        raise InvalidRequest.all("SPEC_INVALID", [excess])


def read_spec(message: pb.ProductSpec, violations: list[Violation]) -> ProductSpec:
    """Read a spec as it is, right or wrong; what no spec can hold at all is left out and told in `violations`."""
    return ProductSpec(
        product=message.product,
        display_name=message.display_name,
        tenant_noun=message.tenant_noun,
        collections=tuple(Collection(c.pattern, tuple(c.actions), c.display_name) for c in message.collections),
        read_actions=tuple(message.read_actions),
        roles=tuple(
            Role(r.role, read_grants(r.grants), r.display_name, r.owner, read_grants(r.administration))
            for r in message.roles
        ),
        secret_keys=_read_secret_keys(message.secret_keys, violations) if message.HasField("secret_keys") else None,
        publishable_keys=PublishableKeyPolicy(
            message.publishable_keys.prefix,
            read_grants(message.publishable_keys.grants),
            _read_lifetime(message.publishable_keys, violations, "publishable_keys"),
        )
        if message.HasField("publishable_keys")
        else None,
        machine_users=MachineUserPolicy(
            message.machine_users.role,
            _read(violations, LIFETIME.read, message.machine_users.lifetime, "machine_users.lifetime"),
            read_grants(message.machine_users.administration),
        )
        if message.HasField("machine_users")
        else None,
        credential=CredentialHeader(message.credential.header, message.credential.scheme)
        if message.HasField("credential")
        else None,
        limits=TenantLimits(message.limits.members, message.limits.machine_users, message.limits.api_keys),
        actor_required=message.actor_required,
    )


def write_spec(spec: ProductSpec) -> pb.ProductSpec:
    """Write a valid spec."""
    message = pb.ProductSpec(
        product=spec.product,
        display_name=spec.display_name,
        tenant_noun=spec.tenant_noun,
        collections=[
            pb.Collection(pattern=c.pattern, display_name=c.display_name, actions=c.actions) for c in spec.collections
        ],
        read_actions=spec.read_actions,
        actor_required=spec.actor_required,
        credential=write_credential(spec),
        roles=[
            pb.Role(
                role=r.role,
                display_name=r.display_name,
                grants=write_grants(r.grants),
                owner=r.owner,
                administration=write_grants(r.administration),
            )
            for r in spec.roles
        ],
    )
    if spec.secret_keys:
        message.secret_keys.CopyFrom(_write_secret_keys(spec.secret_keys))
    if spec.publishable_keys:
        message.publishable_keys.prefix = spec.publishable_keys.prefix
        message.publishable_keys.grants.extend(write_grants(spec.publishable_keys.grants))
        if spec.publishable_keys.max_lifetime is not None:
            message.publishable_keys.max_lifetime.CopyFrom(write_duration(spec.publishable_keys.max_lifetime))
    if spec.machine_users:
        message.machine_users.role = spec.machine_users.role
        message.machine_users.lifetime = LIFETIME.write(spec.machine_users.lifetime)
        message.machine_users.administration.extend(write_grants(spec.machine_users.administration))
    if spec.limits != TenantLimits():
        message.limits.members = spec.limits.members
        message.limits.machine_users = spec.limits.machine_users
        message.limits.api_keys = spec.limits.api_keys
    return message


def write_credential(spec: ProductSpec) -> pb.CredentialHeader | None:
    """Where holders present keys of the product."""
    credential = spec.credential
    return pb.CredentialHeader(header=credential.header, scheme=credential.scheme) if credential else None


def _read_secret_keys(message: pb.SecretKeyPolicy, violations: list[Violation]) -> SecretKeyPolicy:
    at = "secret_keys"
    modes = [
        _read(violations, _read_mode, number, f"{at}.modes[{index}]") for index, number in enumerate(message.modes)
    ]
    owners = [
        _read(violations, _read_owner, number, f"{at}.owners[{index}]") for index, number in enumerate(message.owners)
    ]
    return SecretKeyPolicy(
        prefix=message.prefix,
        modes=tuple(mode for mode in modes if mode is not None),
        default_mode=_read(violations, ACCESS_MODE.read, message.default_mode, f"{at}.default_mode"),
        restricted=RestrictedPolicy(
            _read(violations, SCOPE.read, message.restricted.scope, f"{at}.restricted.scope"),
            read_grants(message.restricted.grantable),
        )
        if message.HasField("restricted")
        else None,
        max_lifetime=_read_lifetime(message, violations, at),
        owners=tuple(owner for owner in owners if owner is not None),
        default_owner=_read(violations, KEY_OWNER.read, message.default_owner, f"{at}.default_owner"),
        own_keys_only=message.own_keys_only,
    )


def _read_lifetime(
    message: pb.SecretKeyPolicy | pb.PublishableKeyPolicy, violations: list[Violation], at: str
) -> timedelta | None:
    if not message.HasField("max_lifetime"):
        return None
    return _read(violations, read_duration, message.max_lifetime, f"{at}.max_lifetime")


def _read_owner(number: pb.SecretKeyPolicy.Owner.ValueType, field: str) -> KeyOwner:
    owner = KEY_OWNER.read(number, field)
    if owner is None:
        raise InvalidRequest.at(field, "ENUM_UNKNOWN", "an owner is required")
    return owner


def _read_mode(number: types_pb2.AccessMode.ValueType, field: str) -> AccessMode:
    mode = ACCESS_MODE.read(number, field)
    if mode is None:
        raise InvalidRequest.at(field, "ENUM_UNKNOWN", "a mode is required")
    return mode


def _read(violations: list[Violation], read: Callable[[S, str], T], value: S, field: str) -> T | None:
    try:
        return read(value, field)
    except InvalidRequest as error:
        violations.extend(error.violations)
        return None


def _write_secret_keys(policy: SecretKeyPolicy) -> pb.SecretKeyPolicy:
    message = pb.SecretKeyPolicy(prefix=policy.prefix)
    message.modes.extend(ACCESS_MODE.write(mode) for mode in policy.modes)
    message.default_mode = ACCESS_MODE.write(policy.default_mode)
    if policy.restricted:
        message.restricted.scope = SCOPE.write(policy.restricted.scope)
        message.restricted.grantable.extend(write_grants(policy.restricted.grantable))
    if policy.max_lifetime is not None:
        message.max_lifetime.CopyFrom(write_duration(policy.max_lifetime))
    message.owners.extend(KEY_OWNER.write(owner) for owner in policy.owners)
    message.default_owner = KEY_OWNER.write(policy.default_owner)
    message.own_keys_only = policy.own_keys_only
    return message
