"""Product specs: the rules of one product as data, and everything that can be wrong with them."""

import enum
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

from gatekey_server.domain import grants as g
from gatekey_server.domain.errors import InvalidRequest, Violation
from gatekey_server.domain.grants import ANY, Grant, GrantSet, Path
from gatekey_server.domain.names import MAX_DISPLAY_NAME_CHARS, is_product_id
from gatekey_server.domain.secrets import MAX_PREFIX_CHARS

_T = TypeVar("_T")

MAX_COLLECTIONS = 256
MAX_ROLES = 64
MAX_GRANTS = 256
MIN_LIFETIME = timedelta(minutes=1)
MAX_LIFETIME = timedelta(days=36500)


class KeyKind(enum.StrEnum):
    """What kind of credential a key is."""

    SECRET = "SECRET"  # noqa: S105 - the name of a kind
    PUBLISHABLE = "PUBLISHABLE"


class AccessMode(enum.StrEnum):
    """How much of its owner's permissions a secret key takes."""

    ALL = "ALL"
    READ_ONLY = "READ_ONLY"
    RESTRICTED = "RESTRICTED"


class RestrictedScope(enum.StrEnum):
    """What a choice of grants is about."""

    ACTIONS = "ACTIONS"
    RESOURCES = "RESOURCES"


class Lifetime(enum.StrEnum):
    """How long a machine user lives."""

    BOUND_TO_KEYS = "BOUND_TO_KEYS"
    INDEPENDENT = "INDEPENDENT"


@dataclass(frozen=True, slots=True)
class Collection:
    """A set of resources of one type, such as `domains/*/links`, and what can be done with them."""

    pattern: str
    actions: tuple[str, ...]
    display_name: str = ""


