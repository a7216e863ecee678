"""What makes a product spec invalid, and what a spec lets keys be given."""

import copy
import inspect
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from gatekey.core import builtin, specs
from gatekey.core.errors import InvalidRequest, Violation
from gatekey.core.grants import Grant
from gatekey.core.specs import AccessMode, KeyKind, ProductSpec
from gatekey.v1 import product_spec_pb2
from gatekey.wire.specs import read_spec, write_spec
from google.protobuf import json_format

from tests.support.server import PRODUCTS, read_example

ALL, READ_ONLY, RESTRICTED = "ACCESS_MODE_ALL", "ACCESS_MODE_READ_ONLY", "ACCESS_MODE_RESTRICTED"
ABSENT = object()

# Nothing refers to the collection `notes`, the action `count` or the role `member`: they can be spoilt alone.
VALID: dict[str, Any] = {
    "product": "shop",
    "display_name": "Shop",
    "tenant_noun": "branch",
    "collections": [
        {"pattern": "links", "actions": ["read", "write"], "display_name": "Links"},
        {"pattern": "domains/*/links", "actions": ["read", "delete"]},
        {"pattern": "notes", "actions": ["read", "count"]},
    ],
    "read_actions": ["read"],
    "roles": [
        {"role": "owner", "owner": True, "grants": [{"resource": "*", "actions": ["*"]}]},
        {"role": "member", "grants": [{"resource": "links", "actions": ["read", "write"]}]},
        {"role": "nobody"},
    ],
    "secret_keys": {
        "prefix": "shop_",
        "modes": [ALL, READ_ONLY, RESTRICTED],
        "default_mode": ALL,
        "restricted": {"scope": "SCOPE_RESOURCES", "grantable": [{"resource": "links", "actions": ["read"]}]},
        "max_lifetime": "3600s",
    },
    "publishable_keys": {"prefix": "shop_pub_", "grants": [{"resource": "links/open", "actions": ["read"]}]},
    "machine_users": {"role": "owner", "lifetime": "LIFETIME_INDEPENDENT"},
    "credential": {"header": "authorization", "scheme": "Bearer"},
}

GRANT = "roles[1].grants[0]"
GRANTABLE = "secret_keys.restricted.grantable"
SIX = ["links", "domains/*/links", "domains/a.example", "links/*", "*/*/links/abc", "*"]


def many(number: int, **fields: Any) -> list[dict[str, Any]]:
    """Messages that differ in their `{}`."""
    return [
        {field: value.format(index) if isinstance(value, str) else value for field, value in fields.items()}
        for index in range(number)
    ]


WRONG_COLLECTIONS = ["", "*", "Notes", "9notes", "notes/", "/notes", "notes/*", "notes/a/b", "notes/*/Pages"]
WRONG_COLLECTIONS += ["notes//pages", "no.tes", "notes\n", "n" * 64, "/*/".join(["notes"] * 9), "notés"]
WRONG_PATTERNS = ["/links", "links/", "links//a", "links/..", "./links", "links/a b", "links/a*", "links/é", "links\n"]
WRONG_PATTERNS += ["links/**", "links/" + "a" * 257]
UNKNOWN_PATTERNS = ["posts", "link", "linksx", "Links", "links/abc/links", "links/*/*", "domains/a.example/notes"]
UNKNOWN_PATTERNS += ["*/a/links/b/c", "abc/links"]

