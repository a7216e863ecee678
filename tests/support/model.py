"""What Gatekey promises, said as plainly as it can be: a model in memory, to compare the real server with.

It knows the protocol and none of the server's code. Each mutation is a method of `Model` with the name of its RPC:
it takes the same request, changes the model, and answers the things that the RPC answers by field ("" for the
answer itself), or raises `Refused`. What only the server can choose, ids and secrets, is put into `made` before.
"""

import itertools
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self, TypeAlias

from gatekey.v1 import (
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    tenant_service_pb2,
    types_pb2,
)
from gatekey.v1.api_key_service_pb2 import ApiKey
from gatekey.v1.check_service_pb2 import CheckResponse
from gatekey.v1.product_spec_pb2 import MachineUserPolicy, ProductSpec, SecretKeyPolicy
from gatekey.v1.types_pb2 import DeletionCounts, Grant
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

Permissions: TypeAlias = frozenset[tuple[str, str]]
"""Pairs of a resource and an action: all that grants, roles and modes come down to."""
Answer: TypeAlias = dict[str, "Thing | DeletionCounts"]

# A few stand for all. No spec declares `posts` or `purge`: they tell "everything" from a complete list.
PATHS = ("links", "links/a", "links/b", "links/a/clicks", "notes/n", "posts")
EVERYTHING: Permissions = frozenset(itertools.product(PATHS, ("read", "write", "purge")))
A_TIME = Timestamp()
"""Stands for any time in what the model shows: whether there is one counts."""


