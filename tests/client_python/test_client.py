"""The Python clients against a real server: decisions, errors, the administration."""

import inspect
import pickle
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import gatekey
import grpc
import pytest
from gatekey import _methods, _requests, decisions, errors
from gatekey._calls import Call, Listing
from gatekey.core.secrets import new_secret
from gatekey.v1 import check_service_pb2, tenant_service_pb2, types_pb2
from gatekey_server.rpc.server import SERVICES
from google.protobuf.message_factory import GetMessageClass

from tests.client_python.support import PRODUCT, Shop, made, opened
from tests.support.server import ROOT, Client, read_example

README = ROOT / "clients" / "python" / "README.md"

# ---------------------------------------------------------------- checks


async def test_a_decision_says_everything(client: Any, shop: Shop) -> None:
    decision = await made(client.check, shop.reader, "campaigns/c1", "read", tenant=shop.tenant, product=PRODUCT)
    assert decision
    assert decision.allowed
    assert decision == gatekey.Decision(
        allowed=True,
        reason=gatekey.Reason.ALLOWED,
        message=decision.message,
        product=PRODUCT,
        tenant=shop.tenant,
        principal=shop.owner,
        role="owner",
        api_key=decision.api_key,
        kind=gatekey.KeyKind.SECRET,
        revision=decision.revision,
    )
    assert decision.revision > 0
    assert decision.api_key.startswith(f"products/{PRODUCT}/tenants/{shop.tenant}/apiKeys/")


async def test_a_denial_is_an_answer(client: Any, shop: Shop) -> None:
    decision = await made(client.check, shop.reader, "campaigns/c1", "write")
    assert not decision
    assert not decision.allowed
    assert decision.reason is gatekey.Reason.KEY_PERMISSION_MISSING
    assert decision.missing_permissions == (gatekey.Permission("campaigns/c1", "write"),)
    assert decision.expire_time is None
    unknown = await made(client.check, new_secret("hey_"), "campaigns/c1", "write")
    assert (unknown.reason, unknown.tenant) == (gatekey.Reason.KEY_UNKNOWN, "")
    other = await made(client.check, shop.key, "campaigns", "read", product="bitsy")
    assert other.reason is gatekey.Reason.KEY_UNKNOWN
    elsewhere = await made(client.check, shop.key, "campaigns", "read", tenant="elsewhere")
    assert elsewhere.reason is gatekey.Reason.TENANT_MISMATCH


async def test_require_raises_what_is_missing(client: Any, shop: Shop) -> None:
    assert await made(client.require, shop.reader, "campaigns/c1", "read")
    with pytest.raises(gatekey.AccessDenied) as denied:
        await made(client.require, shop.reader, "campaigns/c1", "write")
    assert denied.value.missing_permissions == (gatekey.Permission("campaigns/c1", "write"),)
    assert denied.value.decision.reason is gatekey.Reason.KEY_PERMISSION_MISSING
    assert "KEY_PERMISSION_MISSING" in str(denied.value)
    assert not isinstance(denied.value, gatekey.ApiError)


async def test_many_questions_are_answered_in_their_order(client: Any, shop: Shop) -> None:
    questions = [
        gatekey.Question(shop.reader, "campaigns/c1", action)
        if action
        else gatekey.Question("\udc80", "campaigns", "read")
        for action in ("read", "write", "", "read", "no action")
    ]
    read, write, text, again, invalid = await made(client.check_many, questions)
    assert [read.allowed, write.allowed, again.allowed] == [True, False, True]
    assert write.missing_permissions == (gatekey.Permission("campaigns/c1", "write"),)
    assert [text.error.reason, invalid.error.reason] == ["TEXT_INVALID", "ACTION_INVALID"]
    assert invalid.error.violations[0].field == "action"
    assert isinstance(invalid.error, gatekey.InvalidArgument)
    # What was not decided can be taken for a denial, and is never taken for permission.
    assert not text.allowed
    assert not invalid
    with pytest.raises(gatekey.InvalidArgument):
        invalid.require()
    assert await made(client.check_many, []) == []


async def test_more_questions_than_a_batch_holds(client: Any, shop: Shop) -> None:
    long = "x" * 4000
    questions = [gatekey.Question(shop.key if n % 500 == 0 else long, "campaigns", "read") for n in range(1200)]
    results = await made(client.check_many, questions, timeout=20)
    assert [n for n, result in enumerate(results) if result.allowed] == [0, 500, 1000]


