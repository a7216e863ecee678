"""The rules of the five products, each by its id, through a real server over the network."""

from typing import Any

import grpc
import pytest
from gatekey.v1 import api_key_service_pb2, machine_user_service_pb2, member_service_pb2, product_service_pb2, types_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.support.databases import Sql
from tests.support.server import Client, ServerProcess, problem_of

BITSY_RESOURCES = ("links", "pages", "notes", "qrCodes")
BITSY_ACTIONS = ("create", "read", "update", "delete")


async def new_tenant(root: Client, product: str, tenant: str) -> tuple[str, str]:
    """A tenant with an owner; answers the names of both."""
    name = await root.create_tenant(product, tenant)
    role = "admin" if product == "tally" else "owner"
    return name, await root.add_member(name, "owner", role)


async def credential(root: Client, product: str) -> tuple[str, str]:
    """Where the product's API expects a key."""
    answer = await root.products.GetProduct(product_service_pb2.GetProductRequest(name=f"products/{product}"))
    return answer.spec.credential.header, answer.spec.credential.scheme


async def stored_text(sql: Sql) -> str:
    """Everything that the database holds, as text."""
    tables = await sql.fetch("select tablename from pg_tables where schemaname = 'public'")
    assert tables
    rows = [await sql.fetch(f'select t::text from "{table["tablename"]}" t') for table in tables]
    return "\n".join(row[0] for found in rows for row in found)


async def assert_shown_once(
    root: Client, sql: Sql, server: ServerProcess, created: api_key_service_pb2.CreateApiKeyResponse
) -> None:
    """The secret is in the answer to the creation and nowhere else."""
    name, secret = created.api_key.name, created.secret
    parent = name.rpartition("/apiKeys/")[0]
    random_part = secret[-38:]
    read = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=name))
    listed = await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=parent))
    people = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=parent))
    checked = await root.check(secret, "links", "read")
    assert created.api_key == read
    assert read in listed.api_keys
    for answer in (created.api_key, read, listed, people, checked):
        assert random_part not in str(answer)
    assert read.secrets[0].hint == secret[:-34]
    assert random_part not in await stored_text(sql)
    assert random_part not in "".join(server.output)


async def assert_missing(root: Client, key: str, resource: str, action: str, reason: str) -> None:
    """The answer to a check with too few permissions tells which are needed."""
    answer = await root.check(key, resource, action)
    assert not answer.allowed
    assert answer.reason == answer.Reason.Value(f"REASON_{reason}")
    assert [(missing.resource, missing.action) for missing in answer.missing_permissions] == [(resource, action)]
    assert resource in answer.message
    assert action in answer.message


async def assert_tenant_bound(root: Client, product: str, tenant_id: str, resource: str) -> None:
    """A key opens its own tenant and no other one, whatever it is asked for."""
    tenant, owner = await new_tenant(root, product, tenant_id)
    await new_tenant(root, product, f"{tenant_id}-other")
    key = (await root.create_key(tenant, "" if product == "formbox" else owner, mode="ALL")).secret
    assert await root.verdict(key, resource, "read", tenant_id) == "ALLOWED"
    assert await root.verdict(key, resource, "read", f"{tenant_id}-other") == "TENANT_MISMATCH"
    assert await root.verdict(key, resource, "read", "no-such-tenant") == "TENANT_MISMATCH"
    answer = await root.check(key, resource, "read")
    assert (answer.product, answer.tenant) == (product, tenant_id)