class Refused(Exception):
    """The call is refused for this reason; `metadata` is what was counted, None where nothing was."""

    def __init__(self, reason: str, metadata: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.reason, self.metadata = reason, metadata


def refuse(reason: str, when: object, metadata: dict[str, str] | None = None) -> None:
    """Refuse if the condition holds."""
    if when:
        raise Refused(reason, metadata)


def pairs(grants: Iterable[Grant]) -> Permissions:
    """What grants give. A pattern covers what it matches and all that is below."""
    return frozenset().union(*(_pairs(grant.resource, tuple(grant.actions), "(/.*)?") for grant in grants))


def declared(spec: ProductSpec) -> Permissions:
    """What a spec lets be asked for: each collection and its items, and nothing below them."""
    return frozenset().union(*(_pairs(each.pattern, tuple(each.actions), "(/[^/]+)?") for each in spec.collections))


@cache
def _pairs(pattern: str, actions: tuple[str, ...], rest: str) -> Permissions:
    path = re.compile(pattern.replace("*", "[^/]+") + rest)
    return frozenset(pair for pair in EVERYTHING if path.fullmatch(pair[0]) and {pair[1], "*"} & {*actions})


def known(spec: ProductSpec, grants: Iterable[Grant]) -> bool:
    """Whether each action of each grant reaches something that the spec declares."""
    return all(pairs([Grant(resource=g.resource, actions=[a])]) & declared(spec) for g in grants for a in g.actions)


def role_gives(spec: ProductSpec, role: str) -> Permissions:
    """What a role gives, as the spec is now; a role that it does not have gives nothing."""
    return pairs(grant for each in spec.roles if each.role == role for grant in each.grants)


def over(expires: float | None) -> bool:
    """Whether a time has come."""
    return expires is not None and expires <= time.time()


@dataclass(eq=False)
class Thing:
    """What has a name, and an etag that changes when the thing itself does; empty: to be learned."""

    name: str
    etag: str = field(default="", init=False)

    def change(self, **values: Any) -> Self:
        """Set values; if one of them is new, the etag will be."""
        if any(getattr(self, name) != value for name, value in values.items()):
            vars(self).update(values, etag="")
        return self

    def current(self, etag: str) -> Self:
        """The thing, unless the caller has seen another version of it."""
        refuse("ETAG_MISMATCH", etag and etag != self.etag)
        return self

    def shown(self) -> Any:
        """The thing in the API."""
        raise NotImplementedError


@dataclass(eq=False)
class Product(Thing):
    """A product and its tenants."""

    spec: ProductSpec
    version: int = 1
    tenants: "dict[str, Tenant]" = field(default_factory=dict)

    def shown(self) -> Any:
        return product_service_pb2.Product(name=self.name, spec=self.spec, spec_version=self.version, etag=self.etag)


@dataclass(eq=False)
class Tenant(Thing):
    """A tenant, its people and its keys, in the order of their creation."""

    product: Product
    display_name: str
    suspended: bool = False
    deleted: bool = False
    people: "dict[str, Person]" = field(default_factory=dict)
    keys: "dict[str, Key]" = field(default_factory=dict)

    @property
    def spec(self) -> ProductSpec:
        """The product's spec, as it is now."""
        return self.product.spec

    @property
    def contents(self) -> DeletionCounts:
        """What goes with the tenant."""
        machines = sum(person.machine for person in self.people.values())
        members = len(self.people) - machines
        return DeletionCounts(tenants=1, members=members, machine_users=machines, api_keys=len(self.keys))

    def refuse_another_key(self) -> None:
        """Keys that cannot work any more do not count; disabled ones do."""
        living = sum(not key.revoked and not over(key.expires) for key in self.keys.values())
        refuse("LIMIT_REACHED", 0 < self.spec.limits.api_keys <= living)

    def shown(self) -> Any:
        # A deletion hides a suspension, and does not end it.
        state = "DELETED" if self.deleted else "SUSPENDED" if self.suspended else "ACTIVE"
        deleted, suspended = A_TIME if self.deleted else None, A_TIME if self.suspended else None
        tenant = tenant_service_pb2.Tenant(name=self.name, display_name=self.display_name, etag=self.etag)
        tenant.MergeFrom(tenant_service_pb2.Tenant(suspend_time=suspended, delete_time=deleted, purge_time=deleted))
        tenant.state = tenant_service_pb2.Tenant.State.Value(f"STATE_{state}")
        return tenant


@dataclass(eq=False)
class Person(Thing):
    """A member, or a machine user, which has no role of its own but always the spec's."""

    tenant: Tenant
    machine: bool
    own_role: str
    display_name: str

    @property
    def role(self) -> str:
        """The role, as it is now."""
        return self.tenant.spec.machine_users.role if self.machine else self.own_role

    @property
    def keys(self) -> "list[Key]":
        """The keys that go with the person."""
        return [key for key in self.tenant.keys.values() if key.owner is self]

    def remove(self) -> DeletionCounts:
        """Remove the person and all their keys."""
        gone = [self.tenant.keys.pop(key.name) for key in self.keys]
        del self.tenant.people[self.name]
        return DeletionCounts(members=int(not self.machine), machine_users=int(self.machine), api_keys=len(gone))

    def shown(self) -> Any:
        kind = machine_user_service_pb2.MachineUser if self.machine else member_service_pb2.Member
        return kind(name=self.name, role=self.role, display_name=self.display_name, etag=self.etag)


@dataclass(eq=False)
class Secret:
    """One of the at most two strings that open a key."""

    text: str
    expires: float | None = None


@dataclass(eq=False)
class Key(Thing):
    """A key of a person, or of the tenant itself; or a publishable one, that has no mode."""

    tenant: Tenant
    owner: Person | None
    display_name: str
    mode: Any
    grants: list[Grant]
    expires: float | None
    secrets: list[Secret]
    """The newest first."""
    created: float = field(default_factory=time.time)
    disabled: bool = False
    revoked: bool = False
    revoke_reason: str = ""

    @property
    def publishable(self) -> bool:
        """Whether anyone may see it."""
        return not self.mode

    @property
    def gives(self) -> Permissions:
        """What the key gives by itself. What the spec no longer offers, no key has."""
        spec = self.tenant.spec
        if self.publishable:
            return pairs(spec.publishable_keys.grants)
        if self.mode not in spec.secret_keys.modes or not _may_own(spec, self.owner):
            return frozenset()
        if self.mode == types_pb2.ACCESS_MODE_ALL:
            return EVERYTHING
        if self.mode == types_pb2.ACCESS_MODE_READ_ONLY:
            return frozenset(pair for pair in EVERYTHING if pair[1] in spec.read_actions)
        return pairs(self.grants) & pairs(spec.secret_keys.restricted.grantable)

    @property
    def state(self) -> str:
        """The first that holds."""
        states = {"REVOKED": self.revoked, "DISABLED": self.disabled, "EXPIRED": over(self.expires), "ACTIVE": True}
        return next(state for state, holds in states.items() if holds)

    def losses(self, spec: ProductSpec) -> set[tuple[str, str]]:
        """What it was given and a spec does not give; all of it where the spec does not let there be such a key."""
        compiled = spec.secret_keys
        fits = self.mode in compiled.modes and _may_own(spec, self.owner)
        if not (spec.HasField("publishable_keys") if self.publishable else fits):
            return {("everything", "")}
        grantable = pairs(compiled.restricted.grantable)
        single = [Grant(resource=grant.resource, actions=[action]) for grant in self.grants for action in grant.actions]
        return {
            (each.resource, each.actions[0])
            for each in single
            if not known(spec, [each]) or not pairs([each]) <= grantable
        }

    def is_stranded_by(self, spec: ProductSpec) -> bool:
        """Whether another spec would take from it what it has; one that is revoked is nothing any more."""
        had = self.losses(self.tenant.spec)
        return not self.revoked and ("everything", "") not in had and bool(self.losses(spec) - had)

    def shown(self) -> Any:
        return ApiKey(
            name=self.name,
            display_name=self.display_name,
            kind=types_pb2.KEY_KIND_PUBLISHABLE if self.publishable else types_pb2.KEY_KIND_SECRET,
            owner=self.owner.name if self.owner else "" if self.publishable else self.tenant.name,
            stranded="stranded" if self.losses(self.tenant.spec) else "",
            mode=self.mode,
            grants=self.grants,
            state=ApiKey.State.Value(f"STATE_{self.state}"),
            expire_time=A_TIME if self.expires else None,
            secrets=[ApiKey.Secret(expire_time=A_TIME if each.expires else None) for each in self.secrets],
            revoke_time=A_TIME if self.revoked else None,
            revoke_reason=self.revoke_reason,
            etag=self.etag,
        )


class Model:
    """Everything, by its resource name."""

    def __init__(self) -> None:
        self.products: dict[str, Product] = {}
        self.made = {"api_key": "", "secret": "", "machine_user": ""}

    @property
    def tenants(self) -> list[Tenant]:
        """All tenants."""
        return [tenant for product in self.products.values() for tenant in product.tenants.values()]

    @property
    def keys(self) -> list[Key]:
        """All keys."""
        return [key for tenant in self.tenants for key in tenant.keys.values()]

    def find(self, name: str) -> Thing | None:
        """Anything, if it is there."""
        people = [person for tenant in self.tenants for person in tenant.people.values()]
        return next((t for t in (*self.products.values(), *self.tenants, *people, *self.keys) if t.name == name), None)

    def check(self, request: Any) -> Any:
        """Decide: the first rule that holds is the reason, and if none does, the holder may."""
        asked = (request.resource, request.action)
        found = next(((key, each) for key in self.keys for each in key.secrets if each.text == request.key), None)
        if not found or request.product not in ("", found[0].tenant.spec.product):
            return CheckResponse(reason=CheckResponse.REASON_KEY_UNKNOWN)
        key, secret = found
        tenant, owner, spec = key.tenant, key.owner, key.tenant.spec
        rules = {
            "KEY_REVOKED": key.revoked,
            "KEY_DISABLED": key.disabled,
            "KEY_EXPIRED": over(key.expires) or over(secret.expires),
            "TENANT_SUSPENDED": tenant.suspended,
            "TENANT_DELETED": tenant.deleted,
            "TENANT_MISMATCH": request.HasField("tenant") and not tenant.name.endswith(f"/tenants/{request.tenant}"),
            "RESOURCE_UNKNOWN": request.resource not in {path for path, _ in declared(spec)},
            "ACTION_UNKNOWN": asked not in declared(spec),
            "KEY_PERMISSION_MISSING": asked not in key.gives,
            "OWNER_PERMISSION_MISSING": owner and asked not in role_gives(spec, owner.role),
            "ALLOWED": True,
        }
        reason = next(reason for reason, holds in rules.items() if holds)
        missing = types_pb2.Permission(resource=request.resource, action=request.action)
        return CheckResponse(
            allowed=reason == "ALLOWED",
            reason=CheckResponse.Reason.Value(f"REASON_{reason}"),
            missing_permissions=[missing] if reason.endswith("PERMISSION_MISSING") else [],
            product=spec.product,
            tenant=tenant.name.rpartition("/")[2],
            principal=owner.name if owner else "",
            role=owner.role if owner else "",
            api_key=key.name,
            kind=types_pb2.KEY_KIND_PUBLISHABLE if key.publishable else types_pb2.KEY_KIND_SECRET,
            expire_time=A_TIME if key.expires or secret.expires else None,
        )

    def apply_product(self, request: Any) -> Answer:
        """Create a product or replace its spec, which counts at once; but nobody loses by mistake what they had."""
        spec, name = request.spec, f"products/{request.spec.product}"
        others = [product.spec for product in self.products.values() if product.name != name]
        prefix_taken = spec.secret_keys.prefix in {other.secret_keys.prefix for other in others}
        if name not in self.products:
            refuse("PRODUCT_NOT_FOUND", request.etag)
            refuse("PREFIX_TAKEN", prefix_taken)
            self.products[name] = Product(name, spec)
            return {"": self.products[name]}
        product = self.products[name].current(request.etag)
        if spec != product.spec:
            stranded = _stranded(product, spec)
            refuse("SPEC_STRANDS", stranded and not request.force, stranded)
            refuse("PREFIX_TAKEN", prefix_taken)
            product.change(spec=spec, version=product.version + 1)
        return {"": product}

    def delete_product(self, request: Any) -> Answer:
        """With tenants, deleted ones included, only by force."""
        product = self._product(request.name).current(request.etag)
        contents = [tenant.contents for tenant in product.tenants.values()]
        refuse("PRODUCT_HAS_TENANTS", contents and not request.force, {"tenants": str(len(contents))})
        del self.products[request.name]
        names = DeletionCounts.DESCRIPTOR.fields_by_name
        return {"deleted": DeletionCounts(**{name: sum(getattr(each, name) for each in contents) for name in names})}

    def create_tenant(self, request: Any) -> Answer:
        """A deleted tenant keeps its id."""
        product, name = self._product(request.parent), f"{request.parent}/tenants/{request.tenant_id}"
        refuse("TENANT_EXISTS", name in product.tenants)
        product.tenants[name] = Tenant(name, product, request.tenant.display_name)
        return {"": product.tenants[name]}

    def update_tenant(self, request: Any) -> Answer:
        tenant = self._living(request.tenant.name).current(request.tenant.etag)
        return {"": tenant.change(display_name=request.tenant.display_name)}

    def suspend_tenant(self, request: Any) -> Answer:
        """Deny all keys of a tenant, which can be administered as before."""
        return {"": self._living(request.name).current(request.etag).change(suspended=True)}

    def resume_tenant(self, request: Any) -> Answer:
        return {"": self._living(request.name).current(request.etag).change(suspended=False)}

    def delete_tenant(self, request: Any) -> Answer:
        """Deny all keys of a tenant, and let nothing in it be changed."""
        tenant = self._living(request.name).current(request.etag).change(deleted=True)
        return {"tenant": tenant, "deleted": tenant.contents}

    def undelete_tenant(self, request: Any) -> Answer:
        """Take a deletion back: everything is as it was."""
        tenant = self.tenant(request.name).current(request.etag)
        refuse("TENANT_NOT_DELETED", not tenant.deleted)
        return {"": tenant.change(deleted=False)}

    def add_member(self, request: Any) -> Answer:
        tenant, name = self._living(request.parent), f"{request.parent}/members/{request.member_id}"
        refuse("ROLE_UNKNOWN", request.member.role not in {each.role for each in tenant.spec.roles})
        refuse("LIMIT_REACHED", 0 < tenant.spec.limits.members <= tenant.contents.members)
        refuse("MEMBER_EXISTS", name in tenant.people)
        tenant.people[name] = Person(name, tenant, False, request.member.role, request.member.display_name)
        return {"": tenant.people[name]}

    def update_member(self, request: Any) -> Answer:
        """A new role counts at once for all keys of the member."""
        member, fields = self._person(request.member), _fields(request.update_mask, "role", "display_name")
        role = request.member.role if "role" in fields else member.own_role
        if role != member.own_role:
            refuse("ROLE_UNKNOWN", role not in {each.role for each in member.tenant.spec.roles})
            refuse("LAST_OWNER", _is_last_owner(member) and not request.force)
        name = request.member.display_name if "display_name" in fields else member.display_name
        return {"": member.change(own_role=role, display_name=name)}

    def remove_member(self, request: Any) -> Answer:
        """All keys of the member go as well."""
        member = self._person(request)
        refuse("LAST_OWNER", _is_last_owner(member) and not request.force)
        return {"deleted": member.remove()}

    def create_machine_user(self, request: Any) -> Answer:
        """Only where machine users can live without keys."""
        tenant = self._living(request.parent)
        refuse("MACHINE_USERS_NOT_OFFERED", not tenant.spec.HasField("machine_users"))
        refuse("MACHINE_USER_NEEDS_KEY", _are_bound(tenant))
        user = self._new_machine_user(tenant, request.machine_user_id, request.machine_user.display_name)
        tenant.people[user.name] = user
        return {"": user}

    def update_machine_user(self, request: Any) -> Answer:
        return {"": self._person(request.machine_user).change(display_name=request.machine_user.display_name)}

    def delete_machine_user(self, request: Any) -> Answer:
        """All its keys go as well."""
        return {"deleted": self._person(request).remove()}

    def create_api_key(self, request: Any) -> Answer:
        """For a person, for a machine user that is created with it, or for the tenant."""
        tenant, new, user = self._living(request.parent), request.api_key, None
        publishable = new.kind == types_pb2.KEY_KIND_PUBLISHABLE
        of_tenant = new.owner == tenant.name
        refuse("OWNER_NOT_OFFERED", of_tenant and not _may_own(tenant.spec, None))
        mode = _mode(tenant.spec, publishable, new.mode, new.grants)
        expires = _expiry(tenant.spec, publishable, new, time.time())
        if request.HasField("ttl"):
            expires = time.time() + request.ttl.ToMilliseconds() / 1000
        tenant.refuse_another_key()
        if request.HasField("new_machine_user"):
            wanted = request.new_machine_user
            user = self._new_machine_user(tenant, wanted.machine_user_id, wanted.display_name or new.display_name)
        owner = None if publishable or of_tenant else user or self._person(new, new.owner)
        refuse("MACHINE_USER_HAS_KEY", owner and owner.machine and _are_bound(tenant) and owner.keys)
        _stay_within_owner(owner, mode, new.grants)
        secrets = [Secret(self.made["secret"])]
        key = Key(self.made["api_key"], tenant, owner, new.display_name, mode, [*new.grants], expires, secrets)
        tenant.keys[key.name] = key
        if user is None:
            return {"api_key": key}
        tenant.people[user.name] = user
        return {"api_key": key, "machine_user": user}

    def update_api_key(self, request: Any) -> Answer:
        """Permissions and expiry are judged as those of a new key."""
        new, fields = request.api_key, _fields(request.update_mask, "display_name", "mode", "grants", "expire_time")
        key = self._key(new)
        refuse("API_KEY_REVOKED", key.revoked)
        mode, grants, expires = key.mode, key.grants, key.expires
        if fields & {"mode", "grants"}:
            mode = new.mode if "mode" in fields else mode
            kept = grants if mode == types_pb2.ACCESS_MODE_RESTRICTED else []
            grants = [*new.grants] if "grants" in fields else kept
            mode = _mode(key.tenant.spec, key.publishable, mode, grants)
        if "expire_time" in fields:
            expires = _expiry(key.tenant.spec, key.publishable, new, key.created)
            if over(key.expires):
                key.tenant.refuse_another_key()
        _stay_within_owner(key.owner, mode, grants)
        name = new.display_name if "display_name" in fields else key.display_name
        return {"": key.change(display_name=name, mode=mode, grants=grants, expires=expires)}

    def disable_api_key(self, request: Any) -> Answer:
        return {"": self._key(request).change(disabled=True)}

    def enable_api_key(self, request: Any) -> Answer:
        key = self._key(request)
        _stay_within_owner(key.owner, key.mode, key.grants)
        return {"": key.change(disabled=False)}

    def revoke_api_key(self, request: Any) -> Answer:
        """For good, and the first reason stays."""
        key = self._key(request)
        return {"": key if key.revoked else key.change(revoked=True, revoke_reason=request.reason)}

    def rotate_api_key(self, request: Any) -> Answer:
        """The last secret lives on for the grace at most, and an older one ends at once."""
        key, grace_s = self._key(request), request.grace.ToMilliseconds() / 1000
        refuse(f"API_KEY_{key.state}", key.state in ("REVOKED", "EXPIRED"))
        _stay_within_owner(key.owner, key.mode, key.grants)
        refuse("PUBLISHABLE_KEYS_NOT_OFFERED", key.publishable and not key.tenant.spec.HasField("publishable_keys"))
        last = [Secret(key.secrets[0].text, time.time() + grace_s)] if grace_s else []
        return {"api_key": key.change(secrets=[Secret(self.made["secret"]), *last])}

    def delete_api_key(self, request: Any) -> Answer:
        """A machine user that lives as long as its keys goes with the last one."""
        key = self._key(request)
        del key.tenant.keys[key.name]
        gone = DeletionCounts()
        if key.owner and key.owner.machine and _are_bound(key.tenant) and not key.owner.keys:
            gone = key.owner.remove()
        gone.api_keys = 1
        return {"deleted": gone}

    def _product(self, name: str) -> Product:
        refuse("PRODUCT_NOT_FOUND", name not in self.products)
        return self.products[name]

    def tenant(self, name: str) -> Tenant:
        """A tenant, deleted or not."""
        product = self._product(name.partition("/tenants/")[0])
        refuse("TENANT_NOT_FOUND", name not in product.tenants)
        return product.tenants[name]

    def _living(self, name: str) -> Tenant:
        tenant = self.tenant(name)
        refuse("TENANT_DELETED", tenant.deleted)
        return tenant

    def _person(self, about: Any, owner: str = "") -> Person:
        name, etag = (owner, "") if owner else (about.name, about.etag)
        tenant, kind = self._living(name.rsplit("/", 2)[0]), "MEMBER" if "/members/" in name else "MACHINE_USER"
        refuse(f"{kind}_NOT_FOUND", name not in tenant.people)
        return tenant.people[name].current(etag)

    def _key(self, about: Any) -> Key:
        tenant = self._living(about.name.rsplit("/", 2)[0])
        refuse("API_KEY_NOT_FOUND", about.name not in tenant.keys)
        return tenant.keys[about.name].current(about.etag)

    def _new_machine_user(self, tenant: Tenant, user_id: str, display_name: str) -> Person:
        name = f"{tenant.name}/machineUsers/{user_id}" if user_id else self.made["machine_user"]
        refuse("MACHINE_USERS_NOT_OFFERED", not tenant.spec.HasField("machine_users"))
        refuse("LIMIT_REACHED", 0 < tenant.spec.limits.machine_users <= tenant.contents.machine_users)
        refuse("MACHINE_USER_EXISTS", name in tenant.people)
        return Person(name, tenant, True, "", display_name)


def _stranded(product: Product, spec: ProductSpec) -> dict[str, str]:
    """How many things in living tenants a spec would leave without what they are."""
    counts: Counter[str] = Counter()
    for tenant in product.tenants.values():
        if not tenant.deleted:
            people = tenant.people.values()
            roles = {each.role for each in spec.roles}
            gone = {each.role for each in product.spec.roles} - roles
            had_machines = product.spec.HasField("machine_users") and not spec.HasField("machine_users")
            counts.update(f"members.{each.role}" for each in people if not each.machine and each.role in gone)
            counts.update("machine_users" for each in people if each.machine and had_machines)
            counts.update("keys" for key in tenant.keys.values() if key.is_stranded_by(spec))
    return {what: str(count) for what, count in counts.items()}


def _is_last_owner(member: Person) -> bool:
    return [person for person in member.tenant.people.values() if person.own_role == "owner"] == [member]


def _are_bound(tenant: Tenant) -> bool:
    return tenant.spec.machine_users.lifetime == MachineUserPolicy.LIFETIME_BOUND_TO_KEYS


def _may_own(spec: ProductSpec, owner: Person | None) -> bool:
    """Whether keys can belong to a person, or to the tenant itself."""
    kind = "TENANT" if owner is None else "MACHINE_USER" if owner.machine else "MEMBER"
    return SecretKeyPolicy.Owner.Value(f"OWNER_{kind}") in spec.secret_keys.owners


def _mode(spec: ProductSpec, publishable: bool, mode: Any, grants: Iterable[Grant]) -> Any:
    """The mode that a key gets. It has grants of its own if and only if it is restricted."""
    if publishable:
        refuse("PUBLISHABLE_KEYS_NOT_OFFERED", not spec.HasField("publishable_keys"))
        refuse("MODE_NOT_ALLOWED", mode)
        refuse("GRANTS_NOT_ALLOWED", grants)
        return mode
    mode = mode or spec.secret_keys.default_mode
    restricted = mode == types_pb2.ACCESS_MODE_RESTRICTED
    refuse("MODE_NOT_OFFERED", mode not in spec.secret_keys.modes)
    refuse("GRANTS_NOT_ALLOWED", grants and not restricted)
    refuse("GRANTS_REQUIRED", restricted and not grants)
    refuse("GRANTS_INVALID", not known(spec, grants))
    refuse("GRANTS_NOT_OFFERED", not pairs(grants) <= pairs(spec.secret_keys.restricted.grantable))
    return mode


def _stay_within_owner(owner: Person | None, mode: Any, grants: Iterable[Grant]) -> None:
    """A restricted key is handed out only while its owner has all that it names."""
    if owner and mode == types_pb2.ACCESS_MODE_RESTRICTED:
        refuse("GRANTS_EXCEED_OWNER", not pairs(grants) <= role_gives(owner.tenant.spec, owner.role))


def _expiry(spec: ProductSpec, publishable: bool, new: Any, created: float) -> float | None:
    """When a key ends: when it is asked to, and at the latest when the spec says."""
    compiled = spec.publishable_keys if publishable else spec.secret_keys
    longest = compiled.max_lifetime.ToSeconds()
    if not new.HasField("expire_time"):
        return created + longest if longest else None
    wanted = new.expire_time.ToMilliseconds() / 1000
    refuse("EXPIRE_TIME_PAST", over(wanted))
    refuse("EXPIRE_TIME_TOO_FAR", longest and wanted > created + longest)
    return float(wanted)


def _fields(mask: FieldMask, *changeable: str) -> set[str]:
    return {*changeable} if mask.paths == ["*"] else {*mask.paths}