# What is changed in the valid spec, and everything that is wrong with it then.
MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    # Limits, and what roles administer
    ({"limits": {"members": -1}}, ["limits.members LIMIT_INVALID"]),
    ({"limits": {"apiKeys": 1_000_001}}, ["limits.api_keys LIMIT_INVALID"]),
    (
        {"roles[0].administration": [{"resource": "links", "actions": ["create"]}]},
        ["roles[0].administration[0].resource RESOURCE_UNKNOWN"],
    ),
    (
        {"roles[0].administration": [{"resource": "apiKeys", "actions": ["suspend"]}]},
        ["roles[0].administration[0].actions[0] ACTION_UNKNOWN"],
    ),
    # The product's id and names
    *(
        ({"product": product}, ["product PRODUCT_ID_INVALID"])
        for product in ["", "Shop", "9shop", "-shop", "shop-", "s--p", "s_p", "s.p", "shop\n", "s" * 64, "été"]
    ),
    ({"product": ABSENT}, ["product PRODUCT_ID_INVALID"]),
    ({"display_name": "S" * 129}, ["display_name DISPLAY_NAME_INVALID"]),
    ({"display_name": "a\nb"}, ["display_name DISPLAY_NAME_INVALID"]),
    *(
        ({"tenant_noun": noun}, ["tenant_noun NOUN_INVALID"])
        for noun in ["Branch", "branch ", " branch", "br4nch", "{branch}", "b" * 33, "branch\n"]
    ),
    # Collections
    (
        {
            "collections": ABSENT,
            "read_actions": [],
            "roles[0].grants": [],
            "roles[1].grants": [],
            "secret_keys.modes": [ALL],
            "secret_keys.restricted": ABSENT,
            "publishable_keys": ABSENT,
        },
        ["collections TOO_FEW"],
    ),
    (
        {"collections": [*VALID["collections"], *many(254, pattern="c{}", actions=["read"])]},
        ["collections TOO_MANY"],
    ),
    *(
        ({"collections[2].pattern": pattern}, ["collections[2].pattern COLLECTION_INVALID"])
        for pattern in WRONG_COLLECTIONS
    ),
    ({"collections[2].pattern": "links"}, [f"collections[{at}].pattern COLLECTION_DUPLICATE" for at in (0, 2)]),
    ({"collections[2].display_name": "\0"}, ["collections[2].display_name DISPLAY_NAME_INVALID"]),
    ({"collections[2].actions": []}, ["collections[2].actions TOO_FEW"]),
    ({"collections[2].actions": [f"a{n}" for n in range(65)]}, ["collections[2].actions TOO_MANY"]),
    ({"collections[2].actions[1]": ""}, ["collections[2].actions[1] ACTION_REQUIRED"]),
    *(
        ({"collections[2].actions[1]": action}, ["collections[2].actions[1] ACTION_INVALID"])
        for action in ["*", "Count", "9", "_count", "co unt", "co/unt", "count\n", "a" * 65, "comptée"]
    ),
    ({"collections[2].actions": ["count", "count", "read"]}, ["collections[2].actions DUPLICATE"]),
    # Read actions
    ({"read_actions[0]": "list"}, ["read_actions[0] ACTION_UNKNOWN"]),
    ({"read_actions": ["read", "*"]}, ["read_actions[1] ACTION_UNKNOWN"]),
    ({"read_actions": ["read", "read"]}, ["read_actions DUPLICATE"]),
    ({"read_actions": ABSENT}, ["read_actions READ_ACTIONS_REQUIRED"]),
    # Roles
    ({"roles": ABSENT, "machine_users": ABSENT}, ["roles TOO_FEW"]),
    ({"roles": [*VALID["roles"], *many(62, role="r{}")]}, ["roles TOO_MANY"]),
    *(
        ({"roles[2].role": role}, ["roles[2].role ROLE_INVALID"])
        for role in ["", "Nobody", "9", "-nobody", "no body", "no.body", "nobody\n", "n" * 64]
    ),
    ({"roles[2].role": "member"}, [f"roles[{at}].role ROLE_DUPLICATE" for at in (1, 2)]),
    ({"roles[2].display_name": "a" * 129}, ["roles[2].display_name DISPLAY_NAME_INVALID"]),
    ({"roles[0].owner": False}, ["roles OWNER_ROLE_COUNT"]),
    ({"roles[1].owner": True}, ["roles OWNER_ROLE_COUNT"]),
    # Grants, wherever they are
    ({"roles[1].grants": many(257, resource="links/{}", actions=["read"])}, ["roles[1].grants TOO_MANY"]),
    ({f"{GRANT}.resource": ""}, [f"{GRANT}.resource RESOURCE_REQUIRED"]),
    ({f"{GRANT}.resource": "links/" + "a" * 1019}, [f"{GRANT}.resource RESOURCE_TOO_LONG"]),
    ({f"{GRANT}.resource": "/".join(["links"] * 17)}, [f"{GRANT}.resource RESOURCE_TOO_LONG"]),
    *(({f"{GRANT}.resource": resource}, [f"{GRANT}.resource RESOURCE_INVALID"]) for resource in WRONG_PATTERNS),
    *(({f"{GRANT}.resource": resource}, [f"{GRANT}.resource RESOURCE_UNKNOWN"]) for resource in UNKNOWN_PATTERNS),
    ({f"{GRANT}.actions": []}, [f"{GRANT}.actions TOO_FEW"]),
    ({f"{GRANT}.actions": ["read"] * 65}, [f"{GRANT}.actions TOO_MANY"]),
    ({f"{GRANT}.actions[1]": ""}, [f"{GRANT}.actions[1] ACTION_REQUIRED"]),
    ({f"{GRANT}.actions[1]": "**"}, [f"{GRANT}.actions[1] ACTION_INVALID"]),
    ({f"{GRANT}.actions[1]": "delete"}, [f"{GRANT}.actions[1] ACTION_UNKNOWN"]),
    (
        {GRANT: {"resource": "links//", "actions": ["read", "Read", "posts"]}},
        [f"{GRANT}.actions[1] ACTION_INVALID", f"{GRANT}.resource RESOURCE_INVALID"],
    ),
    # Secret keys
    ({"secret_keys": ABSENT}, ["secret_keys SECRET_KEYS_REQUIRED"]),
    *(
        ({"secret_keys.prefix": prefix}, ["secret_keys.prefix PREFIX_INVALID"])
        for prefix in ["", "shop", "_", "Shop_", "shop__", "_shop_", "sh.op_", "shop_\n", "s" * 32 + "_", "shöp_"]
    ),
    (
        {"secret_keys.modes": []},
        [
            "secret_keys.default_mode DEFAULT_MODE_INVALID",
            "secret_keys.modes TOO_FEW",
            "secret_keys.restricted RESTRICTED_NOT_OFFERED",
        ],
    ),
    (
        {"secret_keys.modes": [ALL, READ_ONLY, RESTRICTED, ALL]},
        ["secret_keys.modes DUPLICATE", "secret_keys.modes TOO_MANY"],
    ),
    ({"secret_keys.modes": [ALL, ALL, RESTRICTED]}, ["secret_keys.modes DUPLICATE"]),
    ({"secret_keys.modes": [ALL, RESTRICTED, 7]}, ["secret_keys.modes[2] ENUM_UNKNOWN"]),
    ({"secret_keys.modes": [ALL, RESTRICTED, 0]}, ["secret_keys.modes[2] ENUM_UNKNOWN"]),
    ({"secret_keys.owners": ["OWNER_MEMBER", "OWNER_MEMBER"]}, ["secret_keys.owners DUPLICATE"]),
    ({"secret_keys.owners": ["OWNER_MEMBER", 7]}, ["secret_keys.owners[1] ENUM_UNKNOWN"]),
    ({"secret_keys.owners": [0]}, ["secret_keys.owners[0] ENUM_UNKNOWN"]),
    ({"secret_keys.default_owner": "OWNER_TENANT"}, ["secret_keys.default_owner DEFAULT_OWNER_INVALID"]),
    (
        {"secret_keys.owners": ["OWNER_TENANT"], "secret_keys.default_owner": "OWNER_MEMBER"},
        ["secret_keys.default_owner DEFAULT_OWNER_INVALID"],
    ),
    ({"secret_keys.default_owner": "OWNER_MACHINE_USER"}, ["secret_keys.default_owner DEFAULT_OWNER_INVALID"]),
    ({"secret_keys.default_owner": 7}, ["secret_keys.default_owner ENUM_UNKNOWN"]),
    ({"secret_keys.default_mode": 7}, ["secret_keys.default_mode ENUM_UNKNOWN"]),
    (
        {"secret_keys.modes": [READ_ONLY, RESTRICTED]},
        ["secret_keys.default_mode DEFAULT_MODE_INVALID"],
    ),
    *(
        ({"secret_keys.max_lifetime": lifetime}, ["secret_keys.max_lifetime LIFETIME_INVALID"])
        for lifetime in ["0s", "59.999999s", "-3600s", "3153600000.000001s"]
    ),
    ({"secret_keys.restricted": ABSENT}, ["secret_keys.restricted RESTRICTED_REQUIRED"]),
    ({"secret_keys.modes": [ALL, READ_ONLY]}, ["secret_keys.restricted RESTRICTED_NOT_OFFERED"]),
    ({"secret_keys.restricted.scope": ABSENT}, ["secret_keys.restricted.scope SCOPE_REQUIRED"]),
    ({"secret_keys.restricted.scope": 7}, ["secret_keys.restricted.scope ENUM_UNKNOWN"]),
    ({GRANTABLE: []}, [f"{GRANTABLE} TOO_FEW"]),
    ({GRANTABLE: many(257, resource="links/{}", actions=["read"])}, [f"{GRANTABLE} TOO_MANY"]),
    ({f"{GRANTABLE}[0].resource": "posts"}, [f"{GRANTABLE}[0].resource RESOURCE_UNKNOWN"]),
    ({"secret_keys.restricted.scope": "SCOPE_ACTIONS"}, [f"{GRANTABLE}[0].resource SCOPE_NEEDS_ALL_RESOURCES"]),
    # Publishable keys
    ({"publishable_keys.prefix": "pub"}, ["publishable_keys.prefix PREFIX_INVALID"]),
    ({"publishable_keys.prefix": "shop_"}, ["publishable_keys.prefix PREFIX_DUPLICATE"]),
    ({"publishable_keys.grants": []}, ["publishable_keys.grants TOO_FEW"]),
    ({"publishable_keys.grants[0].actions[0]": "track"}, ["publishable_keys.grants[0].actions[0] ACTION_UNKNOWN"]),
    ({"publishable_keys.max_lifetime": "59s"}, ["publishable_keys.max_lifetime LIFETIME_INVALID"]),
    # Machine users
    (
        {"machine_users.administration": [{"resource": "keys", "actions": ["create"]}]},
        ["machine_users.administration[0].resource RESOURCE_UNKNOWN"],
    ),
    ({"machine_users.role": "robot"}, ["machine_users.role ROLE_UNKNOWN"]),
    ({"machine_users.role": ""}, ["machine_users.role ROLE_UNKNOWN"]),
    ({"machine_users.lifetime": ABSENT}, ["machine_users.lifetime LIFETIME_REQUIRED"]),
    ({"machine_users.lifetime": 7}, ["machine_users.lifetime ENUM_UNKNOWN"]),
    # The credential
    ({"credential": ABSENT}, ["credential CREDENTIAL_REQUIRED"]),
    *(
        ({"credential.header": header}, ["credential.header HEADER_INVALID"])
        for header in ["", "Authorization", "api key", "api_key", "9", "api-key\n", "a" * 64]
    ),
    *(
        ({"credential.scheme": scheme}, ["credential.scheme SCHEME_INVALID"])
        for scheme in ["Bearer ", "Bearer token", "9", "-", "Bearer\n", "B" * 33]
    ),
    # Several at once, in any part
    (
        {
            "product": "Shop",
            "collections[1].pattern": "Domains",
            "read_actions": ["list", "read", "read"],
            f"{GRANT}.resource": "posts",
            "secret_keys.prefix": "shop",
            "secret_keys.default_mode": 7,
            f"{GRANTABLE}[0].actions[0]": "delete",
            "publishable_keys.grants[0].resource": "links/../posts",
            "machine_users": {"role": "robot"},
            "credential.header": "",
        },
        [
            "collections[1].pattern COLLECTION_INVALID",
            "credential.header HEADER_INVALID",
            "machine_users.lifetime LIFETIME_REQUIRED",
            "machine_users.role ROLE_UNKNOWN",
            "product PRODUCT_ID_INVALID",
            "publishable_keys.grants[0].resource RESOURCE_INVALID",
            "read_actions DUPLICATE",
            "read_actions[0] ACTION_UNKNOWN",
            f"{GRANT}.resource RESOURCE_UNKNOWN",
            "secret_keys.default_mode ENUM_UNKNOWN",
            "secret_keys.prefix PREFIX_INVALID",
            f"{GRANTABLE}[0].actions[0] ACTION_UNKNOWN",
        ],
    ),
]