class TestBitsy:
    """Bitsy: keys of a workspace that hold any of four permissions."""

    async def test_b1_a_key_opens_one_workspace(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "bitsy", fresh_id)
        await new_tenant(root, "bitsy", f"{fresh_id}-other")
        key = (await root.create_key(tenant, grants={"*": list(BITSY_ACTIONS)})).secret
        assert (await root.check(key, "links/a", "read")).tenant == fresh_id
        assert await root.verdict(key, "links/a", "read", f"{fresh_id}-other") == "TENANT_MISMATCH"

    async def test_b2_secrets_start_with_bsy(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "bitsy", fresh_id)
        secret = (await root.create_key(tenant, grants={"*": ["read"]})).secret
        assert secret.startswith("bsy_")
        assert len(secret) == len("bsy_") + 38

    @pytest.mark.parametrize("number", range(1, 16))
    async def test_b3_any_subset_of_four_permissions_for_all_resources(
        self, root: Client, fresh_id: str, number: int
    ) -> None:
        tenant, _ = await new_tenant(root, "bitsy", fresh_id)
        chosen = [action for bit, action in enumerate(BITSY_ACTIONS) if number >> bit & 1]
        key = (await root.create_key(tenant, grants={"*": chosen})).secret
        for resource in BITSY_RESOURCES:
            for action in BITSY_ACTIONS:
                expected = "ALLOWED" if action in chosen else "KEY_PERMISSION_MISSING"
                assert await root.verdict(key, f"{resource}/x", action) == expected

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"grants": {}}, "GRANTS_REQUIRED"),
            ({"grants": {"*": []}}, "GRANTS_INVALID"),
            ({"grants": {"links": ["read"]}}, "GRANTS_NOT_OFFERED"),
            ({"grants": {"*": ["publish"]}}, "GRANTS_INVALID"),
            ({"mode": "ALL"}, "MODE_NOT_OFFERED"),
            ({"mode": "READ_ONLY"}, "MODE_NOT_OFFERED"),
        ],
    )
    async def test_b3_nothing_else_can_be_chosen(
        self, root: Client, fresh_id: str, options: dict[str, Any], reason: str
    ) -> None:
        tenant, _ = await new_tenant(root, "bitsy", fresh_id)
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant, **options)
        assert problem_of(raised.value).reason == reason
        assert not (await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant))).api_keys

    async def test_b4_created_with_a_name_and_permissions(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "bitsy", fresh_id)
        created = await root.create_key(tenant, name="CI", grants={"*": ["read", "create"]})
        key = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=created.api_key.name))
        assert key.display_name == "CI"
        assert [(grant.resource, list(grant.actions)) for grant in key.grants] == [("*", ["read", "create"])]
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant, name="", grants={"*": ["read"]})
        assert problem_of(raised.value).fields == {"api_key.display_name": "DISPLAY_NAME_REQUIRED"}

    async def test_b5_the_secret_is_shown_once(
        self, root: Client, fresh_id: str, sql: Sql, server: ServerProcess
    ) -> None:
        tenant, _ = await new_tenant(root, "bitsy", fresh_id)
        created = await root.create_key(tenant, grants={"*": ["read"]})
        await assert_shown_once(root, sql, server, created)

    async def test_b6_presented_as_a_bearer_token(self, root: Client) -> None:
        assert await credential(root, "bitsy") == ("authorization", "Bearer")

    async def test_b7_a_key_of_the_workspace_outlives_who_had_it_made(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "bitsy", fresh_id)
        await assert_outlives_its_maker(
            root, tenant, "member", mode=types_pb2.ACCESS_MODE_RESTRICTED, grants=[grant("*", "read", "create")]
        )

    async def test_b7_a_key_belongs_to_nobody_else(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "bitsy", fresh_id)
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant, owner, grants={"*": ["read"]})
        assert problem_of(raised.value).fields == {"api_key.owner": "OWNER_NOT_OFFERED"}
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant, grants={"*": ["read"]}, new_machine_user=True)
        assert problem_of(raised.value).reason == "MACHINE_USERS_NOT_OFFERED"

    async def test_b8_the_permissions_are_chosen(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "bitsy", fresh_id)
        await assert_mode_required(root, tenant)
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant, mode="RESTRICTED")
        assert problem_of(raised.value).fields == {"api_key.grants": "GRANTS_REQUIRED"}


