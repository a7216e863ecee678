"""Product specs on the wire."""

from collections.abc import Callable
from typing import TypeVar

from gatekey.v1 import product_spec_pb2 as pb
from gatekey.v1 import types_pb2

from gatekey_server.domain.errors import InvalidRequest, Violation
from gatekey_server.domain.specs import (
    AccessMode,
    Collection,
    CredentialHeader,
    MachineUserPolicy,
    ProductSpec,
    PublishableKeyPolicy,
    RestrictedPolicy,
    Role,
    SecretKeyPolicy,
    TenantLimits,
)
from gatekey_server.rpc.values import (
    ACCESS_MODE,
    LIFETIME,
    SCOPE,
    read_duration,
    read_grants,
    write_duration,
    write_grants,
)

S = TypeVar("S")
T = TypeVar("T")


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
            message.publishable_keys.prefix, read_grants(message.publishable_keys.grants)
        )
        if message.HasField("publishable_keys")
        else None,
        machine_users=MachineUserPolicy(
            message.machine_users.role,
            _read(violations, LIFETIME.read, message.machine_users.lifetime, "machine_users.lifetime"),
        )
        if message.HasField("machine_users")
        else None,
        credential=CredentialHeader(message.credential.header, message.credential.scheme)
        if message.HasField("credential")
        else None,
        limits=TenantLimits(message.limits.members, message.limits.machine_users, message.limits.api_keys),
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
    if spec.machine_users:
        message.machine_users.role = spec.machine_users.role
        message.machine_users.lifetime = LIFETIME.write(spec.machine_users.lifetime)
    if spec.credential:
        message.credential.header = spec.credential.header
        message.credential.scheme = spec.credential.scheme
    if spec.limits != TenantLimits():
        message.limits.members = spec.limits.members
        message.limits.machine_users = spec.limits.machine_users
        message.limits.api_keys = spec.limits.api_keys
    return message


def _read_secret_keys(message: pb.SecretKeyPolicy, violations: list[Violation]) -> SecretKeyPolicy:
    at = "secret_keys"
    modes = [
        _read(violations, _read_mode, number, f"{at}.modes[{index}]") for index, number in enumerate(message.modes)
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
        max_lifetime=_read(violations, read_duration, message.max_lifetime, f"{at}.max_lifetime")
        if message.HasField("max_lifetime")
        else None,
    )


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
    return message