# What may be changed in the valid spec, up to the limits.
STILL_VALID: list[dict[str, Any]] = [
    {},
    {"product": "s" * 63},
    {"product": "s-9-p"},
    {"display_name": "S" * 128, "tenant_noun": "b" * 32},
    {"display_name": "Été ☀", "tenant_noun": "sub-branch of us"},
    {"display_name": ABSENT, "tenant_noun": ABSENT},
    {"collections": [*VALID["collections"], *many(253, pattern="c{}", actions=["read"])]},
    {"collections[2].pattern": "n" * 63},
    {"collections[2].pattern": "/*/".join(["notes"] * 8)},
    {"collections[2].pattern": "domains/*/links/*/links"},
    {"collections[2].actions": ["read", *(f"a{n}" for n in range(63))]},
    {"collections[2].actions[1]": "count.all_of:it-9" + "x" * 47},
    {"roles": [*VALID["roles"], *many(61, role="r{}")]},
    {"roles[1].grants": many(256, resource="links/{}", actions=["read"])},
    {f"{GRANT}.actions": ["read"] * 64},
    {f"{GRANT}.actions": ["*"]},
    *({GRANT: {"resource": resource, "actions": ["read"]}} for resource in SIX),
    # An action that only something below the pattern declares.
    {GRANT: {"resource": "domains", "actions": ["delete"]}},
    {"secret_keys.prefix": "s" * 31 + "-"},
    {"secret_keys.prefix": "9-shop_x_"},
    {"secret_keys.max_lifetime": "60s"},
    {"secret_keys.max_lifetime": "3153600000s"},
    {"secret_keys.max_lifetime": ABSENT},
    {"secret_keys.modes": [ALL], "secret_keys.restricted": ABSENT, "read_actions": ABSENT},
    {GRANTABLE: [{"resource": "*", "actions": ["*"]}], "secret_keys.restricted.scope": "SCOPE_ACTIONS"},
    {"publishable_keys": ABSENT, "machine_users": ABSENT},
    {"publishable_keys.max_lifetime": "60s"},
    {"secret_keys.default_mode": ABSENT},
    {"secret_keys.owners": ["OWNER_TENANT"], "secret_keys.default_owner": "OWNER_TENANT"},
    {"secret_keys.owners": ["OWNER_TENANT", "OWNER_MEMBER", "OWNER_MACHINE_USER"]},
    {"secret_keys.default_owner": "OWNER_MEMBER", "secret_keys.own_keys_only": True, "actor_required": True},
    {"machine_users.administration": [{"resource": "apiKeys", "actions": ["create"]}]},
    {"credential": {"header": "api-key"}},
]