class TestHeyoo:
    """Heyoo: all, read only or restricted; machine users that live as long as their key."""

    async def test_h1_a_key_can_never_reach_another_organisation(self, root: Client, fresh_id: str) -> None:
        await assert_tenant_bound(root, "heyoo", fresh_id, "campaigns/a")

    async def test_h2_secrets_start_with_hey(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        assert (await root.create_key(tenant, owner)).secret.startswith("hey_")

    async def test_h3_all_permissions(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        key = (await root.create_key(tenant, owner, mode="ALL")).secret
        for resource in ("campaigns", "workspaces", "domains/acme.com", "tags", "apiKeys", "people"):
            assert await root.verdict(key, resource, "write") == "ALLOWED"
            assert await root.verdict(key, resource, "read") == "ALLOWED"

    async def test_h3_read_only(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        key = (await root.create_key(tenant, owner, mode="READ_ONLY")).secret
        for resource in ("campaigns", "analytics", "workspaces", "domains", "tags", "apiKeys", "people"):
            assert await root.verdict(key, resource, "read") == "ALLOWED"
        assert await root.verdict(key, "campaigns", "write") == "KEY_PERMISSION_MISSING"

    @pytest.mark.parametrize("resource", ["campaigns", "analytics", "workspaces", "domains", "tags", "apiKeys"])
    async def test_h3_restricted_to_chosen_resources(self, root: Client, fresh_id: str, resource: str) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        key = (await root.create_key(tenant, owner, mode="RESTRICTED", grants={resource: ["read"]})).secret
        assert await root.verdict(key, f"{resource}/x", "read") == "ALLOWED"
        other = "tags" if resource != "tags" else "domains"
        assert await root.verdict(key, other, "read") == "KEY_PERMISSION_MISSING"
        if resource != "analytics":
            assert await root.verdict(key, resource, "write") == "KEY_PERMISSION_MISSING"

    async def test_h3_restricted_cannot_choose_more_than_is_offered(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        for grants in ({"people": ["read"]}, {"*": ["read"]}, {"campaigns": ["*"]}):
            with pytest.raises(grpc.RpcError) as raised:
                await root.create_key(tenant, owner, mode="RESTRICTED", grants=grants)
            assert problem_of(raised.value).fields == {"api_key.grants": "GRANTS_NOT_OFFERED"}

    async def test_h4_a_key_belongs_to_a_person_or_to_a_new_machine_user(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        yours = await root.create_key(tenant, owner)
        assert (await root.check(yours.secret, "campaigns", "read")).principal == owner
        machine = await root.create_key(tenant, new_machine_user=True)
        assert machine.machine_user.name.startswith(f"{tenant}/machineUsers/")
        assert machine.api_key.owner == machine.machine_user.name
        answer = await root.check(machine.secret, "campaigns", "read")
        assert answer.allowed
        assert answer.principal == machine.machine_user.name

    async def test_h4_both_are_created_or_neither(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "heyoo", fresh_id)
        with pytest.raises(grpc.RpcError):
            await root.create_key(tenant, mode="RESTRICTED", grants={"people": ["read"]}, new_machine_user=True)
        people = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=tenant))
        assert len(people.people) == 1

    async def test_h5_machine_users_are_people_but_no_users(self, root: Client, fresh_id: str) -> None:
        await assert_machine_users_do_not_count(root, "heyoo", fresh_id)

    async def test_h6_deleting_the_key_deletes_the_machine_user(self, root: Client, fresh_id: str) -> None:
        await assert_key_takes_machine_user(root, "heyoo", fresh_id)

    async def test_h6_deleting_the_machine_user_deletes_its_key(self, root: Client, fresh_id: str) -> None:
        await assert_machine_user_takes_key(root, "heyoo", fresh_id)

    async def test_h8_a_call_with_too_few_permissions_is_told_which(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        restricted = (await root.create_key(tenant, owner, mode="RESTRICTED", grants={"tags": ["read"]})).secret
        await assert_missing(root, restricted, "tags/red", "write", "KEY_PERMISSION_MISSING")
        everything = (await root.create_key(tenant, member, mode="ALL")).secret
        await assert_missing(root, everything, "apiKeys", "write", "OWNER_PERMISSION_MISSING")

    async def test_h9_shown_once_and_presented_as_a_bearer_token(
        self, root: Client, fresh_id: str, sql: Sql, server: ServerProcess
    ) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        await assert_shown_once(root, sql, server, await root.create_key(tenant, owner))
        await assert_shown_once(root, sql, server, await root.create_key(tenant, new_machine_user=True))
        assert await credential(root, "heyoo") == ("authorization", "Bearer")

    async def test_h10_all_permissions_of_a_machine_user_are_all(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "heyoo", fresh_id)
        created = await root.create_key(tenant, mode="ALL", new_machine_user=True)
        assert await root.verdict(created.secret, "analytics", "read") == "ALLOWED"
        for resource in ("campaigns", "workspaces/w", "domains/acme.com", "tags", "apiKeys/k", "people"):
            for action in ("read", "write"):
                assert await root.verdict(created.secret, resource, action) == "ALLOWED"

    async def test_h10_a_machine_user_administers_nothing(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        machine = await root.create_key(tenant, mode="ALL", new_machine_user=True)
        actor = acting(machine.machine_user.name)
        for attempt in (
            root.keys.CreateApiKey(new_key(tenant, machine.machine_user.name), **actor),
            root.keys.CreateApiKey(new_key(tenant, new_machine_user=True), **actor),
            root.keys.CreateApiKey(new_key(tenant, owner), **actor),
            root.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=machine.api_key.name), **actor),
            root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=machine.api_key.name), **actor),
            root.members.AddMember(
                member_service_pb2.AddMemberRequest(
                    parent=tenant, member_id="new", member=member_service_pb2.Member(role="viewer")
                ),
                **actor,
            ),
            root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=owner), **actor),
            root.machine_users.DeleteMachineUser(
                machine_user_service_pb2.DeleteMachineUserRequest(name=machine.machine_user.name), **actor
            ),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                await attempt
            assert problem_of(raised.value).reason == "ACTOR_PERMISSION_MISSING"

    @pytest.mark.parametrize("resource", ["campaigns", "analytics", "workspaces", "domains", "tags", "apiKeys"])
    async def test_h11_a_machine_users_key_is_restricted_to_any_of_the_six(
        self, root: Client, fresh_id: str, resource: str
    ) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        actions = ["read"] if resource == "analytics" else ["read", "write"]
        request = new_key(
            tenant,
            mode=types_pb2.ACCESS_MODE_RESTRICTED,
            grants=[grant(resource, *actions)],
            new_machine_user=True,
        )
        key = (await root.keys.CreateApiKey(request, **acting(owner))).secret
        for action in actions:
            assert await root.verdict(key, f"{resource}/x", action) == "ALLOWED"
        other = "tags" if resource != "tags" else "domains"
        assert await root.verdict(key, other, "read") == "KEY_PERMISSION_MISSING"

    async def test_h12_nobody_makes_a_key_for_another_person(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        await assert_made_by_oneself_only(root, tenant, owner, member, "campaigns")

    async def test_h13_a_machine_users_key_outlives_who_made_it(self, root: Client, fresh_id: str) -> None:
        await assert_machine_key_outlives_its_maker(root, "heyoo", fresh_id, "campaigns")

    async def test_h14_a_machine_user_has_one_key_which_is_rotated(self, root: Client, fresh_id: str) -> None:
        await assert_one_key(root, "heyoo", fresh_id, "campaigns")

    async def test_h15_the_mode_is_chosen(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "heyoo", fresh_id)
        await assert_mode_required(root, tenant, owner)
        await assert_mode_required(root, tenant, new_machine_user=True)
        people = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=tenant))
        assert len(people.people) == 1


