"""The rules about keys, as tables: what goes in, and what comes out or is refused."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from gatekey.core import key_rules, specs
from gatekey.core.decisions import CompiledSpec, PrincipalKind
from gatekey.core.entities import ApiKey, Principal
from gatekey.core.errors import (
    DomainError,
    FailedPrecondition,
    InvalidRequest,
    PermissionDenied,
    ResourceExhausted,
)
from gatekey.core.grants import Grant, GrantSet
from gatekey.core.key_rules import ApiKeyChange, KeySettings, Limited, NewApiKey, NewMachineUser
from gatekey.core.names import ApiKeyName, KeyOwnerName, MachineUserName, MemberName, PrincipalName, TenantName
from gatekey.core.specs import (
    AccessMode,
    Collection,
    CredentialHeader,
    KeyKind,
    KeyOwner,
    Lifetime,
    MachineUserPolicy,
    ProductSpec,
    PublishableKeyPolicy,
    RestrictedPolicy,
    RestrictedScope,
    Role,
    SecretKeyPolicy,
    TenantLimits,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TENANT, OTHER_TENANT = TenantName("shop", "acme"), TenantName("shop", "other")
ADA, BOB, ROBOT = MemberName(TENANT, "ada"), MemberName(TENANT, "bob"), MachineUserName(TENANT, "robot")
NEW_ROBOT = NewMachineUser(ROBOT, "Robot")
READ, WRITE = Grant("links", ("read",)), Grant("links", ("write",))
ALL, READ_ONLY, RESTRICTED = AccessMode.ALL, AccessMode.READ_ONLY, AccessMode.RESTRICTED
SECRET, PUBLISHABLE = KeyKind.SECRET, KeyKind.PUBLISHABLE

SECRET_KEYS = SecretKeyPolicy(
    prefix="shop_",
    modes=(ALL, RESTRICTED),
    default_mode=ALL,
    restricted=RestrictedPolicy(RestrictedScope.RESOURCES, (Grant("links", ("read", "write")),)),
    max_lifetime=10 * DAY,
)
SPEC = ProductSpec(
    product="shop",
    collections=(Collection("links", ("read", "write", "delete")),),
    read_actions=("read",),
    roles=(
        Role("owner", (Grant("*", ("*",)),), owner=True),
        Role("reader", (READ,)),
    ),
    secret_keys=SECRET_KEYS,
    publishable_keys=PublishableKeyPolicy("shop_pub_", (READ,), max_lifetime=DAY),
    machine_users=MachineUserPolicy("reader", Lifetime.INDEPENDENT),
    credential=CredentialHeader("authorization", "Bearer"),
    tenant_noun="branch",
    limits=TenantLimits(members=2, api_keys=3),
)
WITHOUT_MACHINE_USERS = replace(SPEC, machine_users=None)
BOUND = replace(SPEC, machine_users=MachineUserPolicy("reader", Lifetime.BOUND_TO_KEYS))


def compiled(spec: ProductSpec = SPEC, **secret_keys: Any) -> CompiledSpec:
    """A valid spec, with other rules about secret keys where they are given."""
    changed = replace(spec, secret_keys=replace(SECRET_KEYS, **secret_keys))
    specs.validate(changed)
    return CompiledSpec(changed)


def principal(name: PrincipalName, role: str | None = None) -> Principal:
    return Principal(uid=1, name=name, role=role, display_name="", create_time=NOW, version=1)


def api_key(**fields: Any) -> ApiKey:
    """A key of a member that was made a day ago and may do everything for three days."""
    key = ApiKey(
        uid=uuid.UUID(int=1),
        name=ApiKeyName(TENANT, "key_00000000000000000000000001"),
        display_name="before",
        kind=SECRET,
        owner=ADA,
        mode=ALL,
        grants=(),
        create_time=NOW - DAY,
        expire_time=NOW + 2 * DAY,
        disable_time=None,
        revoke_time=None,
        secrets=(),
        description="about it",
        labels={"a": "b"},
        revoke_reason="",
        version=1,
        last_use_time=None,
    )
    return replace(key, **fields)


def refused(error: type[DomainError], reason: str, rule: Callable[[], object]) -> DomainError:
    """Demand that a rule raises an error, and return it."""
    with pytest.raises(DomainError) as raised:
        rule()
    assert type(raised.value) is error
    assert raised.value.reason == reason
    return raised.value


@pytest.mark.parametrize(
    ("new", "field", "reason"),
    [
        (NewApiKey(TENANT, "k"), None, None),
        (NewApiKey(TENANT, "k", owner=ADA, grants=(READ,)), None, None),
        (NewApiKey(TENANT, "k", owner=TENANT), None, None),
        (NewApiKey(TENANT, "k", owner=NEW_ROBOT), None, None),
        (NewApiKey(TenantName("gatekey", "system"), "k", actor_required=True), None, None),
        (NewApiKey(TENANT, "k", PUBLISHABLE, owner=ADA), "api_key.owner", "OWNER_NOT_ALLOWED"),
        (NewApiKey(TENANT, "k", PUBLISHABLE, owner=NEW_ROBOT), "api_key.owner", "OWNER_NOT_ALLOWED"),
        (NewApiKey(OTHER_TENANT, "k", owner=ADA), "api_key.owner", "OWNER_OF_OTHER_TENANT"),
        (NewApiKey(OTHER_TENANT, "k", owner=TENANT), "api_key.owner", "OWNER_OF_OTHER_TENANT"),
        (NewApiKey(TENANT, "k", actor_required=True), "api_key.actor_required", "ACTOR_REQUIRED_NOT_ALLOWED"),
        (NewApiKey(TENANT, "k", grants=(Grant("links", ()),)), "api_key.grants[0].actions", "GRANTS_INVALID"),
    ],
)
def test_the_form_of_a_new_key(new: NewApiKey, field: str | None, reason: str | None) -> None:
    if reason is None:
        key_rules.check_form(new)
        return
    error = refused(InvalidRequest, reason, lambda: key_rules.check_form(new))
    assert [violation.field for violation in error.violations] == [field]


@pytest.mark.parametrize(
    ("default", "kind", "owner", "actor", "expected"),
    [
        (None, SECRET, None, ADA, None),
        (None, SECRET, BOB, ADA, BOB),
        (KeyOwner.MEMBER, SECRET, None, ADA, ADA),
        (KeyOwner.MEMBER, SECRET, None, None, None),
        (KeyOwner.MEMBER, SECRET, None, ROBOT, None),
        (KeyOwner.MEMBER, SECRET, NEW_ROBOT, ADA, NEW_ROBOT),
        (KeyOwner.TENANT, SECRET, None, ADA, TENANT),
        (KeyOwner.TENANT, PUBLISHABLE, None, ADA, None),
    ],
)
def test_whose_a_new_key_is(
    default: KeyOwner | None,
    kind: KeyKind,
    owner: KeyOwnerName | NewMachineUser | None,
    actor: PrincipalName | None,
    expected: KeyOwnerName | NewMachineUser | None,
) -> None:
    rules = compiled(owners=tuple(KeyOwner), default_owner=default)
    assert key_rules.choose_owner(rules, NewApiKey(TENANT, "k", kind, owner=owner), actor) == expected


@pytest.mark.parametrize(
    ("owners", "kind", "owner", "reason"),
    [
        ((), SECRET, ADA, None),
        ((), SECRET, ROBOT, None),
        ((), SECRET, NEW_ROBOT, None),
        ((), SECRET, TENANT, "OWNER_NOT_OFFERED"),
        ((), SECRET, None, "OWNER_REQUIRED"),
        ((), PUBLISHABLE, None, None),
        ((KeyOwner.TENANT,), SECRET, TENANT, None),
        ((KeyOwner.TENANT,), SECRET, ADA, "OWNER_NOT_OFFERED"),
        ((KeyOwner.TENANT,), SECRET, NEW_ROBOT, "OWNER_NOT_OFFERED"),
    ],
)
def test_whose_keys_can_be(
    owners: tuple[KeyOwner, ...], kind: KeyKind, owner: KeyOwnerName | NewMachineUser | None, reason: str | None
) -> None:
    rules = compiled(owners=owners)
    if reason is None:
        key_rules.check_owner_offered(rules, kind, owner)
        return
    error = refused(InvalidRequest, reason, lambda: key_rules.check_owner_offered(rules, kind, owner))
    assert ("the branch itself" in error.message) == (KeyOwner.TENANT in owners)


def test_a_new_machine_user_of_a_product_without_any_is_refused_by_its_lifetime() -> None:
    without = compiled(WITHOUT_MACHINE_USERS)
    key_rules.check_owner_offered(without, SECRET, NEW_ROBOT)
    reason = "MACHINE_USERS_NOT_OFFERED"
    refused(FailedPrecondition, reason, lambda: key_rules.machine_user_lifetime(without))
    refused(FailedPrecondition, reason, lambda: key_rules.check_keyless_machine_user(without))


def test_a_machine_user_that_lives_with_its_key_has_one() -> None:
    bound = compiled(BOUND)
    assert key_rules.machine_user_lifetime(bound) is Lifetime.BOUND_TO_KEYS
    refused(FailedPrecondition, "MACHINE_USER_NEEDS_KEY", lambda: key_rules.check_keyless_machine_user(bound))
    key_rules.check_keyless_machine_user(compiled())
    found = [
        key_rules.has_one_key(rules, owner)
        for rules in (bound, compiled(), compiled(WITHOUT_MACHINE_USERS))
        for owner in (principal(ROBOT), principal(ADA, "owner"))
    ]
    assert found == [True, False, False, False, False, False]
    error = key_rules.second_key(principal(ROBOT))
    assert (error.reason, str(ROBOT) in error.message) == ("MACHINE_USER_HAS_KEY", True)


@pytest.mark.parametrize(
    ("own_keys_only", "owner", "actor", "is_allowed"),
    [
        (False, BOB, ADA, True),
        (True, BOB, ADA, False),
        (True, ADA, ADA, True),
        (True, ADA, None, True),
        (True, ADA, ROBOT, False),
        (True, ROBOT, ADA, True),
    ],
)
def test_keys_of_other_members(
    own_keys_only: bool, owner: PrincipalName, actor: PrincipalName | None, is_allowed: bool
) -> None:
    rules = compiled(own_keys_only=own_keys_only)
    if is_allowed:
        key_rules.check_own_key(rules, owner, actor)
        return
    error = refused(PermissionDenied, "KEY_OF_OTHER_MEMBER", lambda: key_rules.check_own_key(rules, owner, actor))
    assert error.metadata == {"owner": str(owner)}


@pytest.mark.parametrize(
    ("wanted", "grants", "expected"),
    [
        (None, (), ALL),
        (ALL, (), ALL),
        (RESTRICTED, (READ,), RESTRICTED),
        (RESTRICTED, (READ, WRITE, READ), RESTRICTED),
        (READ_ONLY, (), "api_key.mode MODE_NOT_OFFERED"),
        (ALL, (READ,), "api_key.grants GRANTS_NOT_ALLOWED"),
        (None, (READ,), "api_key.grants GRANTS_NOT_ALLOWED"),
        (RESTRICTED, (), "api_key.grants GRANTS_REQUIRED"),
        (RESTRICTED, (Grant("pages", ("read",)),), "api_key.grants[0].resource GRANTS_INVALID"),
        (RESTRICTED, (Grant("links", ("delete",)),), "api_key.grants GRANTS_NOT_OFFERED"),
    ],
)
def test_what_a_secret_key_can_be_given(
    wanted: AccessMode | None, grants: tuple[Grant, ...], expected: AccessMode | str
) -> None:
    if isinstance(expected, AccessMode):
        assert key_rules.check_permissions(compiled(), SECRET, wanted, grants) is expected
        return
    field, reason = expected.split()
    error = refused(InvalidRequest, reason, lambda: key_rules.check_permissions(compiled(), SECRET, wanted, grants))
    assert [violation.field for violation in error.violations] == [field]
    if reason == "GRANTS_NOT_OFFERED":
        assert error.metadata == {"resource": "links", "action": "delete"}


def test_a_mode_is_required_where_there_is_no_default() -> None:
    rules = compiled(default_mode=None)
    error = refused(InvalidRequest, "MODE_REQUIRED", lambda: key_rules.check_permissions(rules, SECRET, None, ()))
    assert "ALL, RESTRICTED" in error.message


def test_a_publishable_key_has_what_the_spec_says() -> None:
    assert key_rules.check_permissions(compiled(), PUBLISHABLE, None, ()) is None
    check = key_rules.check_permissions
    refused(InvalidRequest, "MODE_NOT_ALLOWED", lambda: check(compiled(), PUBLISHABLE, ALL, ()))
    refused(InvalidRequest, "GRANTS_NOT_ALLOWED", lambda: check(compiled(), PUBLISHABLE, None, (READ,)))
    without = compiled(replace(SPEC, publishable_keys=None))
    reason = "PUBLISHABLE_KEYS_NOT_OFFERED"
    refused(FailedPrecondition, reason, lambda: check(without, PUBLISHABLE, None, ()))
    refused(FailedPrecondition, reason, lambda: key_rules.check_kind_offered(without, PUBLISHABLE))
    key_rules.check_kind_offered(without, SECRET)


@pytest.mark.parametrize(
    ("owner", "mode", "grants", "is_allowed"),
    [
        (principal(ADA, "owner"), RESTRICTED, (READ, WRITE), True),
        (principal(ADA, "reader"), RESTRICTED, (READ,), True),
        (principal(ADA, "reader"), RESTRICTED, (READ, WRITE), False),
        (principal(ADA, "removed-role"), RESTRICTED, (READ,), False),
        # The role decides at each check what a key of mode ALL may do.
        (principal(ADA, "reader"), ALL, (), True),
        (principal(ROBOT), RESTRICTED, (READ,), True),
        (principal(ROBOT), RESTRICTED, (WRITE,), False),
    ],
)
def test_a_restricted_key_has_no_more_than_its_owner(
    owner: Principal, mode: AccessMode, grants: tuple[Grant, ...], is_allowed: bool
) -> None:
    if is_allowed:
        key_rules.check_owner_grants(compiled(), owner, mode, grants)
        return
    error = refused(
        InvalidRequest,
        "GRANTS_EXCEED_OWNER",
        lambda: key_rules.check_owner_grants(compiled(), owner, mode, grants),
    )
    assert error.metadata["role"] == key_rules.role_of(compiled(), owner)
    assert error.metadata["resource"] == "links"


def test_what_a_key_gives_by_itself() -> None:
    given = key_rules.given_by
    assert given(compiled(), PUBLISHABLE, None, ()) == GrantSet.of((READ,))
    assert given(compiled(), SECRET, RESTRICTED, (WRITE,)) == GrantSet.of((WRITE,))
    assert given(compiled(), SECRET, ALL, ()).contains(GrantSet.of((WRITE, READ)))


@pytest.mark.parametrize(
    ("kind", "wanted", "since", "expected"),
    [
        (SECRET, None, None, NOW + 10 * DAY),
        (SECRET, None, NOW - DAY, NOW + 9 * DAY),
        (SECRET, NOW + DAY, None, NOW + DAY),
        (SECRET, NOW + 10 * DAY, None, NOW + 10 * DAY),
        (SECRET, NOW + 10 * DAY, NOW - DAY, "EXPIRE_TIME_TOO_FAR"),
        (SECRET, NOW + 11 * DAY, None, "EXPIRE_TIME_TOO_FAR"),
        (SECRET, NOW, None, "EXPIRE_TIME_PAST"),
        (SECRET, NOW - DAY, None, "EXPIRE_TIME_PAST"),
        (PUBLISHABLE, None, None, NOW + DAY),
        (PUBLISHABLE, NOW + 2 * DAY, None, "EXPIRE_TIME_TOO_FAR"),
    ],
)
def test_when_a_key_expires(
    kind: KeyKind, wanted: datetime | None, since: datetime | None, expected: datetime | str
) -> None:
    if isinstance(expected, datetime):
        assert key_rules.check_expiry(compiled(), kind, wanted, NOW, since) == expected
        return
    error = refused(InvalidRequest, expected, lambda: key_rules.check_expiry(compiled(), kind, wanted, NOW, since))
    assert [violation.field for violation in error.violations] == ["api_key.expire_time"]


def test_without_a_longest_lifetime_a_key_may_never_expire() -> None:
    rules = compiled(max_lifetime=None)
    assert key_rules.check_expiry(rules, SECRET, None, NOW) is None
    assert key_rules.check_expiry(rules, SECRET, NOW + 9999 * DAY, NOW) == NOW + 9999 * DAY


@pytest.mark.parametrize(
    ("expire_time", "other", "expected"),
    [
        (None, None, False),
        (None, NOW, True),
        (NOW, None, False),
        (NOW, NOW, False),
        (NOW + DAY, NOW, True),
        (NOW, NOW + DAY, False),
    ],
)
def test_what_outlives_what(expire_time: datetime | None, other: datetime | None, expected: bool) -> None:
    assert key_rules.outlives(expire_time, other) == expected


RESTRICTED_KEY = api_key(mode=RESTRICTED, grants=(READ,))


@pytest.mark.parametrize(
    ("before", "change", "expected"),
    [
        (api_key(), {}, {}),
        (api_key(), {"display_name": "after", "description": "", "labels": {}}, None),
        (api_key(), {"mode": RESTRICTED, "grants": (READ, READ)}, {"mode": RESTRICTED, "grants": (READ,)}),
        (RESTRICTED_KEY, {"grants": (WRITE,)}, {"mode": RESTRICTED, "grants": (WRITE,)}),
        (RESTRICTED_KEY, {"mode": ALL}, {"mode": ALL, "grants": ()}),
        (RESTRICTED_KEY, {"mode": None}, {"mode": ALL, "grants": ()}),
        (RESTRICTED_KEY, {"mode": ALL, "grants": (READ,)}, "GRANTS_NOT_ALLOWED"),
        (RESTRICTED_KEY, {"grants": ()}, "GRANTS_REQUIRED"),
        (api_key(), {"mode": RESTRICTED}, "GRANTS_REQUIRED"),
        (api_key(), {"mode": READ_ONLY}, "MODE_NOT_OFFERED"),
        # The longest lifetime counts from the creation, which was a day ago.
        (api_key(), {"expire_time": None}, {"expire_time": NOW + 9 * DAY}),
        (api_key(), {"expire_time": NOW + 9 * DAY}, None),
        (api_key(), {"expire_time": NOW + 10 * DAY}, "EXPIRE_TIME_TOO_FAR"),
        (api_key(), {"expire_time": NOW}, "EXPIRE_TIME_PAST"),
        # What an older spec allowed stays as it is, unless it is named.
        (api_key(mode=READ_ONLY, expire_time=None), {"display_name": "after"}, None),
    ],
)
def test_an_update(before: ApiKey, change: dict[str, Any], expected: dict[str, Any] | str | None) -> None:
    update = ApiKeyChange(frozenset(change), **change)
    if isinstance(expected, str):
        refused(InvalidRequest, expected, lambda: key_rules.apply_change(compiled(), before, update, NOW))
        return
    after = key_rules.apply_change(compiled(), before, update, NOW)
    assert after == replace(KeySettings.of(before), **(change if expected is None else expected))


def test_a_revoked_key_is_not_changed() -> None:
    key, update = api_key(revoke_time=NOW), ApiKeyChange(frozenset({"display_name"}), display_name="after")
    refused(FailedPrecondition, "API_KEY_REVOKED", lambda: key_rules.apply_change(compiled(), key, update, NOW))


@pytest.mark.parametrize(
    ("expire_time", "fields", "expected"),
    [
        (NOW - DAY, {"expire_time"}, True),
        (NOW, {"expire_time"}, True),
        (NOW + DAY, {"expire_time"}, False),
        (None, {"expire_time"}, False),
        (NOW - DAY, {"display_name"}, False),
    ],
)
def test_which_updates_revive_a_key(expire_time: datetime | None, fields: set[str], expected: bool) -> None:
    change = ApiKeyChange(frozenset(fields), expire_time=NOW + DAY)
    assert key_rules.is_revived(api_key(expire_time=expire_time), change, NOW) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (api_key(), {}, False),
        (api_key(), {"mode": RESTRICTED, "grants": (READ,)}, False),
        (api_key(), {"expire_time": NOW + DAY}, False),
        (api_key(), {"expire_time": NOW + 3 * DAY}, True),
        (api_key(), {"expire_time": None}, True),
        (RESTRICTED_KEY, {"mode": ALL, "grants": ()}, True),
        (RESTRICTED_KEY, {"grants": (READ, WRITE)}, True),
        (RESTRICTED_KEY, {"display_name": "after"}, False),
    ],
)
def test_which_updates_give_more(before: ApiKey, after: dict[str, Any], expected: bool) -> None:
    settings = replace(KeySettings.of(before), **after)
    assert key_rules.gives_more(compiled(), before, settings) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"disable_time": NOW}, None),
        ({"revoke_time": NOW}, "API_KEY_REVOKED"),
        ({"revoke_time": NOW, "expire_time": NOW}, "API_KEY_REVOKED"),
        ({"expire_time": NOW}, "API_KEY_EXPIRED"),
    ],
)
def test_which_keys_are_rotated(fields: dict[str, datetime], reason: str | None) -> None:
    key = api_key(**fields)
    if reason is None:
        key_rules.check_rotation(key, NOW)
    else:
        refused(FailedPrecondition, reason, lambda: key_rules.check_rotation(key, NOW))


def test_roles() -> None:
    key_rules.check_role(compiled(), "reader")
    error = refused(InvalidRequest, "ROLE_UNKNOWN", lambda: key_rules.check_role(compiled(), "admin"))
    assert error.message == "member.role: one of owner, reader is required"
    assert key_rules.role_of(compiled(), principal(ADA, "owner")) == "owner"
    assert key_rules.role_of(compiled(), principal(ROBOT)) == "reader"


@pytest.mark.parametrize(
    ("what", "count", "words"),
    [
        (Limited.MEMBERS, 1, None),
        (Limited.MEMBERS, 2, "members: 2"),
        (Limited.MACHINE_USERS, 1_000_000, None),
        (Limited.API_KEYS, 2, None),
        (Limited.API_KEYS, 4, "API keys: 3"),
    ],
)
def test_limits(what: Limited, count: int, words: str | None) -> None:
    if words is None:
        key_rules.check_limit(compiled(), what, count)
        return
    error = refused(ResourceExhausted, "LIMIT_REACHED", lambda: key_rules.check_limit(compiled(), what, count))
    assert error.message == f"the branch has reached its limit of {words}"
    assert error.metadata == {"limit": words.split()[-1], "of": what.value}


def test_each_limit_has_its_words() -> None:
    rules = compiled(replace(SPEC, limits=TenantLimits(1, 2, 3)))
    assert [key_rules.limit_of(rules, what) for what in Limited] == [1, 2, 3]
    assert [key_rules.limited(kind) for kind in PrincipalKind] == [Limited.MEMBERS, Limited.MACHINE_USERS]
    error = refused(ResourceExhausted, "LIMIT_REACHED", lambda: key_rules.check_limit(rules, Limited.MACHINE_USERS, 2))
    assert error.message == "the branch has reached its limit of machine users: 2"
