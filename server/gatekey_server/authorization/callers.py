"""Callers and their permissions. A service token is a key of the built-in product."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from gatekey.core import builtin, key_rules
from gatekey.core.decisions import CompiledSpec, KeySnapshot, Reason, Request, decide, holder_problem
from gatekey.core.errors import DomainError, NotFound, PermissionDenied, Unauthenticated, Unreadable
from gatekey.core.grants import ANY, GrantSet, Path
from gatekey.core.names import ApiKeyName, ProductName, TenantName
from gatekey.core.specs import AccessMode, KeyKind

from gatekey_server.freshness.snapshot_source import VersionedSnapshot


@dataclass(frozen=True, slots=True)
class Caller:
    """A service whose token was valid at `now`."""

    snapshot: KeySnapshot
    now: datetime
    revision: int
    """The snapshot is as of this revision."""

    @property
    def name(self) -> ApiKeyName:
        """The resource name of the token."""
        return ApiKeyName(TenantName(self.snapshot.product, self.snapshot.tenant), self.snapshot.key_id)

    def may(self, path: Path, action: str) -> bool:
        """Whether the token gives the action on the resource."""
        decision = decide(self.snapshot, Request(path, action), self.now)
        if decision.reason in (Reason.RESOURCE_UNKNOWN, Reason.ACTION_UNKNOWN):
            raise AssertionError(f"the built-in spec does not declare {action} on {'/'.join(path)}")
        return decision.allowed

    def may_check(self, product: str) -> bool:
        """Whether the token lets its holder check keys of a product."""
        return _may_check(self.snapshot.compiled, self.snapshot.mode, self.snapshot.grants, self.snapshot.role, product)

    def require_some_checks(self) -> None:
        """Raise `PermissionDenied` (`PERMISSION_MISSING`) unless the caller may check the keys of some product."""
        if not _may_check_some(self.snapshot.compiled, self.snapshot.mode, self.snapshot.grants, self.snapshot.role):
            raise PermissionDenied(
                "PERMISSION_MISSING",
                "the service token needs the permission `create` on the `checks` of a product",
                metadata={"resource": "products/-/checks", "action": "create"},
            )

    def only_checkable_product(self) -> str | None:
        """Return the id of the one product whose keys the caller may check; None where there may be several."""
        checks = ("products", ANY, "checks")
        some = [rule for rule in self._grants.rules if GrantSet((rule,)).allows_somewhere(checks, "create")]
        products = {pattern[1] if len(pattern) > 1 else ANY for pattern, _ in some}
        return products.pop() if len(products) == 1 and ANY not in products else None

    @property
    def checking_rights(self) -> bytes:
        """A digest of what the caller may check. It changes whenever that may have changed."""
        return _checking_rights(self.snapshot.compiled, self.snapshot.mode, self.snapshot.grants, self.snapshot.role)

    def require(self, path: Path, action: str) -> None:
        """Raise unless the caller may do the action.

        The token and the name alone decide, before anything is looked up, so that the error does not tell what
        exists. Raises `NotFound` (`PRODUCT_NOT_FOUND`) where the caller has no grant in the product at all, else
        `PermissionDenied` (`PERMISSION_MISSING`).
        """
        if self.may(path, action):
            return
        if len(path) > 1 and not self.sees(path[1]):
            raise product_not_found(path[1])
        resource = "/".join(path)
        raise PermissionDenied(
            "PERMISSION_MISSING",
            f"the service token needs the permission `{action}` on `{resource}`",
            metadata={"resource": resource, "action": action},
        )

    def sees(self, product: str) -> bool:
        """Whether the token has any grant in the product."""
        return self._grants.touches(("products", product))

    def refuse_to_give(self, mode: AccessMode | None, grants: GrantSet) -> None:
        """Raise `PermissionDenied` (`TOKEN_EXCEEDS_CALLER`) for a service token that allows more than the caller's."""
        if not self._grants.contains(self.snapshot.compiled.key_grants(mode, grants)):
            raise PermissionDenied("TOKEN_EXCEEDS_CALLER", "a service token cannot be given more than its maker has")

    def refuse_to_free(self, *, actor_required: bool) -> None:
        """Raise `PermissionDenied` (`TOKEN_EXCEEDS_CALLER`) for a service token that need not name an actor.

        Only where the caller's must.
        """
        if self.snapshot.actor_required and not actor_required:
            raise PermissionDenied(
                "TOKEN_EXCEEDS_CALLER", "a service token that must name an actor gives none that need not"
            )

    def refuse_to_outlive(self, expire_time: datetime | None) -> None:
        """Raise `PermissionDenied` (`TOKEN_EXCEEDS_CALLER`) for a service token that expires after the caller's."""
        if key_rules.outlives(expire_time, self.snapshot.expire_time):
            raise PermissionDenied("TOKEN_EXCEEDS_CALLER", "a service token cannot outlive its maker")

    @property
    def _grants(self) -> GrantSet:
        return self.snapshot.compiled.key_grants(self.snapshot.mode, self.snapshot.grants)


