"""On whose behalf a caller administers: what the actor's role allows, and what the actor can give."""

from dataclasses import dataclass
from typing import Protocol

from gatekey.core import key_rules
from gatekey.core.decisions import CompiledSpec
from gatekey.core.entities import Principal, Tenant
from gatekey.core.errors import PermissionDenied
from gatekey.core.grants import EVERYTHING, GrantSet, Permission
from gatekey.core.names import PrincipalName

from gatekey_server.authorization.callers import Caller
from gatekey_server.store import principals
from gatekey_server.store.database import Connection


class Administration(Protocol):
    """A mutation, as far as it matters on whose behalf it is made."""

    @property
    def caller(self) -> Caller:
        """Who calls."""

    @property
    def actor(self) -> PrincipalName | None:
        """On whose behalf; None where nobody was named."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who a mutation is made for; where nobody was named, the caller's token alone decides."""

    compiled: CompiledSpec
    principal: Principal | None = None

    def may_give_role(self, role: str | None) -> None:
        """Refuse to give a role that can do more than the actor. Raises `PermissionDenied` (`EXCEEDS_ACTOR`)."""
        if self.principal is None:
            return
        self._refuse(self._grants.lacks(self.compiled.role_grants(role)))
        self._refuse(self.administration.lacks(self.compiled.administration(role)))

    def may_create_machine_users(self) -> None:
        """Refuse to create one that may administer more than the actor. What its keys can do is judged by each key.

        Raises `PermissionDenied` (`EXCEEDS_ACTOR`).
        """
        if self.principal is not None:
            self._refuse(self.administration.lacks(self.compiled.machine_administration))

    def may_give_key(self, given: GrantSet, ceiling: GrantSet | None) -> None:
        """Refuse to hand out a key that can do more than the actor. Raises `PermissionDenied` (`EXCEEDS_ACTOR`).

        `given` is what the key gives by itself, and `ceiling` what its owner's role does; None where no
        role cuts it.
        """
        if self.principal is None:
            return
        lacking = self._grants.lacks(given)
        if lacking is not None and (ceiling is None or not self._grants.contains(ceiling)):
            self._refuse(lacking)

    @property
    def administration(self) -> GrantSet:
        """What the actor may administer."""
        if self.principal is None:
            return EVERYTHING
        if self.principal.is_machine_user:
            return self.compiled.machine_administration
        return self.compiled.administration(self.principal.role)

    @property
    def role(self) -> str | None:
        """The actor's role, as it is now."""
        return key_rules.role_of(self.compiled, self.principal) if self.principal is not None else None

    @property
    def _grants(self) -> GrantSet:
        return self.compiled.role_grants(self.role)

    def _refuse(self, lacking: Permission | None) -> None:
        if lacking is not None:
            raise PermissionDenied(
                "EXCEEDS_ACTOR",
                f"nobody can give more than they have: the actor's role `{self.role}` has no"
                f" `{lacking.action}` on `{lacking.resource}`",
                metadata={"resource": lacking.resource, "action": lacking.action, "role": self.role or ""},
            )


async def find(connection: Connection, mutation: Administration, compiled: CompiledSpec, tenant: Tenant) -> Actor:
    """Find the actor of a mutation in a locked tenant.

    Raises `PermissionDenied` (`ACTOR_REQUIRED`, `ACTOR_OF_OTHER_TENANT`, `ACTOR_UNKNOWN`).
    """
    if mutation.actor is None:
        # A tenant without members has nobody on whose behalf its first one could be added.
        token, spec = mutation.caller.snapshot.actor_required, compiled.spec.actor_required
        if (token or spec) and await principals.has_member(connection, tenant):
            what = "this product is changed" if spec else "this service token changes something"
            raise PermissionDenied("ACTOR_REQUIRED", f"{what} on somebody's behalf: name an actor in `gatekey-actor`")
        return Actor(compiled)
    refuse_other_tenant(mutation, tenant, compiled.tenant_noun)
    principal = await principals.get(connection, tenant, mutation.actor)
    if principal is None:
        raise PermissionDenied("ACTOR_UNKNOWN", f"there is no `{mutation.actor}`")
    return Actor(compiled, principal)


async def authorise(
    connection: Connection,
    mutation: Administration,
    compiled: CompiledSpec,
    tenant: Tenant,
    collection: str,
    action: str,
    *,
    owner: object = None,
) -> Actor:
    """Find the actor of a mutation in a locked tenant, and refuse what it may not administer.

    `owner` is whose key it is about: of its own keys the actor may also do what `ownApiKeys` gives.
    Raises `PermissionDenied` (`ACTOR_PERMISSION_MISSING`), and as `find`.
    """
    actor = await find(connection, mutation, compiled, tenant)
    own = owner is not None and owner == mutation.actor
    allowed = actor.administration
    if not allowed.allows((collection,), action) and not (own and allowed.allows(("ownApiKeys",), action)):
        raise PermissionDenied(
            "ACTOR_PERMISSION_MISSING",
            f"the actor's role needs the permission to `{action}` `{collection}`",
            metadata={"resource": collection, "action": action, "role": actor.role or ""},
        )
    return actor


def refuse_other_tenant(mutation: Administration, tenant: Tenant | None, noun: str = "tenant") -> None:
    """Refuse an actor of another tenant; None for what is in no tenant, where there can be no actor."""
    if mutation.actor is not None and (tenant is None or mutation.actor.parent != tenant.name):
        raise PermissionDenied("ACTOR_OF_OTHER_TENANT", f"the actor is no member or machine user of this {noun}")