class TestCodeQR:
    """CodeQR: secret and publishable keys; machine users with the owner's role."""

    async def test_c1_a_key_can_never_reach_another_project(self, root: Client, fresh_id: str) -> None:
        await assert_tenant_bound(root, "codeqr", fresh_id, "links/a")

    async def test_c2_secrets_start_with_codeqr(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        assert (await root.create_key(tenant, owner)).secret.startswith("codeqr_")
        assert (await root.create_key(tenant, kind="PUBLISHABLE")).secret.startswith("codeqr_")

    async def test_c3_a_key_without_a_choice_is_unrestricted(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        created = await root.create_key(tenant, owner)
        assert created.api_key.mode == types_pb2.ACCESS_MODE_ALL
        for resource, action in (("links/a", "write"), ("analytics", "read"), ("domains/acme.com", "write")):
            assert await root.verdict(created.secret, resource, action) == "ALLOWED"

    async def test_c3_a_lost_mode_does_not_make_a_key_unrestricted(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant, owner, grants={"links": ["read"]})
        assert problem_of(raised.value).fields == {"api_key.grants": "GRANTS_NOT_ALLOWED"}

    async def test_c4_all_read_only_or_restricted(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        read_only = (await root.create_key(tenant, owner, mode="READ_ONLY")).secret
        assert await root.verdict(read_only, "links/a", "read") == "ALLOWED"
        assert await root.verdict(read_only, "links/a", "write") == "KEY_PERMISSION_MISSING"
        for resource in ("links", "analytics", "domains", "tags"):
            key = (await root.create_key(tenant, owner, mode="RESTRICTED", grants={resource: ["read"]})).secret
            assert await root.verdict(key, resource, "read") == "ALLOWED"
            assert await root.verdict(key, "events", "track") == "KEY_PERMISSION_MISSING"

    async def test_c5_a_call_with_too_few_permissions_is_told_which(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        key = (await root.create_key(tenant, owner, mode="READ_ONLY")).secret
        await assert_missing(root, key, "domains/acme.com", "write", "KEY_PERMISSION_MISSING")

    async def test_c6_publishable_keys_reach_certain_endpoints_only(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "codeqr", fresh_id)
        created = await root.create_key(tenant, kind="PUBLISHABLE")
        assert await root.verdict(created.secret, "events", "track") == "ALLOWED"
        for resource in ("links", "analytics", "domains", "tags"):
            assert await root.verdict(created.secret, resource, "read") == "KEY_PERMISSION_MISSING"
        answer = await root.check(created.secret, "events", "track")
        assert (answer.principal, answer.role) == ("", "")
        assert answer.kind == types_pb2.KEY_KIND_PUBLISHABLE

    async def test_c6_the_permissions_of_publishable_keys_cannot_be_set(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        for options, field in (
            ({"mode": "ALL"}, "api_key.mode"),
            ({"mode": "RESTRICTED", "grants": {"links": ["read"]}}, "api_key.mode"),
            ({"grants": {"events": ["track"]}}, "api_key.grants"),
            ({"owner": owner}, "api_key.owner"),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                await root.create_key(tenant, kind="PUBLISHABLE", **options)
            assert list(problem_of(raised.value).fields) == [field]

    async def test_c6_products_without_publishable_keys_have_none(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "heyoo", fresh_id)
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant, kind="PUBLISHABLE")
        assert problem_of(raised.value).reason == "PUBLISHABLE_KEYS_NOT_OFFERED"

    async def test_c7_a_machine_user_has_the_owners_permissions(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        machine = await root.create_key(tenant, new_machine_user=True)
        person = await root.create_key(tenant, owner)
        assert machine.machine_user.role == "owner"
        for resource, action in (("domains/acme.com", "write"), ("links/a", "write"), ("analytics", "read")):
            assert await root.verdict(machine.secret, resource, action) == "ALLOWED"
            assert await root.verdict(person.secret, resource, action) == "ALLOWED"

    async def test_c8_deleting_the_key_deletes_the_machine_user(self, root: Client, fresh_id: str) -> None:
        await assert_key_takes_machine_user(root, "codeqr", fresh_id)

    async def test_c8_deleting_the_machine_user_deletes_its_key(self, root: Client, fresh_id: str) -> None:
        await assert_machine_user_takes_key(root, "codeqr", fresh_id)

    async def test_c9_machine_users_are_people_but_no_users(self, root: Client, fresh_id: str) -> None:
        await assert_machine_users_do_not_count(root, "codeqr", fresh_id)

    async def test_c10_shown_once_and_presented_as_a_bearer_token(
        self, root: Client, fresh_id: str, sql: Sql, server: ServerProcess
    ) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        await assert_shown_once(root, sql, server, await root.create_key(tenant, owner))
        await assert_shown_once(root, sql, server, await root.create_key(tenant, kind="PUBLISHABLE"))
        assert await credential(root, "codeqr") == ("authorization", "Bearer")

    async def test_c11_you_or_machine_is_chosen_at_the_creation(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        yours = await root.keys.CreateApiKey(new_key(tenant, owner), **acting(owner))
        assert (await root.check(yours.secret, "links", "read")).principal == owner
        machine = await root.keys.CreateApiKey(new_key(tenant, new_machine_user=True), **acting(owner))
        assert machine.api_key.owner == machine.machine_user.name
        assert (await root.check(machine.secret, "links", "read")).principal == machine.machine_user.name
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant)
        assert problem_of(raised.value).fields == {"api_key.owner": "OWNER_REQUIRED"}

    async def test_c11_nobody_makes_a_key_for_another_person(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        await assert_made_by_oneself_only(root, tenant, owner, member, "links")

    async def test_c12_a_key_restricted_to_domains_reaches_no_link(self, root: Client, fresh_id: str) -> None:
        tenant, owner = await new_tenant(root, "codeqr", fresh_id)
        choices = {"domains": "links", "links": "domains"}
        for chosen, other in choices.items():
            grants = {chosen: ["read", "write"]}
            key = (await root.create_key(tenant, owner, mode="RESTRICTED", grants=grants)).secret
            assert await root.verdict(key, f"{chosen}/x", "write") == "ALLOWED"
            for resource in (other, f"{other}/x"):
                for action in ("read", "write"):
                    assert await root.verdict(key, resource, action) == "KEY_PERMISSION_MISSING"
            # Nor by a way through the domain.
            assert await root.verdict(key, "domains/x/links/y", "read") == "RESOURCE_UNKNOWN"

    async def test_c13_a_machine_users_key_outlives_who_made_it(self, root: Client, fresh_id: str) -> None:
        await assert_machine_key_outlives_its_maker(root, "codeqr", fresh_id, "links")

    async def test_c13_a_machine_user_has_one_key_which_is_rotated(self, root: Client, fresh_id: str) -> None:
        await assert_one_key(root, "codeqr", fresh_id, "links")

    async def test_c13_members_make_machine_users_and_publishable_keys_within_what_they_have(
        self, root: Client, fresh_id: str
    ) -> None:
        tenant, _ = await new_tenant(root, "codeqr", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        inside: dict[str, Any] = {"mode": types_pb2.ACCESS_MODE_RESTRICTED, "grants": [grant("links", "read", "write")]}
        machine = await root.keys.CreateApiKey(new_key(tenant, new_machine_user=True, **inside), **acting(member))
        assert machine.machine_user.role == "owner"
        assert await root.verdict(machine.secret, "links/a", "write") == "ALLOWED"
        public = await root.keys.CreateApiKey(new_key(tenant, kind=types_pb2.KEY_KIND_PUBLISHABLE), **acting(member))
        assert await root.verdict(public.secret, "events", "track") == "ALLOWED"
        beyond = {"mode": types_pb2.ACCESS_MODE_RESTRICTED, "grants": [grant("domains", "read", "write")]}
        for fields in (beyond, {"mode": types_pb2.ACCESS_MODE_ALL}, {}):
            with pytest.raises(grpc.RpcError) as raised:
                await root.keys.CreateApiKey(new_key(tenant, new_machine_user=True, **fields), **acting(member))
            assert problem_of(raised.value).reason == "EXCEEDS_ACTOR"
        people = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=tenant))
        assert sum(person.HasField("machine_user") for person in people.people) == 1
        # And as the machine user, a member administers no more than as themselves.
        add = member_service_pb2.AddMemberRequest(
            parent=tenant, member_id="new", member=member_service_pb2.Member(role="owner")
        )
        with pytest.raises(grpc.RpcError) as raised:
            await root.members.AddMember(add, **acting(machine.machine_user.name))
        assert problem_of(raised.value).reason == "ACTOR_PERMISSION_MISSING"


class TestFormbox:
    """Formbox: full access or read only; the key says the organization."""

    async def test_f1_the_key_says_the_organization(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "formbox", fresh_id)
        answer = await root.check((await root.create_key(tenant)).secret, "forms/a", "read")
        assert answer.allowed
        assert (answer.product, answer.tenant) == ("formbox", fresh_id)
        await assert_tenant_bound(root, "formbox", f"{fresh_id}-2", "forms/a")

    async def test_f2_secrets_start_with_fbsk(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "formbox", fresh_id)
        assert (await root.create_key(tenant)).secret.startswith("fbsk_")

    async def test_f3_full_access_or_read_only(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "formbox", fresh_id)
        full = (await root.create_key(tenant, mode="ALL")).secret
        read_only = (await root.create_key(tenant, mode="READ_ONLY")).secret
        for resource in ("forms/a", "forms/a/submissions", "webhooks"):
            assert await root.verdict(full, resource, "write") == "ALLOWED"
            assert await root.verdict(read_only, resource, "read") == "ALLOWED"
            assert await root.verdict(read_only, resource, "write") == "KEY_PERMISSION_MISSING"
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant, mode="RESTRICTED", grants={"forms": ["read"]})
        assert problem_of(raised.value).reason == "MODE_NOT_OFFERED"

    async def test_f4_a_call_with_too_few_permissions_is_told_which(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "formbox", fresh_id)
        key = (await root.create_key(tenant, mode="READ_ONLY")).secret
        await assert_missing(root, key, "forms/a/submissions/b", "write", "KEY_PERMISSION_MISSING")

    async def test_f6_presented_in_a_header_of_its_own(self, root: Client) -> None:
        assert await credential(root, "formbox") == ("api-key", "")

    async def test_f7_a_key_of_the_organization_outlives_who_had_it_made(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "formbox", fresh_id)
        await assert_outlives_its_maker(root, tenant, "owner", mode=types_pb2.ACCESS_MODE_READ_ONLY)

    async def test_f8_a_key_has_a_name(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "formbox", fresh_id)
        created = await root.create_key(tenant, name="Zapier")
        read = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=created.api_key.name))
        assert read.display_name == "Zapier"
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant, name="")
        assert problem_of(raised.value).fields == {"api_key.display_name": "DISPLAY_NAME_REQUIRED"}

    async def test_f9_full_access_is_full_and_the_type_is_chosen(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "formbox", fresh_id)
        await assert_mode_required(root, tenant)
        key = (await root.create_key(tenant, mode="ALL")).secret
        for resource in ("forms", "forms/a", "forms/a/submissions/b", "webhooks/w"):
            for action in ("read", "write"):
                assert await root.verdict(key, resource, action) == "ALLOWED"


class TestTally:
    """Tally: a key is its user."""

    async def test_t1_a_key_has_its_users_permissions(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "tally", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        guest = await root.add_member(tenant, "g", "guest")
        members_key = (await root.create_key(tenant, member)).secret
        guests_key = (await root.create_key(tenant, guest)).secret
        assert await root.verdict(members_key, "forms/a", "write") == "ALLOWED"
        assert await root.verdict(guests_key, "forms/a", "write") == "OWNER_PERMISSION_MISSING"
        assert await root.verdict(guests_key, "forms/a", "read") == "ALLOWED"

    async def test_t2_every_resource_of_the_user_and_no_choice(self, root: Client, fresh_id: str) -> None:
        tenant, admin = await new_tenant(root, "tally", fresh_id)
        key = (await root.create_key(tenant, admin)).secret
        for resource, action in (("forms", "write"), ("forms/a/submissions/b", "delete"), ("members/x", "write")):
            assert await root.verdict(key, resource, action) == "ALLOWED"
        for options in ({"mode": "READ_ONLY"}, {"mode": "RESTRICTED", "grants": {"forms": ["read"]}}):
            with pytest.raises(grpc.RpcError) as raised:
                await root.create_key(tenant, admin, **options)
            assert problem_of(raised.value).reason == "MODE_NOT_OFFERED"

    async def test_t3_shown_once_and_replaced_by_a_new_key(
        self, root: Client, fresh_id: str, sql: Sql, server: ServerProcess
    ) -> None:
        tenant, admin = await new_tenant(root, "tally", fresh_id)
        lost = await root.create_key(tenant, admin)
        await assert_shown_once(root, sql, server, lost)
        new = await root.create_key(tenant, admin)
        await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=lost.api_key.name))
        assert await root.verdict(new.secret, "forms", "read") == "ALLOWED"
        assert await root.verdict(lost.secret, "forms", "read") == "KEY_UNKNOWN"

    async def test_t4_presented_as_a_bearer_token_with_a_dash(self, root: Client, fresh_id: str) -> None:
        tenant, admin = await new_tenant(root, "tally", fresh_id)
        assert (await root.create_key(tenant, admin)).secret.startswith("tly-")
        assert await credential(root, "tally") == ("authorization", "Bearer")

    async def test_t5_keys_stop_working_when_their_user_is_removed(self, root: Client, fresh_id: str) -> None:
        tenant, admin = await new_tenant(root, "tally", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        keys = [(await root.create_key(tenant, member)).secret for _ in range(3)]
        kept = (await root.create_key(tenant, admin)).secret
        assert [await root.verdict(key, "forms", "read") for key in keys] == ["ALLOWED"] * 3
        await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member))
        assert [await root.verdict(key, "forms", "read") for key in keys] == ["KEY_UNKNOWN"] * 3
        assert await root.verdict(kept, "forms", "read") == "ALLOWED"
        listed = await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant))
        assert len(listed.api_keys) == 1

    async def test_t5_a_user_who_comes_back_does_not_bring_old_keys_back(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "tally", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        key = (await root.create_key(tenant, member)).secret
        await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member))
        await root.add_member(tenant, "m", "admin")
        assert await root.verdict(key, "forms", "read") == "KEY_UNKNOWN"

    async def test_t5_a_user_leaves_by_themselves_unless_they_are_the_last_owner(
        self, root: Client, fresh_id: str
    ) -> None:
        tenant, admin = await new_tenant(root, "tally", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        guest = await root.add_member(tenant, "g", "guest")
        key = (await root.create_key(tenant, member)).secret
        assert await root.verdict(key, "forms", "read") == "ALLOWED"
        with pytest.raises(grpc.RpcError) as raised:
            await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member), **acting(guest))
        assert problem_of(raised.value).reason == "ACTOR_PERMISSION_MISSING"
        await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member), **acting(member))
        assert await root.verdict(key, "forms", "read") == "KEY_UNKNOWN"
        for force in (False, True):
            leave = member_service_pb2.RemoveMemberRequest(name=admin, force=force)
            with pytest.raises(grpc.RpcError) as raised:
                await root.members.RemoveMember(leave, **acting(admin))
            problem = problem_of(raised.value)
            assert problem.reason == "LAST_OWNER"
            assert "organization" in problem.message
        await root.add_member(tenant, "second", "admin")
        await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=admin), **acting(admin))

    async def test_t6_a_key_is_made_by_its_own_user_only(self, root: Client, fresh_id: str) -> None:
        tenant, admin = await new_tenant(root, "tally", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        await assert_made_by_oneself_only(root, tenant, admin, member, "forms")

    async def test_t6_taking_away_is_the_administrators(self, root: Client, fresh_id: str) -> None:
        tenant, admin = await new_tenant(root, "tally", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        keys = [await root.keys.CreateApiKey(new_key(tenant, member), **acting(member)) for _ in range(4)]
        disabled, revoked, deleted, kept = [key.api_key.name for key in keys]
        disable = api_key_service_pb2.DisableApiKeyRequest(name=disabled)
        await root.keys.DisableApiKey(disable, **acting(admin))
        await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=revoked), **acting(admin))
        await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=deleted), **acting(admin))
        verdicts = [await root.verdict(key.secret, "forms", "read") for key in keys]
        assert verdicts == ["KEY_DISABLED", "KEY_REVOKED", "KEY_UNKNOWN", "ALLOWED"]
        with pytest.raises(grpc.RpcError) as raised:
            await root.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=kept), **acting(admin))
        assert problem_of(raised.value).reason == "KEY_OF_OTHER_MEMBER"
        await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member), **acting(admin))
        assert await root.verdict(keys[3].secret, "forms", "read") == "KEY_UNKNOWN"

    async def test_t6_a_user_who_names_nobody_makes_their_own_key(self, root: Client, fresh_id: str) -> None:
        tenant, _ = await new_tenant(root, "tally", fresh_id)
        member = await root.add_member(tenant, "m", "member")
        created = await root.keys.CreateApiKey(new_key(tenant), **acting(member))
        assert created.api_key.owner == member
        with pytest.raises(grpc.RpcError) as raised:
            await root.create_key(tenant)
        assert problem_of(raised.value).fields == {"api_key.owner": "OWNER_REQUIRED"}