def spec_with(changes: Mapping[str, Any]) -> product_spec_pb2.ProductSpec:
    """The valid spec with changes, by the paths of its fields."""
    document = copy.deepcopy(VALID)
    for path, value in changes.items():
        *parents, last = (int(step) if step.isdigit() else step for step in re.findall(r"\w+", path))
        at: Any = document
        for parent in parents:
            at = at[parent]
        if value is ABSENT:
            del at[last]
        else:
            at[last] = value
    return json_format.ParseDict(document, product_spec_pb2.ProductSpec())


def read(message: product_spec_pb2.ProductSpec) -> ProductSpec:
    """Read and validate a spec, as it is done when one is applied."""
    violations: list[Violation] = []
    spec = read_spec(message, violations)
    specs.validate(spec, violations)
    return spec


def told(error: InvalidRequest) -> list[str]:
    """What an error says of the fields, in order of their paths."""
    return sorted(f"{violation.field} {violation.reason}" for violation in error.violations)


# ---------------------------------------------------------------- validate


@pytest.mark.parametrize(("changes", "mistakes"), MISTAKES, ids=[" + ".join(m)[:80] for _, m in MISTAKES])
def test_mistakes_are_told_with_their_paths(changes: dict[str, Any], mistakes: list[str]) -> None:
    """Each mistake is reported at its path, all of them at once, and nothing besides."""
    with pytest.raises(InvalidRequest) as refusal:
        read(spec_with(changes))
    assert told(refusal.value) == sorted(mistakes)
    assert refusal.value.reason == "SPEC_INVALID"
    assert all(violation.description for violation in refusal.value.violations)


