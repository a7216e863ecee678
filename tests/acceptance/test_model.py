"""The server against a model: random sequences of all mutations and of checks, compared at every step."""

import asyncio
import copy
import itertools
import os
import re
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import grpc
import pytest
from gatekey.v1 import check_service_pb2, product_spec_pb2, types_pb2
from gatekey.v1.api_key_service_pb2 import ApiKey
from gatekey_server.rpc.server import SERVICES
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, Phase, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support.model import EVERYTHING, Model, Refused, Thing
from tests.support.server import Client, problem_of

STEPS = 2000
STEPS_OF_A_RUN, RUNS_OF_A_SEED = 100, 5
DAY_S = 86400
TIMEOUT_S = 30
METHODS = {method.name: method for service in SERVICES.values() for method in service.methods}
MUTATIONS = {rpc for rpc, method in METHODS.items() if "validate_only" in method.input_type.fields_by_name}
LISTS = {
    "ListTenants": "tenants",
    "ListPeople": "people",
    "ListMachineUsers": "machine_users",
    "ListApiKeys": "api_keys",
}
VERDICTS = {*check_service_pb2.CheckResponse.Reason.keys()} - {"REASON_UNSPECIFIED"}
ALL, READ_ONLY, RESTRICTED = types_pb2.AccessMode.values()[1:]

SPEC = {
    "collections": [
        {"pattern": "links", "actions": ["read", "write"]},
        {"pattern": "links/*/clicks", "actions": ["read"]},
        {"pattern": "notes", "actions": ["read", "write"]},
    ],
    "readActions": ["read"],
    "roles": [
        {"role": "owner", "owner": True, "grants": [{"resource": "*", "actions": ["*"]}]},
        {"role": "member", "grants": [{"resource": "links", "actions": [action]} for action in ("read", "write")]},
        {"role": "guest", "grants": [{"resource": "links/a", "actions": ["read"]}]},
    ],
    "secretKeys": {
        "modes": ["ACCESS_MODE_ALL", "ACCESS_MODE_READ_ONLY", "ACCESS_MODE_RESTRICTED"],
        "defaultMode": "ACCESS_MODE_ALL",
        "owners": ["OWNER_MEMBER", "OWNER_MACHINE_USER", "OWNER_TENANT"],
        "restricted": {
            "scope": "SCOPE_RESOURCES",
            "grantable": [
                {"resource": "links", "actions": ["read", "write"]},
                {"resource": "notes", "actions": ["read"]},
            ],
        },
    },
    "publishableKeys": {"grants": [{"resource": "links/*", "actions": ["read"]}]},
    "machineUsers": {"role": "member"},
    "credential": {"header": "authorization", "scheme": "Bearer"},
}
# In one product machine users live as long as their keys, in the other by themselves.
LIFETIMES = {"bound": "LIFETIME_BOUND_TO_KEYS", "free": "LIFETIME_INDEPENDENT"}
LIMITS = {
    "low limits": product_spec_pb2.TenantLimits(members=2, machine_users=1, api_keys=3),
    "other limits": product_spec_pb2.TenantLimits(machine_users=2, api_keys=8),
}


def without_restricted(spec: product_spec_pb2.ProductSpec) -> None:
    spec.secret_keys.modes.remove(RESTRICTED)
    spec.secret_keys.ClearField("restricted")