def acting(name: str) -> dict[str, Any]:
    """Call options that name an actor."""
    return {"metadata": (("gatekey-actor", name),), "timeout": 10}


def grant(resource: str, *actions: str) -> types_pb2.Grant:
    """A grant."""
    return types_pb2.Grant(resource=resource, actions=actions)


def new_key(
    tenant: str, owner: str = "", *, new_machine_user: bool = False, **fields: Any
) -> api_key_service_pb2.CreateApiKeyRequest:
    """A creation in which nothing is filled in that is not given."""
    key = api_key_service_pb2.ApiKey(display_name="Key", owner=owner, **fields)
    request = api_key_service_pb2.CreateApiKeyRequest(parent=tenant, api_key=key)
    if new_machine_user:
        request.new_machine_user.SetInParent()
    return request


async def assert_outlives_its_maker(root: Client, tenant: str, role: str, **fields: Any) -> None:
    """B7 and F7: a key of the tenant itself goes on when whoever had it made is demoted, and leaves."""
    maker = await root.add_member(tenant, "maker", role)
    named = new_key(tenant, tenant, **fields)
    omitted = new_key(tenant, **fields)
    made = [await root.keys.CreateApiKey(request, **acting(maker)) for request in (named, omitted)]
    resource = "links/a" if "/bitsy/" in tenant else "forms/a"
    for created in made:
        assert created.api_key.owner == tenant
        answer = await root.check(created.secret, resource, "read")
        assert answer.allowed
        assert (answer.principal, answer.role, answer.tenant) == ("", "", tenant.rpartition("/")[2])
    await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=maker))
    for created in made:
        assert await root.verdict(created.secret, resource, "read") == "ALLOWED"
    listing = api_key_service_pb2.ListApiKeysRequest(parent=tenant, owner=tenant)
    listed = [key.name for key in (await root.keys.ListApiKeys(listing)).api_keys]
    assert listed == [created.api_key.name for created in made]