@pytest.mark.parametrize("changes", STILL_VALID, ids=lambda changes: " ".join(changes) or "unchanged")
def test_limits_are_included(changes: dict[str, Any]) -> None:
    """A spec is valid up to its limits, and is written as it was read."""
    message = spec_with(changes)
    assert write_spec(read(message)) == message


def test_every_reason_is_tried() -> None:
    """The table of mistakes knows every reason that the module gives."""
    given = set(re.findall(r'Violation\(\s*[^,]+,\s*"([A-Z_]+)"', inspect.getsource(specs)))
    assert len(given) > 20
    assert given <= {mistake.split()[1] for _, mistakes in MISTAKES for mistake in mistakes}


@pytest.mark.parametrize("product", PRODUCTS)
def test_examples_are_valid(product: str) -> None:
    """The five products' specs are valid, and lose nothing on the way in and out."""
    message = read_example(product)
    assert write_spec(read(message)) == message


def test_built_in_spec_is_valid() -> None:
    """Nobody applies the spec of `gatekey` itself, so nothing else would find a mistake in it."""
    specs.validate(builtin.SPEC)


# ---------------------------------------------------------------- grants of keys


@pytest.mark.parametrize(
    ("grants", "mistakes"),
    [
        ([], ["g TOO_FEW"]),
        ([("links", ["read"])] * 257, ["g TOO_MANY"]),
        ([("links", ["read", "write"]), ("domains/a.example", ["delete"]), ("*", ["*"])], []),
        ([("links", [])], ["g[0].actions TOO_FEW"]),
        ([("links", ["read"]), ("posts", ["read"])], ["g[1].resource RESOURCE_UNKNOWN"]),
        ([("links", ["delete"])], ["g[0].actions[0] ACTION_UNKNOWN"]),
        ([("", ["read"]), ("links/..", ["Read"])], [
            "g[0].resource RESOURCE_REQUIRED", "g[1].actions[0] ACTION_INVALID", "g[1].resource RESOURCE_INVALID"]),
        # Inside what the spec declares; whether it is grantable is another question.
        ([("notes", ["count"])], []),
    ],
)  # fmt: skip
def test_grants_of_a_key(grants: list[tuple[str, list[str]]], mistakes: list[str]) -> None:
    """A key's grants name what the spec declares; every mistake is told."""
    chosen = [Grant(resource, tuple(actions)) for resource, actions in grants]
    spec = read(spec_with({}))
    if not mistakes:
        specs.validate_grants(spec, chosen, "g")
        return
    with pytest.raises(InvalidRequest) as refusal:
        specs.validate_grants(spec, chosen, "g")
    assert (refusal.value.reason, told(refusal.value)) == ("GRANTS_INVALID", mistakes)


