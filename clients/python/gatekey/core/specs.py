"""Product specs: the rules of one product as data, and their validation."""

import enum
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from gatekey.core import grants as g
from gatekey.core.errors import InvalidRequest, Violation
from gatekey.core.grants import ANY, NOTHING, Grant, GrantSet, Path, Permission
from gatekey.core.names import MAX_DISPLAY_NAME_CHARS, is_product_id
from gatekey.core.secrets import MAX_PREFIX_CHARS

_T = TypeVar("_T")

MAX_COLLECTIONS = 256
MAX_ROLES = 64
MAX_GRANTS = 256
MAX_READ_ACTIONS = 256
MAX_SPEC_BYTES = 256 << 10
MAX_SPEC_GRANTS = 2048
"""All grants of a spec together. With the actions they bound the cost of validating and compiling it."""
MAX_SPEC_ACTIONS = 8192
"""All actions of the collections and the grants of a spec together."""
_MAX_MODES = 16
_MAX_COUNTED_VIOLATIONS = 500
_IN_ALL = {"grants": MAX_SPEC_GRANTS, "actions": MAX_SPEC_ACTIONS}
MIN_LIFETIME = timedelta(minutes=1)
MAX_LIFETIME = timedelta(days=36500)


class KeyKind(enum.StrEnum):
    """The kind of a key."""

    SECRET = "SECRET"  # noqa: S105 - the name of a kind
    PUBLISHABLE = "PUBLISHABLE"


class AccessMode(enum.StrEnum):
    """How many of its owner's permissions a secret key has."""

    ALL = "ALL"
    READ_ONLY = "READ_ONLY"
    RESTRICTED = "RESTRICTED"


class KeyOwner(enum.StrEnum):
    """The kind of owner of a secret key."""

    MEMBER = "MEMBER"
    MACHINE_USER = "MACHINE_USER"
    TENANT = "TENANT"


class RestrictedScope(enum.StrEnum):
    """What can be chosen for a restricted key: actions only, or resources as well."""

    ACTIONS = "ACTIONS"
    RESOURCES = "RESOURCES"


class Lifetime(enum.StrEnum):
    """How long a machine user lives."""

    BOUND_TO_KEYS = "BOUND_TO_KEYS"
    INDEPENDENT = "INDEPENDENT"


@dataclass(frozen=True, slots=True)
class Collection:
    """A set of resources of one type, such as `domains/*/links`, and their actions."""

    pattern: str
    actions: tuple[str, ...]
    display_name: str = ""


