"""Who calls, and what the caller may do: service tokens are keys of the built-in product."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from gatekey_server.domain import builtin
from gatekey_server.domain.decisions import Fact, Policy, Reason, Request, decide, holder_problem
from gatekey_server.domain.errors import NotFound, PermissionDenied, Unauthenticated
from gatekey_server.domain.grants import ANY, GrantSet, Path
from gatekey_server.domain.names import ProductName
from gatekey_server.domain.specs import AccessMode, KeyKind


@dataclass(frozen=True, slots=True)
class Caller:
    """A service whose token was found valid at `now`."""

    fact: Fact
    now: datetime

    def may(self, path: Path, action: str) -> bool:
        """Whether the token gives the action on the resource."""
        decision = decide(self.fact, Request(path, action), self.now)
        if decision.reason in (Reason.RESOURCE_UNKNOWN, Reason.ACTION_UNKNOWN):
            raise AssertionError(f"the built-in spec does not declare {action} on {'/'.join(path)}")
        return decision.allowed

    def may_check(self, product: str) -> bool:
        """Whether the token lets its holder check keys of a product."""
        return _may_check(self.fact.policy, self.fact.mode, self.fact.grants, self.fact.role, product)

    def require_some_checks(self) -> None:
        """Refuse the caller unless it may check the keys of some product. Raises `PermissionDenied`."""
        if not _may_check_some(self.fact.policy, self.fact.mode, self.fact.grants, self.fact.role):
            raise PermissionDenied(
                "PERMISSION_MISSING",
                "the service token needs the permission `create` on the `checks` of a product",
                metadata={"resource": "products/-/checks", "action": "create"},
            )

    @property
    def checking_rights(self) -> bytes:
        """Stands for what the token lets its holder check: another where that may have changed."""
        return _checking_rights(self.fact.policy, self.fact.mode, self.fact.grants, self.fact.role)

    def require(self, path: Path, action: str) -> None:
        """Refuse the caller unless it may do the action.

        Decided by the token and the name alone, before anything is looked up, so that the answer
        tells nothing of what exists. Raises `NotFound` (`PRODUCT_NOT_FOUND`) where the caller has
        no grant in the product at all, else `PermissionDenied` (`PERMISSION_MISSING`).
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

    def has_all_of(self, mode: AccessMode | None, grants: GrantSet) -> bool:
        """Whether a service token of this mode and with these grants would have no more than the caller's."""
        return self._grants.contains(self.fact.policy.key_grants(mode, grants))

    @property
    def _grants(self) -> GrantSet:
        return self.fact.policy.key_grants(self.fact.mode, self.fact.grants)


@lru_cache(maxsize=1024)
def _may_check(policy: Policy, mode: AccessMode | None, grants: GrantSet, role: str | None, product: str) -> bool:
    """`may` for the one question that every check asks; `Caller` is made only for tokens that work."""
    path = (*ProductName(product).path, "checks")
    return policy.key_allows(KeyKind.SECRET, mode, grants, path, "create") and policy.role_grants(role).allows(
        path, "create"
    )


@lru_cache(maxsize=1024)
def _may_check_some(policy: Policy, mode: AccessMode | None, grants: GrantSet, role: str | None) -> bool:
    both = policy.key_grants(mode, grants), policy.role_grants(role)
    return all(given.allows_somewhere(("products", ANY, "checks"), "create") for given in both)


@lru_cache(maxsize=1024)
def _checking_rights(policy: Policy, mode: AccessMode | None, grants: GrantSet, role: str | None) -> bytes:
    text = repr((mode, policy.key_grants(mode, grants).rules, policy.role_grants(role).rules))
    return hashlib.sha256(text.encode()).digest()[:8]


def identify(fact: Fact | None, now: datetime) -> Caller:
    """The caller that holds a service token, by the fact behind it.

    Raises `Unauthenticated` (`TOKEN_INVALID`) where the token is none, or works no longer.
    """
    if fact is None or fact.product != builtin.PRODUCT.product:
        raise Unauthenticated("TOKEN_INVALID", "the service token is not known")
    problem = holder_problem(fact, now)
    if problem is not None:
        state = problem.name.removeprefix("KEY_").replace("_", " ").lower()
        raise Unauthenticated("TOKEN_INVALID", f"the service token does not work: {state}")
    return Caller(fact, now)


def product_not_found(product: str) -> NotFound:
    """The answer for a product that is not there, and for one that the caller may not see."""
    return NotFound("PRODUCT_NOT_FOUND", f"there is no product `{product}`", metadata={"product": product})