BY_RESOURCE = {
    GRANTABLE: [{"resource": "links", "actions": ["read", "write"]}, {"resource": "domains/*/links", "actions": ["*"]}]
}
BY_ACTION = {
    GRANTABLE: [{"resource": "*", "actions": ["read", "write"]}],
    "secret_keys.restricted.scope": "SCOPE_ACTIONS",
}
ANYTHING = {GRANTABLE: [{"resource": "*", "actions": ["*"]}]}
NOTHING = {"secret_keys.modes": [ALL, READ_ONLY], "secret_keys.restricted": ABSENT}

GRANTABLE_OR_NOT: list[tuple[dict[str, Any], dict[str, list[str]], bool]] = [
    (BY_RESOURCE, {"links": ["read"]}, True),
    (BY_RESOURCE, {"links/abc": ["write", "read"]}, True),
    (BY_RESOURCE, {"links/*": ["read"]}, True),
    (BY_RESOURCE, {"links": ["read"], "domains/a.example/links": ["delete"]}, True),
    (BY_RESOURCE, {"domains/*/links": ["*"]}, True),
    (BY_RESOURCE, {"*": ["read"]}, False),
    (BY_RESOURCE, {"*/abc": ["read"]}, False),
    (BY_RESOURCE, {"links": ["*"]}, False),
    (BY_RESOURCE, {"domains": ["read"]}, False),
    (BY_RESOURCE, {"domains/a.example": ["read"]}, False),
    (BY_RESOURCE, {"*/*/links": ["read"]}, False),
    (BY_RESOURCE, {"notes": ["read"]}, False),
    (BY_RESOURCE, {"links": ["read"], "notes": ["read"]}, False),
    (BY_ACTION, {"*": ["read"]}, True),
    (BY_ACTION, {"*": ["read", "write"]}, True),
    (BY_ACTION, {"*": ["delete"]}, False),
    (BY_ACTION, {"*": ["*"]}, False),
    (BY_ACTION, {"links": ["read"]}, False),
    (ANYTHING, {"*": ["*"]}, True),
    (ANYTHING, {"links/abc": ["read"]}, True),
    (NOTHING, {"links": ["read"]}, False),
]


