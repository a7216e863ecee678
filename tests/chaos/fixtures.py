"""What the run is about: products with tenants, people and keys, and what checks of the keys are to be answered."""

import copy
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gatekey.v1 import (
    api_key_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    product_spec_pb2,
    tenant_service_pb2,
    types_pb2,
)
from google.protobuf.field_mask_pb2 import FieldMask

from tests.chaos.history import ALLOWED, Timeline
from tests.support.server import read_example

# What every check asks for: members have it, viewers have not, and read-only keys have not either.
RESOURCE, ACTION = "campaigns", "write"

_MEMBERS = 3
_KEYS = 6
_MACHINE_KEYS = 2
_REMEMBERED = 6

GONE = "KEY_UNKNOWN"


@dataclass(slots=True, eq=False)
class Key:
    """A key as it must be now."""

    name: str
    owner: str
    is_machine: bool
    timeline: Timeline = field(init=False)
    """Of its secret."""
    revoked: bool = False
    disabled: bool = False
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """A mutation to be made: what to send, and what it changes at once when it is."""

    service: str
    verb: str
    target: str
    request: Any
    change: Callable[[], None] = lambda: None
    finish: Callable[[Any], None] = lambda _: None
    """Takes up what was made, from the answer."""


@dataclass(slots=True, eq=False)
class Group:
    """A product of its own with one tenant, changed by one mutation after the other."""

    product: str
    keys: list[Key] = field(default_factory=list)
    gone: deque[Timeline] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """Secrets that were; they are never to be allowed again."""
    roles: dict[str, str] = field(default_factory=dict)
    """Of the members, by name, but not the owner's."""
    suspended: bool = False
    deleted: bool = False
    narrow: bool = False
    """The product's spec is the one in which members may only read."""
    on_new: Callable[[Timeline], None] = lambda _: None
    """Is told every new secret."""
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1 << 30)))
    _last: Key | None = None

    @property
    def tenant(self) -> str:
        """The tenant's name."""
        return f"products/{self.product}/tenants/acme"

    @property
    def owner(self) -> str:
        """The name of the member who owns the tenant, and stays."""
        return f"{self.tenant}/members/owner"

    def reasons(self) -> dict[Timeline, str]:
        """What a check of each secret is to be answered now. What is left out is gone."""
        return {key.timeline: self._reason(key) for key in self.keys}

    def timelines(self) -> list[Timeline]:
        """What is worth a check."""
        return [*(key.timeline for key in self.keys), *self.gone]

    def _reason(self, key: Key) -> str:
        is_viewer = self.roles.get(key.owner) == "viewer"
        is_member = self.roles.get(key.owner) == "member"
        for reason, holds in (
            ("KEY_REVOKED", key.revoked),
            ("KEY_DISABLED", key.disabled),
            ("TENANT_SUSPENDED", self.suspended),
            ("TENANT_DELETED", self.deleted),
            ("KEY_PERMISSION_MISSING", key.read_only),
            ("OWNER_PERMISSION_MISSING", is_viewer or (is_member and self.narrow)),
        ):
            if holds:
                return reason
        return ALLOWED

    def set_up(self) -> Iterator[Step]:
        """What there is at the beginning."""
        yield self._apply(narrow=False)
        request = tenant_service_pb2.CreateTenantRequest(parent=f"products/{self.product}", tenant_id="acme")
        yield Step("tenants", "CreateTenant", self.tenant, request)
        yield self._add_member(self.owner, "owner")
        while (step := self._fill_up()) is not None:
            yield step

    def next_step(self, rng: random.Random) -> Step:
        """A mutation that can be made now; most of them take something away, or give it back."""
        if self.deleted:
            return self._tenant_step("UndeleteTenant", deleted=False)
        if self.suspended and rng.random() < 0.7:
            return self._tenant_step("ResumeTenant", suspended=False)
        if self.narrow and rng.random() < 0.7:
            return self._apply(narrow=False)
        step = self._fill_up()
        if step is not None and (not self.keys or rng.random() < 0.7):
            return step
        return self._group_step(rng) if rng.random() < 0.25 else self._key_step(rng)

    def _group_step(self, rng: random.Random) -> Step:
        member = rng.choice(list(self.roles)) if self.roles else None
        machines = [key for key in self.keys if key.is_machine]
        steps: list[Callable[[], Step]] = [
            lambda: self._tenant_step("DeleteTenant", deleted=True),
            lambda: self._tenant_step(
                "ResumeTenant" if self.suspended else "SuspendTenant", suspended=not self.suspended
            ),
            lambda: self._apply(narrow=not self.narrow),
        ]
        if member is not None:
            role = "viewer" if self.roles[member] == "member" else "member"
            steps += [lambda: self._change_role(member, role)] * 3
            steps += [lambda: self._remove_member(member)]
        if machines:
            steps += [lambda: self._delete_machine_user(rng.choice(machines).owner)]
        return rng.choice(steps)()

    def _key_step(self, rng: random.Random) -> Step:
        # Often the one before once more, at once: that is where what is late does harm.
        if self._last not in self.keys or rng.random() < 0.5:
            self._last = rng.choice(self.keys)
        key = self._last
        assert key is not None
        pb = api_key_service_pb2
        if key.revoked:
            return self._delete_key(key)
        if key.disabled and rng.random() < 0.8:
            return self._key_change("EnableApiKey", pb.EnableApiKeyRequest(name=key.name), key, disabled=False)
        if key.read_only and rng.random() < 0.8:
            return self._change_mode(key, read_only=False)
        steps: list[Callable[[], Step]] = [
            lambda: self._key_change("RevokeApiKey", pb.RevokeApiKeyRequest(name=key.name), key, revoked=True),
            lambda: self._delete_key(key),
            lambda: self._rotate(key),
            lambda: self._change_mode(key, read_only=True),
        ]
        steps += [
            lambda: self._key_change("DisableApiKey", pb.DisableApiKeyRequest(name=key.name), key, disabled=True)
        ] * 3
        return rng.choice(steps)()

    def _fill_up(self) -> Step | None:
        """Makes what was removed anew; None where nothing is missing."""
        if len(self.roles) < _MEMBERS:
            return self._add_member(f"{self.tenant}/members/m{next(self._numbers)}", "member")
        if sum(key.is_machine for key in self.keys) < _MACHINE_KEYS:
            return self._create_key("")
        people = (self.owner, *self.roles)
        counts = {person: sum(key.owner == person for key in self.keys) for person in people}
        poorest = min(people, key=lambda person: counts[person])
        return self._create_key(poorest) if sum(counts.values()) < _KEYS else None

    def _apply(self, *, narrow: bool) -> Step:
        spec = read_example("heyoo")
        spec.product = self.product
        spec.secret_keys.prefix = f"{self.product}_"
        if narrow:
            _narrow(spec)
        request = product_service_pb2.ApplyProductRequest(spec=spec)
        name = f"products/{self.product}"
        return Step("products", "ApplyProduct", name, request, lambda: setattr(self, "narrow", narrow))

    def _tenant_step(self, verb: str, **state: bool) -> Step:
        request = getattr(tenant_service_pb2, f"{verb}Request")(name=self.tenant)

        def change() -> None:
            for name, value in state.items():
                setattr(self, name, value)

        return Step("tenants", verb, self.tenant, request, change)

    def _add_member(self, member: str, role: str) -> Step:
        request = member_service_pb2.AddMemberRequest(
            parent=self.tenant, member_id=member.rpartition("/")[2], member=member_service_pb2.Member(role=role)
        )

        def finish(_: Any) -> None:
            if member != self.owner:
                self.roles[member] = role

        return Step("members", "AddMember", member, request, finish=finish)

    def _change_role(self, member: str, role: str) -> Step:
        request = member_service_pb2.UpdateMemberRequest(
            member=member_service_pb2.Member(name=member, role=role), update_mask=FieldMask(paths=["role"])
        )
        return Step("members", "UpdateMember", member, request, lambda: self.roles.update({member: role}))

    def _remove_member(self, member: str) -> Step:
        def change() -> None:
            del self.roles[member]
            self._drop(lambda key: key.owner == member)

        return Step("members", "RemoveMember", member, member_service_pb2.RemoveMemberRequest(name=member), change)

    def _delete_machine_user(self, name: str) -> Step:
        request = machine_user_service_pb2.DeleteMachineUserRequest(name=name)
        return Step(
            "machine_users", "DeleteMachineUser", name, request, lambda: self._drop(lambda key: key.owner == name)
        )

    def _create_key(self, owner: str) -> Step:
        """Create a key for a member, or with a new machine user."""
        request = api_key_service_pb2.CreateApiKeyRequest(
            parent=self.tenant,
            api_key=api_key_service_pb2.ApiKey(display_name="Key", owner=owner, mode=types_pb2.ACCESS_MODE_ALL),
        )
        if not owner:
            request.new_machine_user.SetInParent()

        def finish(answer: api_key_service_pb2.CreateApiKeyResponse) -> None:
            # Where only a repetition was answered, nobody knows the secret.
            if answer.secret:
                self._take_up(Key(answer.api_key.name, answer.api_key.owner, not owner), answer.secret)

        return Step("keys", "CreateApiKey", owner or self.tenant, request, finish=finish)

    def _rotate(self, key: Key) -> Step:
        def finish(answer: api_key_service_pb2.RotateApiKeyResponse) -> None:
            if answer.secret:
                self._take_up(copy.copy(key), answer.secret)

        request = api_key_service_pb2.RotateApiKeyRequest(name=key.name)
        return Step("keys", "RotateApiKey", key.name, request, lambda: self._drop(lambda other: other is key), finish)

    def _delete_key(self, key: Key) -> Step:
        request = api_key_service_pb2.DeleteApiKeyRequest(name=key.name)
        return Step("keys", "DeleteApiKey", key.name, request, lambda: self._drop(lambda other: other is key))

    def _change_mode(self, key: Key, *, read_only: bool) -> Step:
        mode = types_pb2.ACCESS_MODE_READ_ONLY if read_only else types_pb2.ACCESS_MODE_ALL
        request = api_key_service_pb2.UpdateApiKeyRequest(
            api_key=api_key_service_pb2.ApiKey(name=key.name, mode=mode), update_mask=FieldMask(paths=["mode"])
        )
        return self._key_change("UpdateApiKey", request, key, read_only=read_only)

    def _key_change(self, verb: str, request: Any, key: Key, **state: bool) -> Step:
        def change() -> None:
            for name, value in state.items():
                setattr(key, name, value)

        return Step("keys", verb, key.name, request, change)

    def _take_up(self, key: Key, secret: str) -> None:
        key.timeline = Timeline(secret, key.name, self._reason(key))
        self.keys.append(key)
        self.on_new(key.timeline)

    def _drop(self, is_gone: Callable[[Key], bool]) -> None:
        self.gone.extend(key.timeline for key in self.keys if is_gone(key))
        self.keys = [key for key in self.keys if not is_gone(key)]


def _narrow(spec: product_spec_pb2.ProductSpec) -> None:
    (member,) = (role for role in spec.roles if role.role == "member")
    (campaigns,) = (grant for grant in member.grants if grant.resource == RESOURCE)
    campaigns.actions[:] = ["read"]