CHANGES: Mapping[str, Callable[[product_spec_pb2.ProductSpec], object]] = {
    "members only read": lambda spec: spec.roles[1].grants.pop(),
    "no guests": lambda spec: spec.roles.pop(),
    "no mode READ_ONLY": lambda spec: spec.secret_keys.modes.remove(READ_ONLY),
    "less to grant": lambda spec: spec.secret_keys.restricted.grantable[0].actions.pop(),
    "no notes": lambda spec: (spec.collections.pop(), spec.secret_keys.restricted.grantable.pop()),
    "no mode RESTRICTED": without_restricted,
    "readers write": lambda spec: spec.read_actions.append("write"),
    "publishable keys write": lambda spec: spec.publishable_keys.grants[0].actions.append("write"),
    "no publishable keys": lambda spec: spec.ClearField("publishable_keys"),
    "machine users own": lambda spec: setattr(spec.machine_users, "role", "owner"),
    "no machine users": lambda spec: spec.ClearField("machine_users"),
    "no keys of tenants": lambda spec: spec.secret_keys.owners.pop(),
    "low limits": lambda spec: spec.limits.CopyFrom(LIMITS["low limits"]),
    "other limits": lambda spec: spec.limits.CopyFrom(LIMITS["other limits"]),
    "short lives": lambda spec: spec.secret_keys.max_lifetime.FromSeconds(DAY_S),
    "short public lives": lambda spec: spec.publishable_keys.max_lifetime.FromSeconds(DAY_S),
    "the same prefix": lambda spec: setattr(spec.secret_keys, "prefix", f"{spec.product.partition('-')[0]}_"),
}


def make_spec(run: str, product: str, changes: Iterable[str]) -> product_spec_pb2.ProductSpec:
    """A product's spec with some changes, made in the order in which each finds what it changes."""
    spec = json_format.ParseDict(SPEC, product_spec_pb2.ProductSpec(product=f"{run}-{product}"))
    spec.secret_keys.prefix, spec.publishable_keys.prefix = f"{run}_{product}_", f"{run}_{product}_pub_"
    spec.machine_users.lifetime = product_spec_pb2.MachineUserPolicy.Lifetime.Value(LIFETIMES[product])
    for change in sorted(changes, key=[*CHANGES].index):
        CHANGES[change](spec)
    return spec


def often(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Mostly the usual."""
    return st.sampled_from([usual] * 2 * len(others) + [*others])


CHOICES = st.just(()) | st.sets(st.sampled_from([*CHANGES]), min_size=1, max_size=2)
PRODUCTS = st.sampled_from(["bound", "free"])
TENANTS = st.sampled_from(["bound/t1", "free/t1"] * 4 + ["bound/t2", "free/t2"])
MEMBERS = st.sampled_from(["members/m1", "members/m2", "members/m3"])
USERS = st.sampled_from(["machineUsers/u1", "machineUsers/u2"])
OWNERS = st.sampled_from(["members/m1", "members/m2"] * 3 + ["members/m3", "machineUsers/u1", "machineUsers/u2"])
ROLES = st.sampled_from(["owner", "member", "guest", "member", "guest", "nobody"])
TEXTS = st.sampled_from(["One", "Two"])
PICKS = st.integers(0, 23)
MODES = st.sampled_from([0, ALL, READ_ONLY, RESTRICTED, RESTRICTED])
GRANTS = st.sampled_from(
    [
        [types_pb2.Grant(resource=resource, actions=actions) for resource, actions in grants.items()]
        for grants in (
            {},
            {"links/a": ["read"]},
            {"links": ["read", "write"]},
            {"links/*/clicks": ["read"], "links/b": ["write"]},
            {"notes": ["read"]},
            {"links": ["*"]},
            {"posts": ["read"]},
            {"links": ["purge"]},
        )
    ]
)
FIELDS = st.sets(st.sampled_from(["display_name", "mode", "grants", "expire_time"]), min_size=1) | st.just({"*"})
# What a spec may declare, and one of each that none does.
QUESTIONS = sorted(pair for pair in EVERYTHING if "posts" not in pair and "purge" not in pair)
QUESTIONS += [("posts", "read"), ("links", "purge")]
EXPIRIES = often(None, DAY_S // 2, 365 * DAY_S, -DAY_S)
HOWS = often("plainly", "validating only", "by etag", "by a stale etag", "twice")
FORCED = often(False, True)


def step(weight: int, **choices: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Marks a method as something that can be done, so often, with these arguments."""

    def mark(method: Any) -> Any:
        method.step = (weight, st.fixed_dictionaries(choices))
        return method

    return mark


def a_step(machine: type) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """One of a machine's steps. It has one rule for all: Hypothesis leaves half of the rules out of each run."""
    steps = {name: method.step for name, method in vars(machine).items() if hasattr(method, "step")}
    names = [name for name, (weight, _) in steps.items() for _ in range(weight)]
    return st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), steps[name][1]))