@pytest.mark.parametrize(("changes", "grants", "expected"), GRANTABLE_OR_NOT)
def test_grantable(changes: dict[str, Any], grants: dict[str, list[str]], expected: bool) -> None:
    """Each grant must lie inside one that the spec offers; where only actions are chosen, all resources are."""
    policy = read(spec_with(changes)).secret_keys
    assert policy is not None
    assert (
        specs.grantable(policy, [Grant(resource, tuple(actions)) for resource, actions in grants.items()]) == expected
    )


SECRET, PUBLISHABLE = KeyKind.SECRET, KeyKind.PUBLISHABLE
READ_LINKS = (Grant("links", ("read",)),)
READ_NOTES = (Grant("notes", ("read",)),)

STRANDED_OR_NOT: list[tuple[dict[str, Any], KeyKind, AccessMode | None, tuple[Grant, ...], bool]] = [
    ({}, SECRET, AccessMode.ALL, (), False),
    ({}, SECRET, AccessMode.READ_ONLY, (), False),
    ({}, SECRET, AccessMode.RESTRICTED, READ_LINKS, False),
    ({}, PUBLISHABLE, None, (), False),
    # A kind or a mode that is not offered any more.
    ({"publishable_keys": ABSENT}, PUBLISHABLE, None, (), True),
    ({"publishable_keys": ABSENT}, SECRET, AccessMode.ALL, (), False),
    ({"secret_keys.modes": [ALL, RESTRICTED]}, SECRET, AccessMode.READ_ONLY, (), True),
    ({"secret_keys.modes": [ALL, RESTRICTED]}, SECRET, AccessMode.ALL, (), False),
    (NOTHING, SECRET, AccessMode.RESTRICTED, READ_LINKS, True),
    (NOTHING, PUBLISHABLE, None, (), False),
    ({"secret_keys.modes": [RESTRICTED], "secret_keys.default_mode": RESTRICTED}, SECRET, AccessMode.ALL, (), True),
    # Grants that lie outside what may be granted, all of them or some.
    ({}, SECRET, AccessMode.RESTRICTED, READ_NOTES, True),
    ({}, SECRET, AccessMode.RESTRICTED, READ_LINKS + READ_NOTES, True),
    ({}, SECRET, AccessMode.RESTRICTED, (Grant("links", ("read", "write")),), True),
    (BY_RESOURCE, SECRET, AccessMode.RESTRICTED, (Grant("links/abc", ("read", "write")),), False),
    (BY_ACTION, SECRET, AccessMode.RESTRICTED, READ_LINKS, True),
    (BY_ACTION, SECRET, AccessMode.RESTRICTED, (Grant("*", ("write",)),), False),
    # Grants of what is not declared any more.
    (ANYTHING, SECRET, AccessMode.RESTRICTED, (Grant("posts", ("read",)),), True),
    (ANYTHING, SECRET, AccessMode.RESTRICTED, (Grant("links", ("archive",)),), True),
    (ANYTHING, SECRET, AccessMode.RESTRICTED, READ_LINKS + READ_NOTES, False),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "mode", "grants", "expected"), STRANDED_OR_NOT)