async def assert_mode_required(root: Client, tenant: str, owner: str = "", *, new_machine_user: bool = False) -> None:
    """B8, H15 and F9: without a choice there is no key."""
    request = new_key(tenant, owner, new_machine_user=new_machine_user)
    with pytest.raises(grpc.RpcError) as raised:
        await root.keys.CreateApiKey(request)
    problem = problem_of(raised.value)
    assert (problem.reason, problem.fields) == ("MODE_REQUIRED", {"api_key.mode": "MODE_REQUIRED"})
    listing = api_key_service_pb2.ListApiKeysRequest(parent=tenant)
    assert not (await root.keys.ListApiKeys(listing)).api_keys


async def assert_made_by_oneself_only(root: Client, tenant: str, owner: str, member: str, resource: str) -> None:
    """H12, C11 and T6: a person's key is made, and gets a new secret, on behalf of that person only."""
    everything: dict[str, Any] = {"mode": types_pb2.ACCESS_MODE_ALL}
    mine = await root.keys.CreateApiKey(new_key(tenant, member, **everything), **acting(member))
    assert await root.verdict(mine.secret, resource, "read") == "ALLOWED"
    with pytest.raises(grpc.RpcError) as raised:
        await root.keys.CreateApiKey(new_key(tenant, member, **everything), **acting(owner))
    assert problem_of(raised.value).reason == "KEY_OF_OTHER_MEMBER"
    rotate = api_key_service_pb2.RotateApiKeyRequest(name=mine.api_key.name)
    with pytest.raises(grpc.RpcError) as raised:
        await root.keys.RotateApiKey(rotate, **acting(owner))
    assert problem_of(raised.value).reason == "KEY_OF_OTHER_MEMBER"
    assert await root.verdict(mine.secret, resource, "read") == "ALLOWED"
    assert (await root.keys.RotateApiKey(rotate, **acting(member))).secret
    # Whoever names no actor is trusted.
    assert (await root.keys.CreateApiKey(new_key(tenant, member, **everything))).secret