Fields: TypeAlias = dict[str, Any]
Look: TypeAlias = tuple[str, Any, Callable[[Any], None]]
"""A reading call, its request, and what is to be said of its answer."""


class Server:
    """The way to the server, from another thread than the client's, and what was seen there."""

    def __init__(self, client: Client) -> None:
        self.steps = 0
        self.first_problem = ""
        self.seen: Counter[tuple[str, str]] = Counter()
        self.products = new_id()
        """With what the ids of the products begin. The next run has the same ones, all new."""
        self._loop = asyncio.get_running_loop()
        self._calls = {
            method.name: client.channel.unary_unary(
                f"/{service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            for service in SERVICES.values()
            for method in service.methods
        }

    def call(self, rpc: str, request: Any) -> Any:
        """What a call is answered: a message, or `Refused`."""
        return self.call_all([(rpc, request)])[0]

    def call_all(self, calls: Iterable[tuple[str, Any]]) -> list[Any]:
        """What calls are answered that are made at the same time."""

        async def gather() -> list[Any]:
            return await asyncio.gather(*(self._call(rpc, request) for rpc, request in calls))

        return asyncio.run_coroutine_threadsafe(gather(), self._loop).result(2 * TIMEOUT_S)

    async def _call(self, rpc: str, request: Any) -> Any:
        try:
            return await self._calls[rpc](request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            problem = problem_of(error)
            assert problem.reason, problem
            return Refused(problem.reason, problem.metadata)


class Gatekey(RuleBasedStateMachine):
    """Does the same to the server and to the model, in products of its own."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.id = server.products
        self.model = Model()
        self.secrets: dict[str, str] = {}
        """All that there ever were, with the names of their tenants."""
        self.etags: set[str] = set()
        self.questions, self.turns = itertools.cycle(QUESTIONS), itertools.count()
        self.prepared = self.broken = False

    def tenant(self, tenant: str) -> str:
        """A tenant's name."""
        return f"products/{self.id}-{tenant.replace('/', '/tenants/')}"

    def key(self, pick: int) -> str:
        """The name of a key, or of none."""
        names = [*(key.name for key in self.model.keys), f"{self.tenant('free/t1')}/apiKeys/key_{'0' * 26}"]
        return names[pick % len(names)]

    @initialize(number=st.integers(0, 2**32))
    def prepare(self, number: int) -> None:
        # Hypothesis begins with the simplest run of all, which does the same step again and again.
        assume(number)
        for product in LIFETIMES:
            self.apply_product(product, [], False, "plainly")
            self.create_tenant(f"{product}/t1", "One", "plainly")
            self.add_member(f"{product}/t1", "members/m1", "owner", "One", "plainly")
            self.add_member(f"{product}/t1", "members/m2", "member", "Two", "plainly")
            self.create_api_key(f"{product}/t1", "members/m2", 0, (), None, "plainly")
            self.create_machine_key(f"{product}/t1", "machineUsers/u1", 0, (), "plainly")
        self.prepared = True

    @rule(chosen=st.deferred(lambda: a_step(Gatekey)))
    def take(self, chosen: tuple[str, dict[str, Any]]) -> None:
        self.server.steps += 1
        try:
            getattr(self, chosen[0])(**chosen[1])
        except AssertionError as error:
            # Hypothesis does it all again, and does not tell what it finds only once.
            self.server.first_problem = self.server.first_problem or f"{chosen}: {error}"
            raise

    @step(1, tenant=TENANTS, text=TEXTS, how=HOWS)
    def update_tenant(self, tenant: str, text: str, how: str) -> None:
        new = {"name": self.tenant(tenant), "display_name": text}
        self.do("UpdateTenant", how, tenant=new, update_mask={"paths": ["display_name"]})

    @step(2, pick=PICKS, about=st.sampled_from([None, "t1", "t2"]), within=often(None, *LIFETIMES))
    def check(self, pick: int, about: str | None, within: str | None) -> None:
        """All that one secret may do, and whose it is."""
        secret = [*self.secrets, f"{self.id}_nonsense"][pick % (len(self.secrets) + 1)]
        named = {"tenant": about} if about else {}
        named |= {"product": f"{self.id}-{within}"} if within else {}
        whose = self.identified(secret)
        self.broken = True
        self.compare_all([whose, *(self.asked(secret, pair, **named) for pair in QUESTIONS)])
        self.broken = False

    @step(3, product=PRODUCTS, changes=CHOICES, force=st.booleans(), how=HOWS)
    def apply_product(self, product: str, changes: Iterable[str], force: bool, how: str) -> None:
        self.do("ApplyProduct", how, spec=make_spec(self.id, product, changes), force=force)

    @step(1, product=PRODUCTS, force=often(False, False, True), how=HOWS)
    def delete_product(self, product: str, force: bool, how: str) -> None:
        self.do("DeleteProduct", how, name=f"products/{self.id}-{product}", force=force)

    @step(2, tenant=TENANTS, text=TEXTS, how=HOWS)
    def create_tenant(self, tenant: str, text: str, how: str) -> None:
        parent, _, tenant_id = self.tenant(tenant).partition("/tenants/")
        self.do("CreateTenant", how, parent=parent, tenant_id=tenant_id, tenant={"display_name": text})

    @step(3, tenant=TENANTS, verb=st.sampled_from(["Suspend", "Resume", "Delete", "Undelete", "Undelete"]), how=HOWS)
    def switch_tenant(self, tenant: str, verb: str, how: str) -> None:
        self.do(f"{verb}Tenant", how, name=self.tenant(tenant))

    @step(3, tenant=TENANTS, member=MEMBERS, role=ROLES, text=TEXTS, how=HOWS)
    def add_member(self, tenant: str, member: str, role: str, text: str, how: str) -> None:
        new = {"role": role, "display_name": text}
        self.do("AddMember", how, parent=self.tenant(tenant), member_id=member.partition("/")[2], member=new)

    @step(3, tenant=TENANTS, member=MEMBERS, role=ROLES, text=TEXTS, field=often("role", "*"), force=FORCED, how=HOWS)
    def update_member(self, tenant: str, member: str, role: str, text: str, field: str, force: bool, how: str) -> None:
        new = {"name": f"{self.tenant(tenant)}/{member}", "role": role, "display_name": text}
        self.do("UpdateMember", how, member=new, update_mask={"paths": [field]}, force=force)

    @step(2, tenant=TENANTS, member=MEMBERS, force=FORCED, how=HOWS)
    def remove_member(self, tenant: str, member: str, force: bool, how: str) -> None:
        self.do("RemoveMember", how, name=f"{self.tenant(tenant)}/{member}", force=force)

    @step(2, tenant=TENANTS, user=USERS, text=TEXTS, how=HOWS)
    def create_machine_user(self, tenant: str, user: str, text: str, how: str) -> None:
        new = {"machine_user_id": user.partition("/")[2], "machine_user": {"display_name": text}}
        self.do("CreateMachineUser", how, parent=self.tenant(tenant), **new)

    @step(1, tenant=TENANTS, user=USERS, text=TEXTS, how=HOWS)
    def update_machine_user(self, tenant: str, user: str, text: str, how: str) -> None:
        new = {"name": f"{self.tenant(tenant)}/{user}", "display_name": text}
        self.do("UpdateMachineUser", how, machine_user=new, update_mask={"paths": ["*"]})

    @step(2, tenant=TENANTS, user=USERS, how=HOWS)
    def delete_machine_user(self, tenant: str, user: str, how: str) -> None:
        self.do("DeleteMachineUser", how, name=f"{self.tenant(tenant)}/{user}")

    @step(5, tenant=TENANTS, owner=OWNERS, mode=MODES, grants=GRANTS, expiry=EXPIRIES, how=HOWS)
    def create_api_key(self, tenant: str, owner: str, mode: int, grants: Any, expiry: int | None, how: str) -> None:
        new: Fields = {"owner": f"{self.tenant(tenant)}/{owner}", "expire_time": in_seconds(expiry)}
        new |= {"display_name": "Key", "mode": mode, "grants": fitting(mode, grants)}
        self.do("CreateApiKey", how, parent=self.tenant(tenant), api_key=new)

    @step(2, tenant=TENANTS, owner=MEMBERS)
    def create_brief_key(self, tenant: str, owner: str) -> None:
        new = {"display_name": "Key", "owner": f"{self.tenant(tenant)}/{owner}"}
        self.do("CreateApiKey", "plainly", parent=self.tenant(tenant), api_key=new, ttl={"nanos": 1_000_000})

    @step(3, tenant=TENANTS, user=USERS | st.just(""), mode=MODES, grants=GRANTS, how=HOWS)
    def create_machine_key(self, tenant: str, user: str, mode: int, grants: Any, how: str) -> None:
        new = {"display_name": "Key", "mode": mode, "grants": fitting(mode, grants)}
        owner = {"machine_user_id": user.partition("/")[2]}
        self.do("CreateApiKey", how, parent=self.tenant(tenant), api_key=new, new_machine_user=owner)

    @step(2, tenant=TENANTS, mode=often(0, ALL), how=HOWS)
    def create_publishable_key(self, tenant: str, mode: int, how: str) -> None:
        new = {"display_name": "Key", "kind": types_pb2.KEY_KIND_PUBLISHABLE, "mode": mode}
        self.do("CreateApiKey", how, parent=self.tenant(tenant), api_key=new)

    @step(3, tenant=TENANTS, mode=MODES, grants=GRANTS, how=HOWS)
    def create_key_of_tenant(self, tenant: str, mode: int, grants: Any, how: str) -> None:
        new: Fields = {"display_name": "Key", "mode": mode, "grants": fitting(mode, grants)}
        new["owner"] = self.tenant(tenant)
        self.do("CreateApiKey", how, parent=self.tenant(tenant), api_key=new)

    @step(4, pick=PICKS, fields=FIELDS, text=TEXTS, mode=MODES, grants=GRANTS, expiry=EXPIRIES, how=HOWS)
    def update_api_key(
        self, pick: int, fields: set[str], text: str, mode: int, grants: Any, expiry: int | None, how: str
    ) -> None:
        new: Fields = {"name": self.key(pick), "expire_time": in_seconds(expiry)}
        new |= {"display_name": text, "mode": mode, "grants": fitting(mode, grants)}
        self.do("UpdateApiKey", how, api_key=new, update_mask={"paths": sorted(fields)})

    @step(4, pick=PICKS, verb=st.sampled_from(["Disable", "Enable", "Revoke"]), how=HOWS)
    def switch_api_key(self, pick: int, verb: str, how: str) -> None:
        reason = {"reason": how} if verb == "Revoke" else {}
        self.do(f"{verb}ApiKey", how, name=self.key(pick), **reason)

    @step(3, pick=PICKS, grace=st.sampled_from([{}, {"nanos": 1_000_000}, {"seconds": DAY_S}]), how=HOWS)
    def rotate_api_key(self, pick: int, grace: dict[str, int], how: str) -> None:
        self.do("RotateApiKey", how, name=self.key(pick), grace=grace)

    @step(3, pick=PICKS, how=HOWS)
    def delete_api_key(self, pick: int, how: str) -> None:
        self.do("DeleteApiKey", how, name=self.key(pick))

    def teardown(self) -> None:
        # What is in doubt is not compared once more, which would hide where it began.
        intact = not self.broken
        for product in LIFETIMES:
            name = f"products/{self.id}-{product}"
            if intact:
                self.look(name, "closely")
                self.delete_product(product, True, "plainly")
            else:
                self.server.call("DeleteProduct", new_request("DeleteProduct", {"name": name, "force": True}))
                self.server.products = new_id()

    def do(self, rpc: str, how: str, **fields: Any) -> None:
        """Do a mutation on both sides; compare what is answered, and what is there afterwards."""
        self.broken = True
        request = new_request(rpc, fields)
        named = getattr(request, snake(rpc.removeprefix("Update"))) if rpc.startswith("Update") else request
        name = f"products/{request.spec.product}" if rpc == "ApplyProduct" else getattr(named, "name", "")
        if how in ("by etag", "by a stale etag") and hasattr(named, "etag"):
            thing = self.model.find(name)
            current = thing.etag if thing else "none"
            named.etag = current if how == "by etag" else min(self.etags - {current}, default="none")
        request.validate_only = how == "validating only"
        request.request_id = str(uuid.uuid4()) if how == "twice" else ""
        answer = self.server.call(rpc, request)
        changed = self.compare(rpc, request, answer)
        if how == "twice" and not isinstance(answer, Refused):
            again = self.server.call(rpc, request)
            if hasattr(answer, "secret"):
                answer.secret, answer.secret_withheld = "", True
            assert again == answer
        self.look(name or request.parent, "changed" if changed and self.prepared else "unchanged")
        self.broken = False

    def compare(self, rpc: str, request: Any, answer: Any) -> bool:
        """Do a mutation in the model and compare what it answers. Whether it has changed something."""
        model = copy.deepcopy(self.model) if request.validate_only else self.model
        model.made = made_in(answer)
        expected: Any
        try:
            expected = getattr(model, snake(rpc))(request)
        except Refused as refused:
            expected = refused
        outcome = "VALIDATED" if request.validate_only else "OK"
        self.server.seen[rpc, getattr(expected, "reason", outcome)] += 1
        assert getattr(answer, "reason", "") == getattr(expected, "reason", ""), f"{rpc}: {answer}"
        if isinstance(expected, Refused):
            assert expected.metadata in (None, answer.metadata)
            return False
        changed = any(not isinstance(thing, Thing) or not thing.etag for thing in expected.values())
        if is_brief(request):
            time.sleep(0.005)
        for field, thing in expected.items():
            shown = getattr(answer, field) if field else answer
            if not isinstance(thing, Thing):
                assert shown == thing
                continue
            if field == "api_key" and is_brief(request):
                # It may have been alive when the answer was written.
                shown.state = thing.shown().state
            self.agree(thing, shown)
        if hasattr(answer, "secret"):
            assert answer.secret_withheld == request.validate_only == (not answer.secret)
        if request.validate_only:
            return False
        self.etags |= {thing.etag for thing in expected.values() if isinstance(thing, Thing)}
        if model.made["secret"]:
            self.secrets[model.made["secret"]] = model.made["api_key"]
        return changed

    def agree(self, thing: Thing, shown: Any) -> None:
        """The server shows the thing as the model has it, with a new etag exactly if it has changed."""
        if not thing.etag:
            assert shown.etag not in self.etags
            thing.etag = shown.etag
        assert visible(shown) == thing.shown()

    def look(self, name: str, how: str) -> None:
        """Compare the product or tenant that a name is in: closely, or what matters most, or one thing by turns."""
        product_name, scope = "/".join(name.split("/")[:2]), "/".join(name.split("/")[:4])
        product = self.model.products.get(product_name)
        tenants = product.tenants.values() if product else ()
        most, less = [], [self.shown("GetProduct", product, "PRODUCT_NOT_FOUND", name=product_name)]
        for tenant in tenants:
            if f"{tenant.name}/".startswith(f"{scope}/"):
                people, within = [*tenant.people.values()], Fields(parent=tenant.name)
                machines = [person for person in people if person.machine]
                most.append(self.listed("ListPeople", people, users=len(people) - len(machines), **within))
                most.append(self.listed("ListApiKeys", tenant.keys.values(), **within))
                less.append(self.listed("ListMachineUsers", machines, **within))
                less += [self.listed("ListApiKeys", each.keys, owner=each.name, **within) for each in people]
        if product:
            living = [tenant for tenant in tenants if not tenant.deleted]
            less.append(self.listed("ListTenants", living, parent=product_name))
            less.append(self.listed("ListTenants", tenants, parent=product_name, show_deleted=True))
        secrets = [secret for secret, key in self.secrets.items() if key.startswith(f"{scope}/")]
        if how != "closely":
            alive = {secret.text for key in self.model.keys for secret in key.secrets}
            secrets = sorted(secrets, key=lambda secret: secret in alive)[-6:]
        most += [self.asked(secret, next(self.questions)) for secret in secrets]
        turn, everything = next(self.turns), [*most, *less]
        if how == "changed":
            everything = [*most, less[turn % len(less)]]
        self.compare_all(everything if how != "unchanged" else [everything[turn % len(everything)]])

    def compare_all(self, looks: Iterable[Look]) -> None:
        """Look at things at the same time."""
        looks = [*looks]
        answers = self.server.call_all([(rpc, request) for rpc, request, _ in looks])
        for (_, _, compare), answer in zip(looks, answers, strict=True):
            compare(answer)

    def shown(self, rpc: str, thing: Thing | None, reason: str, **query: Any) -> Look:
        """The thing is shown as it is, or refused."""

        def compare(answer: Any) -> None:
            if thing:
                self.agree(thing, answer)
            else:
                assert answer.reason == reason

        return rpc, new_request(rpc, query), compare

    def identified(self, secret: str) -> Look:
        """Whose a secret is or was is told; of a key that is gone, that, its name, and what its last event says."""
        name = self.secrets.get(secret)
        key = next((key for key in self.model.keys if key.name == name), None)
        if key or not name:
            return self.shown("IdentifySecret", key, "SECRET_NOT_FOUND", secret=secret)

        def compare(answer: Any) -> None:
            # Of one that went with its owner there is no such event.
            told = ApiKey(display_name=answer.display_name, kind=answer.kind, owner=answer.owner)
            assert bool(told.display_name) == bool(told.kind)
            assert not told.owner or name.startswith(told.owner.rpartition("/tenants/")[0])
            told.MergeFrom(ApiKey(name=name, state=ApiKey.STATE_DELETED))
            assert visible(answer) == told
            assert answer.HasField("identified")

        return "IdentifySecret", new_request("IdentifySecret", {"secret": secret}), compare

    def listed(self, rpc: str, things: Iterable[Thing], users: int | None = None, **query: Any) -> Look:
        """The list holds these, in this order, and nothing else; it counts the users."""

        def compare(page: Any) -> None:
            assert getattr(page, "user_count", None) == users
            found = [*getattr(page, LISTS[rpc])]
            while page.next_page_token:
                page = self.server.call(rpc, new_request(rpc, {**query, "page_token": page.next_page_token}))
                found += getattr(page, LISTS[rpc])
            found = [getattr(item, item.WhichOneof("person")) if rpc == "ListPeople" else item for item in found]
            assert [item.name for item in found] == [thing.name for thing in things]
            for thing, item in zip(things, found, strict=True):
                self.agree(thing, item)

        query["page_size"] = 5
        return rpc, new_request(rpc, query), compare

    def asked(self, secret: str, pair: tuple[str, str], **named: str) -> Look:
        """What the secret may do is what the model says."""
        request = new_request("Check", {"key": secret, "resource": pair[0], "action": pair[1], **named})

        def compare(answer: Any) -> None:
            expected = self.model.check(request)
            self.server.seen["Check", check_service_pb2.CheckResponse.Reason.Name(expected.reason)] += 1
            assert visible(answer) == expected, request

        return "Check", request, compare


def new_id() -> str:
    """An id that nothing else has."""
    return f"m{uuid.uuid4().hex[:8]}"


def snake(name: str) -> str:
    """`CreateApiKey` as `create_api_key`."""
    return re.sub("(?<!^)(?=[A-Z])", "_", name).lower()


def new_request(rpc: str, fields: Mapping[str, Any]) -> Any:
    """A request for an RPC."""
    return GetMessageClass(METHODS[rpc].input_type)(**fields)


def in_seconds(seconds: int | None) -> Timestamp | None:
    """A time so far from now."""
    return None if seconds is None else Timestamp(seconds=int(time.time()) + seconds)


def fitting(mode: int, grants: Sequence[types_pb2.Grant]) -> Sequence[types_pb2.Grant]:
    """Mostly, only restricted keys are given grants."""
    return grants if mode == RESTRICTED or "purge" in {a for grant in grants for a in grant.actions} else ()


def is_brief(request: Any) -> bool:
    """Whether the request makes something that ends at once."""
    return any(getattr(request, name).nanos > 0 for name in ("ttl", "grace") if hasattr(request, name))


def made_in(answer: Any) -> dict[str, str]:
    """What the server chose."""
    values = {field: getattr(answer, field, "") for field in ("api_key", "secret", "machine_user")}
    return {field: getattr(value, "name", value) for field, value in values.items()}


UNFORESEEN = {"create_time", "update_time", "last_use_time", "message", "revision", "creator", "identified"}


def visible(message: Any) -> Any:
    """A message as a model can know it: whether there is a time, but not which."""
    seen = type(message)()
    seen.CopyFrom(message)
    for secret in getattr(seen, "secrets", ()):
        secret.hint = ""
        secret.ClearField("create_time")
        if secret.HasField("expire_time"):
            secret.expire_time.Clear()
    for field, value in message.ListFields():
        if field.name in UNFORESEEN:
            seen.ClearField(field.name)
        elif field.name == "stranded":
            # Why, is for people.
            seen.stranded = field.name
        elif isinstance(value, Timestamp):
            getattr(seen, field.name).Clear()
    return seen


def run(server: Server, steps: int, first_seed: int) -> None:
    """Do so many steps: a few runs of each seed, because after some Hypothesis takes to varying earlier ones."""
    profile = settings(
        max_examples=RUNS_OF_A_SEED,
        # One is the preparation.
        stateful_step_count=STEPS_OF_A_RUN + 1,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=True,
        suppress_health_check=[*HealthCheck],
    )
    for number in itertools.count(first_seed):
        if server.steps >= steps:
            return
        try:
            # Any callable that makes one will do, whatever the annotation says.
            machines: Any = seed(number)(lambda: Gatekey(server))
            run_state_machine_as_test(machines, settings=profile)
        except BaseException as error:
            error.add_note(f"GATEKEY_TEST_MODEL_SEED={number} begins here. First seen: {server.first_problem}")
            raise


@pytest.mark.slow
async def test_server_and_model_agree(root: Client) -> None:
    by_hand, wanted = (os.environ.get(f"GATEKEY_TEST_MODEL_{name}", "") for name in ("STEPS", "SEED"))
    steps, first_seed = int(by_hand or STEPS), int(wanted or (secrets.randbits(32) if by_hand else 0))
    server = Server(root)
    await asyncio.to_thread(run, server, steps, first_seed)
    assert server.steps >= steps
    # What was never done was never compared.
    assert {rpc for rpc, outcome in server.seen if outcome == "OK"} == MUTATIONS
    assert {outcome for rpc, outcome in server.seen if rpc == "Check"} == VERDICTS
    assert len({outcome for _, outcome in server.seen} - VERDICTS - {"OK", "VALIDATED"}) >= 25