async def test_decisions_as_of_a_revision(client: Any, shop: Shop) -> None:
    decision = await made(client.check, shop.key, "campaigns", "read")
    again = await made(client.check, shop.key, "campaigns", "read", min_revision=decision.revision)
    assert again.revision >= decision.revision
    with pytest.raises(gatekey.Unavailable) as raised:
        await made(client.check, shop.key, "campaigns", "read", min_revision=1 << 60, timeout=10)
    assert raised.value.reason == "REVISION_NOT_REACHED"


async def test_text_that_cannot_be_sent_is_refused_and_not_repeated(admin: Any) -> None:
    with pytest.raises(gatekey.InvalidArgument) as raised:
        await made(admin.check, "secret\ud800", "campaigns", "read")
    assert raised.value.reason == "TEXT_INVALID"
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_question_does_not_show_its_key() -> None:
    assert "hey_" not in repr(gatekey.Question("hey_secret", "links", "read"))


def test_reasons_and_kinds_are_those_of_the_protocol() -> None:
    assert {f"REASON_{reason}" for reason in gatekey.Reason} == set(check_service_pb2.CheckResponse.Reason.keys())
    assert {f"KEY_KIND_{kind}" for kind in gatekey.KeyKind} == set(types_pb2.KeyKind.keys())


def test_an_answer_of_a_newer_server_can_be_read() -> None:
    response = check_service_pb2.CheckResponse.FromString(
        check_service_pb2.CheckResponse(message="new").SerializeToString() + b"\x10\x63\x50\x63"
    )
    decision = decisions.read(response)
    assert (decision.allowed, decision.reason, decision.kind) == (
        False,
        gatekey.Reason.UNSPECIFIED,
        gatekey.KeyKind.UNSPECIFIED,
    )


# ---------------------------------------------------------------- errors


async def test_errors_tell_reason_metadata_and_fields(admin: Any, root: Client, shop: Shop) -> None:
    tenant = admin.tenant(PRODUCT, shop.tenant)
    with pytest.raises(gatekey.NotFound) as not_found:
        await made(admin.products.get, "nosuch")
    assert (not_found.value.reason, not_found.value.metadata) == ("PRODUCT_NOT_FOUND", {"product": "nosuch"})
    assert not_found.value.code is grpc.StatusCode.NOT_FOUND
    with pytest.raises(gatekey.AlreadyExists, match="MEMBER_EXISTS"):
        await made(tenant.members.add, "owner", "owner")
    with pytest.raises(gatekey.Aborted, match="ETAG_MISMATCH"):
        await made(tenant.keys.disable, shop.name, etag="old")
    with pytest.raises(gatekey.FailedPrecondition, match="LAST_OWNER"):
        await made(tenant.members.remove, "owner")
    spec = read_example(PRODUCT)
    spec.roles[0].role = "!"
    spec.collections[0].pattern = "/"
    with pytest.raises(gatekey.InvalidArgument) as invalid:
        await made(admin.products.apply, spec)
    assert invalid.value.reason == "SPEC_INVALID"
    fields = {violation.field: violation.reason for violation in invalid.value.violations}
    assert (
        fields.items()
        >= {"spec.collections[0].pattern": "COLLECTION_INVALID", "spec.roles[0].role": "ROLE_INVALID"}.items()
    )


async def test_what_the_token_may_not_do_is_no_denial(kind: str, root: Client, shop: Shop) -> None:
    token = await root.create_token({f"products/{PRODUCT}/checks": ["create"]})
    async with opened(kind, root.address, token=token) as client:
        assert await made(client.check, shop.key, "campaigns", "read")
        with pytest.raises(gatekey.PermissionDenied) as raised:
            await made(client.tenant(PRODUCT, shop.tenant).keys.revoke, shop.name)
    assert raised.value.metadata["action"] == "revoke"
    assert not isinstance(raised.value, gatekey.AccessDenied)


async def test_a_token_that_does_not_work(kind: str, root: Client) -> None:
    async with opened(kind, root.address, token=new_secret("gk_")) as client:
        with pytest.raises(gatekey.Unauthenticated, match="TOKEN_INVALID"):
            await made(client.check, "hey_x", "campaigns", "read")


