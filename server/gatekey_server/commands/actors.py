"""On whose behalf a caller administers: what the actor's role allows, and what the actor can give."""

from dataclasses import dataclass
from typing import Any

from gatekey_server.commands.mutations import Mutation
from gatekey_server.domain.decisions import Policy
from gatekey_server.domain.entities import Principal, Tenant
from gatekey_server.domain.errors import InvalidRequest, PermissionDenied
from gatekey_server.domain.grants import GrantSet
from gatekey_server.domain.specs import AccessMode, KeyKind
from gatekey_server.store import principals
from gatekey_server.store.database import Connection


@dataclass(frozen=True, slots=True)
class Actor:
    """Who a mutation is made for; without a role, the caller's token alone decides."""

    policy: Policy
    role: str | None = None
    anybody: bool = True
    """Nobody was named."""

    def may_give_role(self, role: str | None) -> None:
        """Refuse to give a role that can do more than the actor. Raises `PermissionDenied` (`EXCEEDS_ACTOR`)."""
        if self.anybody:
            return
        within = self._grants.contains(self.policy.role_grants(role)) and self.policy.administration(
            self.role
        ).contains(self.policy.administration(role))
        if not within:
            raise _exceeds()

    def may_give_key(self, kind: KeyKind, mode: AccessMode | None, grants: GrantSet, owner_role: str | None) -> None:
        """Refuse to hand out a key that can do more than the actor. Raises `PermissionDenied` (`EXCEEDS_ACTOR`)."""
        if self.anybody:
            return
        if kind is KeyKind.PUBLISHABLE:
            within = self._grants.contains(self.policy.publishable_grants)
        else:
            within = self._grants.contains(self.policy.key_grants(mode, grants)) or self._grants.contains(
                self.policy.role_grants(owner_role)
            )
        if not within:
            raise _exceeds()

    @property
    def _grants(self) -> GrantSet:
        return self.policy.role_grants(self.role)


async def authorise(
    connection: Connection,
    mutation: Mutation[Any],
    policy: Policy,
    tenant: Tenant,
    collection: str,
    action: str,
    *,
    owner: object = None,
) -> Actor:
    """Find the actor of a mutation in a locked tenant, and refuse what its role does not allow.

    `owner` is whose key it is about: of its own keys the actor may also do what `ownApiKeys` gives.
    Raises `PermissionDenied` (`ACTOR_OF_OTHER_TENANT`, `ACTOR_UNKNOWN`, `ACTOR_PERMISSION_MISSING`).
    """
    if mutation.actor is None:
        return Actor(policy)
    refuse_other_tenant(mutation, tenant)
    principal = await principals.get(connection, tenant, mutation.actor)
    if principal is None:
        raise PermissionDenied("ACTOR_UNKNOWN", f"there is no `{mutation.actor}`")
    role = role_of(policy, principal)
    allowed = policy.administration(role)
    own = owner is not None and owner == mutation.actor
    if not allowed.allows((collection,), action) and not (own and allowed.allows(("ownApiKeys",), action)):
        raise PermissionDenied(
            "ACTOR_PERMISSION_MISSING",
            f"the actor's role needs the permission to `{action}` `{collection}`",
            metadata={"resource": collection, "action": action, "role": role or ""},
        )
    return Actor(policy, role, anybody=False)


def refuse_other_tenant(mutation: Mutation[Any], tenant: Tenant | None) -> None:
    """Refuse an actor of another tenant; None for what is in no tenant, where there can be no actor."""
    if mutation.actor is not None and (tenant is None or mutation.actor.parent != tenant.name):
        raise PermissionDenied("ACTOR_OF_OTHER_TENANT", "the actor is no member or machine user of this tenant")


def refuse_more_than_owner(policy: Policy, grants: GrantSet, owner_role: str | None) -> None:
    """Refuse grants for a restricted key that its owner does not have.

    Raises `InvalidRequest` (`GRANTS_EXCEED_OWNER`).
    """
    if not policy.role_grants(owner_role).contains(grants):
        raise InvalidRequest.at("api_key.grants", "GRANTS_EXCEED_OWNER", "more than the key's owner has")


def role_of(policy: Policy, principal: Principal) -> str | None:
    """The role of a principal, as it is now."""
    return policy.machine_user_role if principal.is_machine_user else principal.role


def _exceeds() -> PermissionDenied:
    return PermissionDenied("EXCEEDS_ACTOR", "nobody can give more than they have themselves")