@dataclass(frozen=True, slots=True)
class Role:
    """The permissions of a principal."""

    role: str
    grants: tuple[Grant, ...] = ()
    display_name: str = ""
    owner: bool = False
    administration: tuple[Grant, ...] = ()
    """The permissions to administer of members of the role, as actors. Resources are those of `ADMINISTRATION`."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """How much a tenant can hold; 0 for no limit."""

    members: int = 0
    machine_users: int = 0
    api_keys: int = 0


@dataclass(frozen=True, slots=True)
class RestrictedPolicy:
    """The grants that can be chosen for a restricted key."""

    scope: RestrictedScope | None
    grantable: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class SecretKeyPolicy:
    """The prefix, owners, modes and grants of secret keys. None stands for an omitted field."""

    prefix: str
    modes: tuple[AccessMode, ...]
    default_mode: AccessMode | None
    restricted: RestrictedPolicy | None = None
    max_lifetime: timedelta | None = None
    owners: tuple[KeyOwner, ...] = ()
    default_owner: KeyOwner | None = None
    own_keys_only: bool = False
    """Whether an actor cannot create or rotate keys of other members."""

    @property
    def offered_owners(self) -> tuple[KeyOwner, ...]:
        """The kinds of owner that keys can have."""
        return self.owners or (KeyOwner.MEMBER, KeyOwner.MACHINE_USER)


@dataclass(frozen=True, slots=True)
class PublishableKeyPolicy:
    """The prefix and the grants of publishable keys."""

    prefix: str
    grants: tuple[Grant, ...]
    max_lifetime: timedelta | None = None


@dataclass(frozen=True, slots=True)
class MachineUserPolicy:
    """The role and the lifetime of machine users."""

    role: str
    lifetime: Lifetime | None
    administration: tuple[Grant, ...] = ()
    """The permissions to administer of machine users, as actors. Those of their role are for members only."""


@dataclass(frozen=True, slots=True)
class CredentialHeader:
    """The header that holds a key in requests: `authorization` with a scheme, or a header of its own."""

    header: str
    scheme: str = ""


@dataclass(frozen=True, slots=True)
class ProductSpec:
    """The rules of one product. It may be invalid in any way until `validate` has accepted it."""

    product: str
    collections: tuple[Collection, ...]
    roles: tuple[Role, ...]
    secret_keys: SecretKeyPolicy | None
    credential: CredentialHeader | None
    read_actions: tuple[str, ...] = ()
    publishable_keys: PublishableKeyPolicy | None = None
    machine_users: MachineUserPolicy | None = None
    display_name: str = ""
    tenant_noun: str = ""
    limits: TenantLimits = TenantLimits()
    actor_required: bool = False

    @property
    def owner_role(self) -> str:
        """The role that owns the tenant, in a valid spec."""
        return next((role.role for role in self.roles if role.owner), "")

    @property
    def prefixes(self) -> dict[KeyKind, str]:
        """The prefix of each kind of key that the product has."""
        found = {}
        if self.secret_keys:
            found[KeyKind.SECRET] = self.secret_keys.prefix
        if self.publishable_keys:
            found[KeyKind.PUBLISHABLE] = self.publishable_keys.prefix
        return found


ADMINISTRATION = (
    Collection("tenant", ("update", "suspend", "resume", "delete", "undelete")),
    Collection("members", ("create", "update", "delete")),
    Collection("machineUsers", ("create", "update", "delete")),
    Collection("apiKeys", ("create", "update", "disable", "enable", "revoke", "rotate", "delete")),
    Collection("ownApiKeys", ("create", "update", "disable", "enable", "revoke", "rotate", "delete")),
)
"""The resources of administration inside a tenant. `ownApiKeys` are those of the actor itself."""

MAX_LIMIT = 1_000_000

_COLLECTION = re.compile(r"[a-z][A-Za-z0-9_-]{0,62}(?:/\*/[a-z][A-Za-z0-9_-]{0,62}){0,7}")
_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_PREFIX = re.compile(r"(?:[a-z0-9]+[_-])+")
_HEADER = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")
_NOUN = re.compile(r"[a-z](?:[a-z -]{0,30}[a-z])?")


PRODUCT_ID_INVALID = Violation(
    "product",
    "PRODUCT_ID_INVALID",
    "a product id is a lower-case letter, then lower-case letters, digits and single dashes, up to 63",
)


def validate(spec: ProductSpec, found: Sequence[Violation] = ()) -> None:
    """Validate a spec as a whole. `found` are violations from decoding, whose fields are not reported again.

    Raises `InvalidRequest` (`SPEC_INVALID`) with every violation. Paths are those of the protobuf message, as in
    `roles[1].grants[0].resource`.
    """
    excess = too_many(spec)
    if excess is not None:
        raise InvalidRequest.all("SPEC_INVALID", [excess])
    told = {violation.field for violation in found}
    counted = islice(_Validation(spec).violations(), _MAX_COUNTED_VIOLATIONS)
    violations = [*found, *(violation for violation in counted if violation.field not in told)]
    if violations:
        raise InvalidRequest.all("SPEC_INVALID", violations)


def too_many(spec: Any) -> Violation | None:
    """Return the first list that is too long for a valid spec. `spec` is one, or a message of the same fields.

    The length of a list is checked before its items, so refusing a spec of any size is cheap.
    """
    in_all: Counter[str] = Counter()
    for at, items, most, kind in _lists(spec):
        in_all[kind] += len(items)
        if len(items) > most:
            return Violation(at, "TOO_MANY", f"at most {most} are allowed")
        if kind and in_all[kind] > _IN_ALL[kind]:
            return Violation(at, "TOO_MANY", f"a spec has at most {_IN_ALL[kind]} {kind} in all")
    return None


_List = tuple[str, Sized, int, str]
"""The path of a list, its items, their maximum number, and the total of the spec that they count for."""


def _lists(spec: Any) -> Iterator[_List]:
    """Yield the lists of a spec, from the outside in."""
    yield "collections", spec.collections, MAX_COLLECTIONS, ""
    for at, collection in _indexed("collections", spec.collections):
        yield f"{at}.actions", collection.actions, g.MAX_ACTIONS, "actions"
    yield "read_actions", spec.read_actions, MAX_READ_ACTIONS, ""
    yield "roles", spec.roles, MAX_ROLES, ""
    for at, role in _indexed("roles", spec.roles):
        yield from _lists_of_grants(f"{at}.grants", role.grants)
        yield from _lists_of_grants(f"{at}.administration", role.administration)
    if spec.secret_keys:
        # A few too many are reported together with the other violations.
        yield "secret_keys.modes", spec.secret_keys.modes, _MAX_MODES, ""
        yield "secret_keys.owners", spec.secret_keys.owners, _MAX_MODES, ""
        if spec.secret_keys.restricted:
            yield from _lists_of_grants("secret_keys.restricted.grantable", spec.secret_keys.restricted.grantable)
    if spec.publishable_keys:
        yield from _lists_of_grants("publishable_keys.grants", spec.publishable_keys.grants)
    if spec.machine_users:
        yield from _lists_of_grants("machine_users.administration", spec.machine_users.administration)


def _lists_of_grants(at: str, grants: Sequence[Any]) -> Iterator[_List]:
    yield at, grants, MAX_GRANTS, "grants"
    for field, grant in _indexed(at, grants):
        yield f"{field}.actions", grant.actions, g.MAX_ACTIONS, "actions"


class _Collections:
    """Declared collections as bits, so that the cost of a lookup depends on the length of the pattern alone."""

    def __init__(self, collections: Sequence[Collection]) -> None:
        # By depth and name: the collections with this name there. Under `*`: all collections that are that deep.
        self._with: list[dict[str, int]] = []
        self._declaring: dict[str, int] = {}
        for number, collection in enumerate(collections):
            bit = 1 << number
            for depth, id_ in enumerate(collection.pattern.split("/")[::2]):
                if depth == len(self._with):
                    self._with.append({})
                for name in {id_, ANY}:
                    self._with[depth][name] = self._with[depth].get(name, 0) | bit
            for action in collection.actions:
                self._declaring[action] = self._declaring.get(action, 0) | bit

    def reached_by(self, pattern: Path) -> int:
        """Return the collections in which a pattern covers something. Ids stand between their names, and below."""
        found = -1
        for depth, name in enumerate(pattern[::2]):
            found &= self._with[depth].get(name, 0) if depth < len(self._with) else 0
        return found

    def declaring(self, action: str) -> int:
        """Return the collections that declare an action; all of them for `*`."""
        return -1 if action == ANY else self._declaring.get(action, 0)


class _GrantValidation:
    """The validation of grants over collections."""

    def __init__(self, collections: Sequence[Collection]) -> None:
        self._collections = _Collections(collections)

    def grants(self, grants: Sequence[Grant], at: str, *, least: int) -> Iterator[Violation]:
        yield from _size(grants, at, least, MAX_GRANTS)
        for field, grant in _indexed(at, grants):
            yield from self.grant(grant, field)

    def grant(self, grant: Grant, at: str) -> Iterator[Violation]:
        wrong_form = [] if g.is_well_formed(grant) else list(_grant_form(grant, at))
        yield from wrong_form
        if wrong_form:
            return
        reached = self._collections.reached_by(tuple(grant.resource.split("/")))
        if not reached:
            yield Violation(f"{at}.resource", "RESOURCE_UNKNOWN", f"`{grant.resource}` covers no declared collection")
            return
        declaring = self._collections.declaring
        for number, action in enumerate(grant.actions):
            if not reached & declaring(action):
                yield Violation(
                    f"{at}.actions[{number}]",
                    "ACTION_UNKNOWN",
                    f"no collection that `{grant.resource}` covers declares `{action}`",
                )


class _Validation:
    def __init__(self, spec: ProductSpec) -> None:
        self.spec = spec
        self.actions = {action for c in spec.collections for action in c.actions}
        self._grants = _GrantValidation(spec.collections).grants
        self._administration = _GrantValidation(ADMINISTRATION).grants

    def violations(self) -> Iterator[Violation]:
        yield from self._names()
        yield from self._collections()
        yield from self._read_actions()
        yield from self._roles()
        yield from self._secret_keys()
        yield from self._publishable_keys()
        yield from self._machine_users()
        yield from self._credential()
        yield from self._limits()

    def _names(self) -> Iterator[Violation]:
        if not is_product_id(self.spec.product):
            yield PRODUCT_ID_INVALID
        yield from _display_name(self.spec.display_name, "display_name")
        if self.spec.tenant_noun and not _NOUN.fullmatch(self.spec.tenant_noun):
            yield Violation("tenant_noun", "NOUN_INVALID", "a noun is up to 32 lower-case letters, spaces and dashes")

    def _collections(self) -> Iterator[Violation]:
        yield from _size(self.spec.collections, "collections", 1, MAX_COLLECTIONS)
        counts = Counter(c.pattern for c in self.spec.collections)
        for at, collection in _indexed("collections", self.spec.collections):
            if not _COLLECTION.fullmatch(collection.pattern):
                yield Violation(
                    f"{at}.pattern",
                    "COLLECTION_INVALID",
                    "a collection is an id (a lower-case letter, then letters, digits, `_` or `-`), or several"
                    " joined by `/*/`, as in `domains/*/links`",
                )
            elif counts[collection.pattern] > 1:
                yield Violation(f"{at}.pattern", "COLLECTION_DUPLICATE", f"`{collection.pattern}` is declared twice")
            yield from _display_name(collection.display_name, f"{at}.display_name")
            yield from _size(collection.actions, f"{at}.actions", 1, g.MAX_ACTIONS)
            for field, action in _indexed(f"{at}.actions", collection.actions):
                yield from _caught(partial(g.parse_action, action, field))
            yield from _duplicates(collection.actions, f"{at}.actions")

    def _read_actions(self) -> Iterator[Violation]:
        for field, action in _indexed("read_actions", self.spec.read_actions):
            if action not in self.actions:
                yield Violation(field, "ACTION_UNKNOWN", f"no collection declares the action `{action}`")
        yield from _duplicates(self.spec.read_actions, "read_actions")

    def _roles(self) -> Iterator[Violation]:
        yield from _size(self.spec.roles, "roles", 1, MAX_ROLES)
        counts = Counter(r.role for r in self.spec.roles)
        for at, role in _indexed("roles", self.spec.roles):
            if not _ROLE.fullmatch(role.role):
                yield Violation(
                    f"{at}.role",
                    "ROLE_INVALID",
                    "a role is a lower-case letter, then letters, digits, `_` or `-`",
                )
            elif counts[role.role] > 1:
                yield Violation(f"{at}.role", "ROLE_DUPLICATE", f"`{role.role}` is declared twice")
            yield from _display_name(role.display_name, f"{at}.display_name")
            yield from self._grants(role.grants, f"{at}.grants", least=0)
            yield from self._administration(role.administration, f"{at}.administration", least=0)
        owners = sum(r.owner for r in self.spec.roles)
        if self.spec.roles and owners != 1:
            yield Violation("roles", "OWNER_ROLE_COUNT", f"exactly one role owns the tenant; {owners} do")

    def _secret_keys(self) -> Iterator[Violation]:
        policy = self.spec.secret_keys
        if policy is None:
            yield Violation("secret_keys", "SECRET_KEYS_REQUIRED", "the policy of secret keys is required")
            return
        yield from _prefix(policy.prefix, "secret_keys.prefix")
        yield from _size(policy.modes, "secret_keys.modes", 1, len(AccessMode))
        yield from _duplicates(policy.modes, "secret_keys.modes")
        if policy.default_mode is not None and policy.default_mode not in policy.modes:
            yield Violation("secret_keys.default_mode", "DEFAULT_MODE_INVALID", "the default is one of `modes`")
        if AccessMode.READ_ONLY in policy.modes and not self.spec.read_actions:
            yield Violation(
                "read_actions", "READ_ACTIONS_REQUIRED", "the mode READ_ONLY is offered, so they are required"
            )
        yield from _lifetime(policy.max_lifetime, "secret_keys.max_lifetime")
        yield from self._owners(policy)
        yield from self._restricted(policy)

    def _owners(self, policy: SecretKeyPolicy) -> Iterator[Violation]:
        at = "secret_keys.owners"
        yield from _duplicates(policy.owners, at)
        if policy.default_owner is None:
            return
        if policy.default_owner not in policy.offered_owners or policy.default_owner is KeyOwner.MACHINE_USER:
            yield Violation(
                "secret_keys.default_owner",
                "DEFAULT_OWNER_INVALID",
                "the default is OWNER_TENANT or OWNER_MEMBER, and one of `owners`",
            )

    def _restricted(self, policy: SecretKeyPolicy) -> Iterator[Violation]:
        at = "secret_keys.restricted"
        if policy.restricted is None:
            if AccessMode.RESTRICTED in policy.modes:
                yield Violation(at, "RESTRICTED_REQUIRED", "the mode RESTRICTED is offered, so it is required")
            return
        if AccessMode.RESTRICTED not in policy.modes:
            yield Violation(at, "RESTRICTED_NOT_OFFERED", "the mode RESTRICTED is not offered")
        if policy.restricted.scope is None:
            yield Violation(f"{at}.scope", "SCOPE_REQUIRED", "a scope is required")
        yield from self._grants(policy.restricted.grantable, f"{at}.grantable", least=1)
        if policy.restricted.scope is RestrictedScope.ACTIONS:
            for field, grant in _indexed(f"{at}.grantable", policy.restricted.grantable):
                if grant.resource != ANY:
                    yield Violation(
                        f"{field}.resource",
                        "SCOPE_NEEDS_ALL_RESOURCES",
                        "only actions are chosen, so this is `*`",
                    )

    def _publishable_keys(self) -> Iterator[Violation]:
        policy = self.spec.publishable_keys
        if policy is None:
            return
        yield from _prefix(policy.prefix, "publishable_keys.prefix")
        if self.spec.secret_keys and policy.prefix == self.spec.secret_keys.prefix:
            yield Violation("publishable_keys.prefix", "PREFIX_DUPLICATE", "secret keys have this prefix")
        yield from self._grants(policy.grants, "publishable_keys.grants", least=1)
        yield from _lifetime(policy.max_lifetime, "publishable_keys.max_lifetime")

    def _machine_users(self) -> Iterator[Violation]:
        policy = self.spec.machine_users
        if policy is None:
            return
        if policy.role not in {r.role for r in self.spec.roles}:
            yield Violation("machine_users.role", "ROLE_UNKNOWN", f"there is no role `{policy.role}`")
        if policy.lifetime is None:
            yield Violation("machine_users.lifetime", "LIFETIME_REQUIRED", "a lifetime is required")
        yield from self._administration(policy.administration, "machine_users.administration", least=0)

    def _credential(self) -> Iterator[Violation]:
        credential = self.spec.credential
        if credential is None:
            yield Violation("credential", "CREDENTIAL_REQUIRED", "the credential's header is required")
            return
        if not _HEADER.fullmatch(credential.header):
            yield Violation(
                "credential.header",
                "HEADER_INVALID",
                "a header is lower-case letters, digits and dashes, up to 63",
            )
        if credential.scheme and not _SCHEME.fullmatch(credential.scheme):
            yield Violation("credential.scheme", "SCHEME_INVALID", "a scheme is letters, digits and dashes, up to 32")

    def _limits(self) -> Iterator[Violation]:
        limits = self.spec.limits
        for name, limit in (
            ("members", limits.members),
            ("machine_users", limits.machine_users),
            ("api_keys", limits.api_keys),
        ):
            if not 0 <= limit <= MAX_LIMIT:
                yield Violation(f"limits.{name}", "LIMIT_INVALID", f"a limit is between 0 and {MAX_LIMIT}")


def validate_form(grants: Sequence[Grant], field: str) -> None:
    """Validate the form of grants for a key of any product. Raises as `validate_grants`."""
    violations = [*_size(grants, field, 1, MAX_GRANTS)]
    if len(grants) <= MAX_GRANTS:
        wrong = ((at, grant) for at, grant in _indexed(field, grants) if not g.is_well_formed(grant))
        forms = (violation for at, grant in wrong for violation in _grant_form(grant, at))
        violations += islice(forms, _MAX_COUNTED_VIOLATIONS)
    if violations:
        raise InvalidRequest.all("GRANTS_INVALID", violations)


def validate_grants(spec: ProductSpec, grants: Sequence[Grant], field: str) -> None:
    """Validate grants for a key of the product: their form, and that the spec declares what they name.

    Raises `InvalidRequest` (`GRANTS_INVALID`) with every violation.
    """
    validate_form(grants, field)
    found = _GrantValidation(spec.collections).grants(grants, field, least=1)
    violations = list(islice(found, _MAX_COUNTED_VIOLATIONS))
    if violations:
        raise InvalidRequest.all("GRANTS_INVALID", violations)


def not_grantable(policy: SecretKeyPolicy, grants: Sequence[Grant]) -> Permission | None:
    """Return the first permission of the grants that no restricted key can be given; None where there is none."""
    offered = _offered(policy)
    if policy.restricted is not None and policy.restricted.scope is RestrictedScope.ACTIONS:
        for grant in grants:
            if grant.resource != ANY:
                return Permission(grant.resource, grant.actions[0])
    return offered.lacks(GrantSet.of(grants))


def grantable(policy: SecretKeyPolicy, grants: Sequence[Grant]) -> bool:
    """Whether a restricted key can be given all of the grants."""
    return not_grantable(policy, grants) is None


def _offered(policy: SecretKeyPolicy) -> GrantSet:
    return GrantSet.of(policy.restricted.grantable) if policy.restricted is not None else NOTHING


class Loss(NamedTuple):
    """Something that a key was given and that a spec does not offer."""

    permission: Permission | None
    """None for everything that it was given."""
    text: str
    """A sentence for people."""


class KeyOffer:
    """What a spec offers to keys, compiled for comparison with many keys that were made under other specs."""

    def __init__(self, spec: ProductSpec) -> None:
        self._spec = spec
        self._collections = _Collections(spec.collections)
        self._actions_only = False
        self._grantable = NOTHING.indexed()
        if spec.secret_keys is not None and spec.secret_keys.restricted is not None:
            self._actions_only = spec.secret_keys.restricted.scope is RestrictedScope.ACTIONS
            self._grantable = _offered(spec.secret_keys).indexed()

    def losses(
        self, kind: KeyKind, owner: KeyOwner | None, mode: AccessMode | None, grants: Sequence[Grant]
    ) -> Iterator[Loss]:
        """Yield what a key was given and the spec does not offer."""
        if kind is KeyKind.PUBLISHABLE:
            if self._spec.publishable_keys is None:
                yield Loss(None, "publishable keys are not offered")
            return
        policy = self._spec.secret_keys
        if policy is None or mode not in policy.modes:
            yield Loss(None, f"the mode {mode} is not offered")
        elif owner is not None and owner not in policy.offered_owners:
            yield Loss(None, f"keys cannot belong to the owner {owner}")
        elif mode is AccessMode.RESTRICTED:
            for grant in grants:
                yield from self._losses_of(grant)

    def _losses_of(self, grant: Grant) -> Iterator[Loss]:
        pattern = tuple(grant.resource.split("/"))
        reached = self._collections.reached_by(pattern)
        covering = 0 if self._actions_only and grant.resource != ANY else self._grantable.covering(pattern)
        for action in grant.actions:
            permission = Permission(grant.resource, action)
            if not reached:
                yield Loss(permission, f"there is no `{grant.resource}`")
            elif not reached & self._collections.declaring(action):
                yield Loss(permission, f"there is no `{action}` on `{grant.resource}`")
            elif not covering & self._grantable.giving(action):
                yield Loss(permission, f"`{action}` on `{grant.resource}` cannot be given")


def may_take_from_keys(before: ProductSpec, spec: ProductSpec) -> bool:
    """Whether a new spec can take anything from any key. If not, the keys need not be searched."""
    if before.publishable_keys is not None and spec.publishable_keys is None:
        return True
    had, has = before.secret_keys, spec.secret_keys
    if had is None or has is None:
        return had != has
    return (
        not set(had.modes) <= set(has.modes)
        or not set(had.offered_owners) <= set(has.offered_owners)
        or had.restricted != has.restricted
        or (has.restricted is not None and before.collections != spec.collections)
    )


def in_words(duration: timedelta) -> str:
    """Return `90 days`, `1 hour` or `90 seconds`: in the largest unit without a remainder, in whole seconds."""
    total_s = int(duration.total_seconds())
    units = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
    unit, unit_s = next(each for each in units if total_s % each[1] == 0)
    count = total_s // unit_s
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def _grant_form(grant: Grant, at: str) -> Iterator[Violation]:
    yield from _caught(partial(g.parse_pattern, grant.resource, f"{at}.resource"))
    yield from _size(grant.actions, f"{at}.actions", 1, g.MAX_ACTIONS)
    for field, action in _indexed(f"{at}.actions", grant.actions):
        yield from _caught(partial(g.parse_action, action, field, wildcard=True))


def _caught(check: Callable[[], object]) -> Iterator[Violation]:
    try:
        check()
    except InvalidRequest as error:
        yield from error.violations


def _indexed(at: str, items: Sequence[_T]) -> Iterator[tuple[str, _T]]:
    return ((f"{at}[{index}]", item) for index, item in enumerate(items))


def _size(items: Sequence[object], at: str, least: int, most: int) -> Iterator[Violation]:
    if len(items) < least:
        yield Violation(at, "TOO_FEW", f"at least {least} is required")
    if len(items) > most:
        yield Violation(at, "TOO_MANY", f"at most {most} are allowed")


def _duplicates(items: Sequence[str], at: str) -> Iterator[Violation]:
    for item, count in Counter(items).items():
        if count > 1:
            yield Violation(at, "DUPLICATE", f"`{item}` is listed {count} times")


def _lifetime(lifetime: timedelta | None, at: str) -> Iterator[Violation]:
    if lifetime is not None and not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
        yield Violation(at, "LIFETIME_INVALID", "a lifetime is between a minute and 36500 days")


def _display_name(name: str, at: str) -> Iterator[Violation]:
    if len(name) > MAX_DISPLAY_NAME_CHARS or not name.isprintable():
        yield Violation(at, "DISPLAY_NAME_INVALID", f"a name is at most {MAX_DISPLAY_NAME_CHARS} printable characters")


def _prefix(prefix: str, at: str) -> Iterator[Violation]:
    if len(prefix) > MAX_PREFIX_CHARS or not _PREFIX.fullmatch(prefix):
        yield Violation(
            at,
            "PREFIX_INVALID",
            "a prefix is groups of lower-case letters and digits, each closed by `_` or `-`,"
            f" up to {MAX_PREFIX_CHARS} characters in all",
        )