async def assert_machine_key_outlives_its_maker(root: Client, product: str, tenant_id: str, resource: str) -> None:
    """H13 and C13: a machine user's key goes on after the demotion and the removal of whoever made it."""
    tenant, _ = await new_tenant(root, product, tenant_id)
    maker = await root.add_member(tenant, "maker", "owner")
    request = new_key(tenant, mode=types_pb2.ACCESS_MODE_ALL, new_machine_user=True)
    key = (await root.keys.CreateApiKey(request, **acting(maker))).secret
    demotion = member_service_pb2.UpdateMemberRequest(
        member=member_service_pb2.Member(name=maker, role="member"), update_mask=FieldMask(paths=["role"])
    )
    await root.members.UpdateMember(demotion)
    assert await root.verdict(key, resource, "write") == "ALLOWED"
    await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=maker))
    assert await root.verdict(key, resource, "write") == "ALLOWED"


async def assert_one_key(root: Client, product: str, tenant_id: str, resource: str) -> None:
    """H14 and C13: a machine user's one key is rotated, not doubled; deleting it deletes the machine user."""
    tenant, _ = await new_tenant(root, product, tenant_id)
    created = await root.create_key(tenant, new_machine_user=True)
    user = created.machine_user.name
    with pytest.raises(grpc.RpcError) as raised:
        await root.create_key(tenant, user)
    assert problem_of(raised.value).reason == "MACHINE_USER_HAS_KEY"
    rotated = await root.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=created.api_key.name))
    assert rotated.api_key.name == created.api_key.name
    assert await root.verdict(rotated.secret, resource, "read") == "ALLOWED"
    assert await root.verdict(created.secret, resource, "read") == "KEY_UNKNOWN"
    await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=created.api_key.name))
    with pytest.raises(grpc.RpcError) as raised:
        await root.machine_users.GetMachineUser(machine_user_service_pb2.GetMachineUserRequest(name=user))
    assert problem_of(raised.value).reason == "MACHINE_USER_NOT_FOUND"