def test_a_key_that_a_spec_strands(
    changes: dict[str, Any], kind: KeyKind, mode: AccessMode | None, grants: tuple[Grant, ...], expected: bool
) -> None:
    """A spec strands the keys whose kind, mode or grants it does not offer."""
    losses = specs.KeyOffer(read(spec_with(changes))).losses(kind, None, mode, grants)
    assert any(losses) == expected


def test_keys_are_looked_at_only_where_they_may_lose_something() -> None:
    """Among the specs and the keys above: no key loses by a change for which nobody looks at the keys."""
    all_specs = [read(spec_with(row[0])) for row in STRANDED_OR_NOT]
    looked, lost = 0, 0
    for before in all_specs:
        for after in all_specs:
            may = specs.may_take_from_keys(before, after)
            looked += may
            for _, kind, mode, grants, _ in STRANDED_OR_NOT:
                had, has = (set(specs.KeyOffer(spec).losses(kind, None, mode, grants)) for spec in (before, after))
                if any(loss.permission is None for loss in had):
                    continue
                if {loss.permission for loss in has} - {loss.permission for loss in had}:
                    lost += 1
                    assert may
    assert 0 < looked < len(all_specs) ** 2
    assert lost


def test_nobody_looks_at_the_keys_for_other_changes() -> None:
    before = read(spec_with({}))
    for changes in (
        {"roles[1].grants": [{"resource": "links", "actions": ["read"]}]},
        {"limits": {"apiKeys": 7}},
        {"display_name": "Other", "secret_keys.prefix": "other_", "secret_keys.max_lifetime": "60s"},
    ):
        assert not specs.may_take_from_keys(before, read(spec_with(changes)))
    assert specs.may_take_from_keys(before, read(spec_with({"secret_keys.modes": [ALL, RESTRICTED]})))


def test_prefixes_by_kind() -> None:
    """A spec has a prefix for each kind of key that it offers."""
    assert read(spec_with({})).prefixes == {SECRET: "shop_", PUBLISHABLE: "shop_pub_"}
    assert read(spec_with({"publishable_keys": ABSENT})).prefixes == {SECRET: "shop_"}


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (timedelta(days=90), "90 days"),
        (timedelta(days=1), "1 day"),
        (timedelta(hours=36), "36 hours"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(minutes=90), "90 minutes"),
        (timedelta(seconds=90), "90 seconds"),
        (timedelta(seconds=61, milliseconds=500), "61 seconds"),
    ],
)
def test_durations_in_words(duration: timedelta, words: str) -> None:
    """People read `90 days`, not `90 days, 0:00:00`."""
    assert specs.in_words(duration) == words