def test_every_error_is_in_the_tree() -> None:
    drawn = {line.split("──")[1].split()[0] for line in str(errors.__doc__).splitlines() if "──" in line}
    values = (value for module in (errors, decisions) for value in vars(module).values())
    classes = {value for value in values if inspect.isclass(value) and issubclass(value, Exception)}
    assert {each.__name__ for each in classes} == {"GatekeyError", *drawn}
    assert {each.__name__ for each in classes} <= set(gatekey.__all__)


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_every_status_has_an_error(code: grpc.StatusCode) -> None:
    assert errors.failure(code, "text").code is code
    assert errors.from_number(code.value[0], "text", "REASON", "key").code is code


def test_errors_travel_between_processes() -> None:
    error = errors.failure(
        grpc.StatusCode.NOT_FOUND, "text", "REASON", {"a": "b"}, (gatekey.FieldViolation("f", "R", "d"),)
    )
    denied = gatekey.AccessDenied(gatekey.Decision(False, gatekey.Reason.KEY_EXPIRED, "text"))
    copied, copied_denied = pickle.loads(pickle.dumps((error, denied)))  # noqa: S301 - our own
    assert (type(copied), vars(copied)) == (gatekey.NotFound, vars(error))
    assert copied_denied.decision == denied.decision


# ---------------------------------------------------------------- the administration


async def test_the_life_of_a_key(admin: Any, root: Client, fresh_id: str) -> None:
    tenants = admin.product(PRODUCT).tenants
    created = await made(tenants.create, fresh_id, display_name="Acme")
    assert created.name == f"products/{PRODUCT}/tenants/{fresh_id}"
    tenant = admin.tenant(PRODUCT, fresh_id)
    await made(tenant.members.add, "u_1", "owner", display_name="Kim")
    await made(tenant.members.update, "u_1", display_name="Kim B.")
    assert (await made(tenant.members.get, "u_1")).display_name == "Kim B."
    key = await made(
        tenant.keys.create,
        "CI",
        member="u_1",
        grants={"campaigns": ["read"]},
        ttl=timedelta(hours=1),
        labels={"a": "b"},
    )
    assert key.secret
    assert key.api_key.mode == types_pb2.ACCESS_MODE_RESTRICTED
    decision = await made(admin.check, key.secret, "campaigns", "read")
    assert decision.expire_time.tzinfo is UTC
    assert timedelta(minutes=59) < decision.expire_time - datetime.now(UTC) <= timedelta(hours=1)
    # By name as by id; what is not given stays as it is.
    changed = await made(tenant.keys.update, key.api_key.name, description="for tests", expire_time=None)
    assert (changed.description, changed.labels, changed.display_name) == ("for tests", {"a": "b"}, "CI")
    assert not changed.HasField("expire_time")
    changed = await made(tenant.keys.update, key.api_key.name, grants={"tags": ["read"]})
    assert [grant.resource for grant in changed.grants] == ["tags"]
    assert (await made(admin.identify, key.secret)).name == key.api_key.name
    await made(tenant.keys.disable, key.api_key.name)
    await made(tenant.keys.enable, key.api_key.name.rsplit("/", 1)[1])
    rotated = await made(tenant.keys.rotate, key.api_key.name, grace=timedelta(hours=1))
    assert len(rotated.api_key.secrets) == 2
    await made(tenant.keys.revoke, key.api_key.name, reason="leaked")
    decision = await made(admin.check, rotated.secret, "tags", "read")
    assert decision.reason is gatekey.Reason.KEY_REVOKED
    counts = await made(tenant.keys.delete, key.api_key.name, validate_only=True)
    assert counts.deleted.api_keys == 1
    assert (await made(tenant.keys.get, key.api_key.name)).revoke_reason == "leaked"
    for chains in (admin.audit_chains, admin.product("heyoo").audit_chains):
        found = {chain.parent: chain.sequence for chain in await made(chains.list)}
        assert found[key.api_key.name.partition("/apiKeys")[0]] >= 7
    verbs = [event.verb for event in await made(tenant.audit_events.list, target=key.api_key.name)]
    assert verbs == [
        "CreateApiKey", "UpdateApiKey", "UpdateApiKey", "DisableApiKey", "EnableApiKey", "RotateApiKey", "RevokeApiKey",
    ]  # fmt: skip
    with_machine = await made(tenant.keys.create, "Bot", new_machine_user="bot", mode="ALL")
    assert with_machine.machine_user.name.endswith("/machineUsers/bot")
    assert [key.name for key in await made(tenant.keys.list, machine_user="bot")] == [with_machine.api_key.name]
    assert [person.WhichOneof("person") for person in await made(tenant.people.list)] == ["member", "machine_user"]
    assert (await made(tenant.people.page, page_size=1)).user_count == 1
    await made(tenants.suspend, fresh_id)
    assert (await made(admin.check, with_machine.secret, "tags", "read")).reason is gatekey.Reason.TENANT_SUSPENDED
    await made(tenants.delete, created.name)
    assert (await made(tenants.undelete, fresh_id)).suspend_time.seconds