async def assert_machine_users_do_not_count(root: Client, product: str, tenant_id: str) -> None:
    """H5 and C9: machine users are listed among the people, and are no users."""
    tenant, owner = await new_tenant(root, product, tenant_id)
    machine = (await root.create_key(tenant, new_machine_user=True)).machine_user
    people = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=tenant))
    assert [person.WhichOneof("person") for person in people.people] == ["member", "machine_user"]
    assert people.people[0].member.name == owner
    assert people.people[1].machine_user == machine
    assert people.user_count == 1


async def assert_key_takes_machine_user(root: Client, product: str, tenant_id: str) -> None:
    """H6 and C8, one way: with its key goes the machine user."""
    tenant, _ = await new_tenant(root, product, tenant_id)
    created = await root.create_key(tenant, new_machine_user=True)
    kept = await root.create_key(tenant, new_machine_user=True)
    await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=created.api_key.name))
    get = machine_user_service_pb2.GetMachineUserRequest(name=created.machine_user.name)
    with pytest.raises(grpc.RpcError) as raised:
        await root.machine_users.GetMachineUser(get)
    assert problem_of(raised.value).reason == "MACHINE_USER_NOT_FOUND"
    get.name = kept.machine_user.name
    assert (await root.machine_users.GetMachineUser(get)).name == kept.machine_user.name


async def assert_machine_user_takes_key(root: Client, product: str, tenant_id: str) -> None:
    """H6 and C8, the other way: with the machine user goes its key."""
    tenant, _ = await new_tenant(root, product, tenant_id)
    created = await root.create_key(tenant, new_machine_user=True)
    delete = machine_user_service_pb2.DeleteMachineUserRequest(name=created.machine_user.name)
    await root.machine_users.DeleteMachineUser(delete)
    assert await root.verdict(created.secret, "links", "read") == "KEY_UNKNOWN"
    with pytest.raises(grpc.RpcError) as raised:
        await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=created.api_key.name))
    assert problem_of(raised.value).reason == "API_KEY_NOT_FOUND"