@dataclass(frozen=True, slots=True)
class Role:
    """What a principal may do."""

    role: str
    grants: tuple[Grant, ...] = ()
    display_name: str = ""
    owner: bool = False
    administration: tuple[Grant, ...] = ()
    """What a person of the role may administer as an actor; resources are those of `ADMINISTRATION`."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """How much a tenant can hold; 0 for no limit."""

    members: int = 0
    machine_users: int = 0
    api_keys: int = 0


@dataclass(frozen=True, slots=True)
class RestrictedPolicy:
    """How far the grants of a restricted key may be chosen."""

    scope: RestrictedScope | None
    grantable: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class SecretKeyPolicy:
    """How secret keys look and what they may be given. `None` stands for what was left out."""

    prefix: str
    modes: tuple[AccessMode, ...]
    default_mode: AccessMode | None
    restricted: RestrictedPolicy | None = None
    max_lifetime: timedelta | None = None


@dataclass(frozen=True, slots=True)
class PublishableKeyPolicy:
    """How publishable keys look and what each of them can do."""

    prefix: str
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class MachineUserPolicy:
    """What machine users are."""

    role: str
    lifetime: Lifetime | None


@dataclass(frozen=True, slots=True)
class CredentialHeader:
    """Where the holder of a key presents it: `authorization` with a scheme, or a header of its own."""

    header: str
    scheme: str = ""


@dataclass(frozen=True, slots=True)
class ProductSpec:
    """The rules of one product. May be wrong in any way until `validate` has passed it."""

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
"""What can be administered inside a tenant. `ownApiKeys` are those of the actor itself."""

MAX_LIMIT = 1_000_000

_COLLECTION = re.compile(r"[a-z][A-Za-z0-9_-]{0,62}(?:/\*/[a-z][A-Za-z0-9_-]{0,62}){0,7}")
_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_PREFIX = re.compile(r"(?:[a-z0-9]+[_-])+")
_HEADER = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")
_NOUN = re.compile(r"[a-z](?:[a-z -]{0,30}[a-z])?")


def validate(spec: ProductSpec, found: Sequence[Violation] = ()) -> None:
    """Check a spec as a whole; `found` was found while it was read, and says all about its fields.

    Raises `InvalidRequest` (`SPEC_INVALID`) with every violation; paths are those of the protobuf
    message, as in `roles[1].grants[0].resource`.
    """
    told = {violation.field for violation in found}
    violations = [*found, *(v for v in _Validation(spec).violations() if v.field not in told)]
    if violations:
        raise InvalidRequest.all("SPEC_INVALID", violations)


class _GrantValidation:
    """What can be wrong with grants over collections."""

    def __init__(self, collections: Sequence[Collection]) -> None:
        self._reached = [(tuple(c.pattern.split("/")), c.actions) for c in collections]

    def grants(self, grants: Sequence[Grant], at: str, *, least: int) -> Iterator[Violation]:
        yield from _size(grants, at, least, MAX_GRANTS)
        for field, grant in _indexed(at, grants):
            yield from self.grant(grant, field)

    def grant(self, grant: Grant, at: str) -> Iterator[Violation]:
        wrong_form = list(_grant_form(grant, at))
        yield from wrong_form
        if wrong_form:
            return
        reached = self._actions_below(tuple(grant.resource.split("/")))
        if reached is None:
            yield Violation(f"{at}.resource", "RESOURCE_UNKNOWN", f"`{grant.resource}` covers no declared collection")
            return
        for field, action in _indexed(f"{at}.actions", grant.actions):
            if action != ANY and action not in reached:
                yield Violation(
                    field, "ACTION_UNKNOWN", f"no collection that `{grant.resource}` covers declares `{action}`"
                )

    def _actions_below(self, pattern: Path) -> set[str] | None:
        reached = [actions for path, actions in self._reached if _reaches(pattern, path)]
        return {action for actions in reached for action in actions} if reached else None


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
            yield Violation(
                "product",
                "PRODUCT_ID_INVALID",
                "a product id is a lower-case letter, then lower-case letters, digits and single dashes, up to 63",
            )
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
        if policy.default_mode is None or policy.default_mode not in policy.modes:
            yield Violation("secret_keys.default_mode", "DEFAULT_MODE_INVALID", "the default is one of `modes`")
        if AccessMode.READ_ONLY in policy.modes and not self.spec.read_actions:
            yield Violation(
                "read_actions", "READ_ACTIONS_REQUIRED", "the mode READ_ONLY is offered, so they are required"
            )
        if policy.max_lifetime is not None and not MIN_LIFETIME <= policy.max_lifetime <= MAX_LIFETIME:
            yield Violation(
                "secret_keys.max_lifetime",
                "LIFETIME_INVALID",
                "a lifetime is between a minute and 36500 days",
            )
        yield from self._restricted(policy)

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

    def _machine_users(self) -> Iterator[Violation]:
        policy = self.spec.machine_users
        if policy is None:
            return
        if policy.role not in {r.role for r in self.spec.roles}:
            yield Violation("machine_users.role", "ROLE_UNKNOWN", f"there is no role `{policy.role}`")
        if policy.lifetime is None:
            yield Violation("machine_users.lifetime", "LIFETIME_REQUIRED", "a lifetime is required")

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


def _reaches(pattern: Path, collection: Path) -> bool:
    """Whether a pattern covers something in a collection: its items have one segment more than it."""
    items = (*collection, ANY)
    return len(pattern) <= len(items) and all(
        ANY in (want, have) or want == have for want, have in zip(pattern, items, strict=False)
    )


def validate_grants(spec: ProductSpec, grants: Sequence[Grant], field: str) -> None:
    """Check grants for a key of the product: their form, and that they name what the spec declares.

    Raises `InvalidRequest` (`GRANTS_INVALID`) with every violation.
    """
    violations = list(_GrantValidation(spec.collections).grants(grants, field, least=1))
    if violations:
        raise InvalidRequest.all("GRANTS_INVALID", violations)


def grantable(policy: SecretKeyPolicy, grants: Sequence[Grant]) -> bool:
    """Whether the grants lie inside what the policy lets a restricted key be given."""
    if policy.restricted is None:
        return False
    if policy.restricted.scope is RestrictedScope.ACTIONS and any(grant.resource != ANY for grant in grants):
        return False
    return GrantSet.of(policy.restricted.grantable).contains(GrantSet.of(grants))


def strands_key(spec: ProductSpec, kind: KeyKind, mode: AccessMode | None, grants: Sequence[Grant]) -> bool:
    """Whether a key made under another spec would have lost what it was given: its kind, mode or grants."""
    if kind is KeyKind.PUBLISHABLE:
        return spec.publishable_keys is None
    if spec.secret_keys is None or mode not in spec.secret_keys.modes:
        return True
    if mode is not AccessMode.RESTRICTED:
        return False
    validation = _GrantValidation(spec.collections)
    unknown = any(violation for grant in grants for violation in validation.grant(grant, ""))
    return unknown or not grantable(spec.secret_keys, grants)


def in_words(duration: timedelta) -> str:
    """`90 days`, `1 hour` or `90 seconds`: in the largest unit that leaves no rest; parts of a second are left out."""
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