@lru_cache(maxsize=1024)
def _may_check(
    compiled: CompiledSpec, mode: AccessMode | None, grants: GrantSet, role: str | None, product: str
) -> bool:
    """`may` for the permission that every check needs, without `decide`: a `Caller` exists only for a valid token."""
    path = (*ProductName(product).path, "checks")
    return compiled.key_allows(KeyKind.SECRET, mode, grants, path, "create") and compiled.role_grants(role).allows(
        path, "create"
    )


@lru_cache(maxsize=1024)
def _may_check_some(compiled: CompiledSpec, mode: AccessMode | None, grants: GrantSet, role: str | None) -> bool:
    both = compiled.key_grants(mode, grants), compiled.role_grants(role)
    return all(given.allows_somewhere(("products", ANY, "checks"), "create") for given in both)


@lru_cache(maxsize=1024)
def _checking_rights(compiled: CompiledSpec, mode: AccessMode | None, grants: GrantSet, role: str | None) -> bytes:
    text = repr((mode, compiled.key_grants(mode, grants).rules, compiled.role_grants(role).rules))
    return hashlib.sha256(text.encode()).digest()[:8]


def identify(known: VersionedSnapshot | DomainError, now: datetime) -> Caller:
    """Return the caller that holds a service token, from the token's snapshot.

    Raises `Unauthenticated` (`TOKEN_INVALID`) where the token does not exist or is no longer valid, and `known` where
    it is an error.
    """
    if isinstance(known, DomainError):
        if isinstance(known, Unreadable) and known.product != builtin.PRODUCT.product:
            raise _unknown_token()
        raise known
    snapshot = known.snapshot
    if snapshot is None or snapshot.product != builtin.PRODUCT.product:
        raise _unknown_token()
    problem = holder_problem(snapshot, now)
    if problem is not None:
        state = problem.name.removeprefix("KEY_").replace("_", " ").lower()
        raise Unauthenticated("TOKEN_INVALID", f"the service token does not work: {state}")
    return Caller(snapshot, now, known.revision)


def _unknown_token() -> Unauthenticated:
    return Unauthenticated("TOKEN_INVALID", "the service token is not known")


def as_seen(
    caller: Caller, known: VersionedSnapshot | DomainError, reached: int, min_revision: int = 0
) -> VersionedSnapshot | DomainError:
    """Return the snapshot of a secret as the caller may see it.

    A key that the caller may not check looks like one that does not exist. The revision must not tell when the secret
    was looked up, which would show that it has changed or is in use. So it is computed from `reached`, which this
    process had applied before the request, and from the requested revision.
    """
    # Whether the caller may see it is decided as of the revision of its token's snapshot.
    if isinstance(known, VersionedSnapshot):
        snapshot, revision = known.snapshot, min(caller.revision, known.revision)
        if snapshot is not None and caller.may_check(snapshot.product):
            return VersionedSnapshot(snapshot, revision)
    elif isinstance(known, Unreadable) and not caller.may_check(known.product):
        revision = caller.revision
    else:
        return known
    return VersionedSnapshot(None, min(revision, max(reached, min_revision)))


def product_not_found(product: str) -> NotFound:
    """Return the error for a product that does not exist, and for one that the caller may not see."""
    return NotFound("PRODUCT_NOT_FOUND", f"there is no product `{product}`", metadata={"product": product})