async def test_lists_page_by_themselves(admin: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_requests, "PAGE_SIZE", 2)
    tenant = admin.tenant(PRODUCT, shop.tenant)
    for number in range(3):
        await made(tenant.keys.create, f"Key {number}", member="owner", mode="ALL")
    names = [key.display_name for key in await made(tenant.keys.list)]
    assert names == ["Key", "Key", "Key 0", "Key 1", "Key 2"]
    assert names == [key.display_name for key in await made(tenant.keys.list, member="owner")]


async def test_a_key_can_belong_to_the_tenant_itself(admin: Any, root: Client, fresh_id: str) -> None:
    name = await root.create_tenant("bitsy", fresh_id)
    keys = admin.tenant("bitsy", fresh_id).keys
    named = await made(keys.create, "CI", owner=name, grants={"*": ["read"]})
    by_default = await made(keys.create, "CI", grants={"*": ["read"]})
    assert (named.credential.header, named.credential.scheme) == ("authorization", "Bearer")
    assert [key.owner for key in await made(keys.list, owner=name)] == [name, name]
    for created in (named, by_default):
        decision = await made(admin.check, created.secret, "links", "read")
        assert (decision.allowed, decision.principal, decision.role) == (True, "", "")
    with pytest.raises(ValueError, match="only one of owner"):
        await made(keys.create, "CI", owner=name, member="u_1")


async def test_an_actor_can_be_named(admin: Any, shop: Shop) -> None:
    plain = admin.tenant(PRODUCT, shop.tenant)
    await made(plain.members.add, "viewer", "viewer")
    viewer = admin.tenant(PRODUCT, shop.tenant, actor=f"products/{PRODUCT}/tenants/{shop.tenant}/members/viewer")
    with pytest.raises(gatekey.PermissionDenied, match="ACTOR_PERMISSION_MISSING"):
        await made(viewer.members.add, "friend", "viewer")
    owner = admin.tenant(PRODUCT, shop.tenant, actor=shop.owner)
    await made(owner.members.add, "friend", "viewer")
    events = await made(plain.audit_events.list, actor=shop.owner)
    assert [event.verb for event in events] == ["AddMember"]


async def test_a_repeated_change_is_made_once(admin: Any, shop: Shop) -> None:
    keys = admin.tenant(PRODUCT, shop.tenant).keys
    id_ = str(uuid.uuid4())
    first = await made(keys.create, "Once", member="owner", mode="ALL", request_id=id_)
    again = await made(keys.create, "Once", member="owner", mode="ALL", request_id=id_)
    assert again.api_key.name == first.api_key.name
    # The caller's own id: the caller's own matter.
    assert again.secret_withheld
    assert first.secret
    await made(keys.delete, first.api_key.name)
    tried = await made(keys.create, "Never", member="owner", mode="ALL", validate_only=True)
    assert tried.secret_withheld
    assert len(await made(keys.list)) == 2


def test_names_from_elsewhere_are_refused() -> None:
    with gatekey.Client(token="gk_x") as client:
        keys = client.tenant("heyoo", "acme").keys
        for wrong in (
            "products/heyoo/tenants/other/apiKeys/key_1",
            "../key_1",
            "",
            "products/heyoo/tenants/acme/apiKeys/",
        ):
            with pytest.raises(ValueError, match="products/heyoo/tenants/acme/apiKeys/ID"):
                keys.revoke(wrong)
        for product, tenant in (("heyoo/tenants/x", "acme"), ("heyoo", "acme/apiKeys/x"), ("", "acme"), ("heyoo", "")):
            with pytest.raises(ValueError, match="neither an id nor a name"):
                client.tenant(product, tenant)
        with pytest.raises(ValueError, match="only one of"):
            keys.create("CI", member="u_1", publishable=True)
        with pytest.raises(ValueError, match="time zone"):
            keys.create("CI", member="u_1", expire_time=datetime(2030, 1, 1))  # noqa: DTZ001 - that is the mistake


