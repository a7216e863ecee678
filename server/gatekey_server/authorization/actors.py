"""Actors, on whose behalf callers administer: what an actor's role allows, and what the actor can give."""

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
    """The part of a mutation that names its caller and its actor."""

    @property
    def caller(self) -> Caller:
        """The service that calls."""

    @property
    def actor(self) -> PrincipalName | None:
        """The principal on whose behalf it calls; None where none was named."""


@dataclass(frozen=True, slots=True)
class Actor:
    """The principal that a mutation is made for. Where none was named, the caller's token alone decides."""

    compiled: CompiledSpec
    principal: Principal | None = None

    def may_give_role(self, role: str | None) -> None:
        """Raise `PermissionDenied` (`EXCEEDS_ACTOR`) for a role that allows more than the actor's."""
        if self.principal is None:
            return
        self._refuse(self._grants.lacks(self.compiled.role_grants(role)))
        self._refuse(self.administration.lacks(self.compiled.administration(role)))

    def may_create_machine_users(self) -> None:
        """Raise `PermissionDenied` (`EXCEEDS_ACTOR`) where machine users may administer more than the actor.

        What their keys allow is compared for each key.
        """
        if self.principal is not None:
            self._refuse(self.administration.lacks(self.compiled.machine_administration))

    def may_give_key(self, given: GrantSet, ceiling: GrantSet | None) -> None:
        """Raise `PermissionDenied` (`EXCEEDS_ACTOR`) for a key that allows more than the actor's role.

        `given` is what the key gives by itself. `ceiling` is what its owner's role gives; None where no role
        limits the key.
        """
        if self.principal is None:
            return
        lacking = self._grants.lacks(given)
        if lacking is not None and (ceiling is None or not self._grants.contains(ceiling)):
            self._refuse(lacking)

    @property
    def administration(self) -> GrantSet:
        """The permissions to administer of the actor."""
        if self.principal is None:
            return EVERYTHING
        if self.principal.is_machine_user:
            return self.compiled.machine_administration
        return self.compiled.administration(self.principal.role)

    @property
    def role(self) -> str | None:
        """The actor's current role."""
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
    """Return the actor of a mutation in a locked tenant.

    Raises `PermissionDenied` (`ACTOR_REQUIRED`, `ACTOR_OF_OTHER_TENANT`, `ACTOR_UNKNOWN`).
    """
    if mutation.actor is None:
        # The first member of a tenant cannot be added on behalf of a member.
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
    """Return the actor of a mutation in a locked tenant, if its role allows the action.

    `owner` is the owner of the key in question: for its own keys, an actor also has the permissions of `ownApiKeys`.
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
    """Raise `PermissionDenied` (`ACTOR_OF_OTHER_TENANT`) for an actor of another tenant.

    `tenant` None stands for targets outside any tenant, for which there can be no actor.
    """
    if mutation.actor is not None and (tenant is None or mutation.actor.parent != tenant.name):
        raise PermissionDenied("ACTOR_OF_OTHER_TENANT", f"the actor is no member or machine user of this {noun}")