class Recorder(gatekey.Client):
    """Makes no calls, and remembers them."""

    def __init__(self) -> None:
        super().__init__(token="gk_x")
        self.calls: list[Call[Any]] = []

    def _make(self, call: Call[Any]) -> Any:
        self.calls.append(call)
        return call.response()

    def _list(self, listing: Listing[Any, Any]) -> Iterator[Any]:
        listing.items(self._make(listing.first))
        return iter(())


def test_every_rpc_can_be_called() -> None:
    """Whatever the protocol has, the client has, with the right request and answer."""
    client = Recorder()
    parts = [
        client.products,
        client.product("heyoo").tenants,
        *(vars(client.tenant("heyoo", "acme"))[name] for name in ("keys", "members", "machine_users", "people")),
        client.tenant("heyoo", "acme").audit_events,
        client.audit_chains,
    ]
    given = {"spec": read_example("heyoo"), "role": "owner", "display_name": "CI"}
    for part in parts:
        methods = {name: method for name, method in inspect.getmembers(part, inspect.ismethod) if name[0] != "_"}
        for method in methods.values():
            parameters = inspect.signature(method).parameters.values()
            required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
            method(*(given.get(name, "x") for name in required))
        assert all(f"`{name}`" in README.read_text() for name in methods)
    client.identify("x")
    made = {call.path for call in client.calls}
    rpcs = {
        f"/{service.full_name}/{method.name}": method
        for service in SERVICES.values()
        for method in service.methods
        if service.name not in {"CheckService", "CacheService"}
    }
    assert made == set(rpcs)
    for call in client.calls:
        rpc, request = rpcs[call.path], cast("Any", call.request)
        assert (type(request), call.response) == (GetMessageClass(rpc.input_type), GetMessageClass(rpc.output_type))
        # What changes something can be repeated.
        if "request_id" in rpc.input_type.fields_by_name:
            assert str(uuid.UUID(request.request_id)) == request.request_id


def test_every_mutation_has_a_request_id() -> None:
    """Also one whose request somebody else has written, such as the command line."""
    made = _requests.call_of(_methods.DELETE_TENANT, tenant_service_pb2.DeleteTenantRequest(name="x"), actor="a")
    request: Any = made.request
    assert str(uuid.UUID(request.request_id)) == request.request_id
    assert (made.path, made.actor) == ("/gatekey.v1.TenantService/DeleteTenant", "a")
    given = tenant_service_pb2.DeleteTenantRequest(name="x", request_id="one of the caller's")
    assert _requests.call_of(_methods.DELETE_TENANT, given).request == given
    assert given.request_id == "one of the caller's"
    read = tenant_service_pb2.GetTenantRequest(name="x")
    assert _requests.call_of(_methods.GET_TENANT, read).request == tenant_service_pb2.GetTenantRequest(name="x")


def test_both_clients_have_methods_of_their_own_kind() -> None:
    """A coroutine function is seen as one, and help shows the same signature and text for both clients."""
    blocking = gatekey.Client(token="gk_x")
    waiting = gatekey.AsyncClient(token="gk_x")
    for methods in (
        (blocking.identify, waiting.identify),
        (blocking.products.get, waiting.products.get),
        (blocking.tenant("heyoo", "acme").keys.create, waiting.tenant("heyoo", "acme").keys.create),
    ):
        assert [inspect.iscoroutinefunction(method) for method in methods] == [False, True]
        assert inspect.signature(methods[0]) == inspect.signature(methods[1])
        assert "scope" not in inspect.signature(methods[0]).parameters
        assert methods[0].__doc__ == methods[1].__doc__
        assert methods[0].__doc__
    lists = (blocking.products.list(), waiting.products.list())
    assert [inspect.isgenerator(each) for each in lists] == [True, False]
    assert [inspect.isasyncgen(each) for each in lists] == [False, True]


def test_the_documentation_draws_the_tree_of_errors() -> None:
    drawn = re.findall(r"──.*", str(errors.__doc__))
    assert drawn == re.findall(r"──.*", README.read_text())
