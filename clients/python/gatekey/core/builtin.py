"""The built-in product `gatekey`: its keys are the service tokens, its resources are the API's own.

Each RPC needs one action on one of these resources, so that a token's grants read like
`{resource: "products/heyoo/*", actions: ["*"]}` or
`{resource: "products/heyoo/checks", actions: ["create"]}`.
"""

from gatekey.core.grants import ANY, Grant
from gatekey.core.names import ProductName, TenantName
from gatekey.core.specs import (
    AccessMode,
    Collection,
    CredentialHeader,
    Lifetime,
    MachineUserPolicy,
    ProductSpec,
    RestrictedPolicy,
    RestrictedScope,
    Role,
    SecretKeyPolicy,
)

PRODUCT = ProductName("gatekey")
SYSTEM_TENANT = TenantName(PRODUCT.product, "system")
TOKEN_PREFIX = "gk_"  # noqa: S105 - how tokens start

SPEC_VERSION = 2
"""Raised with every change of `SPEC`; a server never replaces a newer release's spec with its own."""

SPEC = ProductSpec(
    product=PRODUCT.product,
    display_name="Gatekey",
    collections=(
        Collection("products", ("apply", "get", "list", "delete")),
        Collection("products/*/checks", ("create",)),
        Collection("products/*/auditEvents", ("list",)),
        Collection(
            "products/*/tenants",
            ("create", "get", "list", "update", "suspend", "resume", "delete", "undelete"),
        ),
        Collection("products/*/tenants/*/auditEvents", ("list",)),
        Collection("products/*/tenants/*/members", ("create", "get", "list", "update", "delete")),
        Collection("products/*/tenants/*/machineUsers", ("create", "get", "list", "update", "delete")),
        Collection(
            "products/*/tenants/*/apiKeys",
            (
                "create",
                "get",
                "list",
                "identify",
                "update",
                "disable",
                "enable",
                "revoke",
                "rotate",
                "delete",
            ),
        ),
    ),
    read_actions=("get", "list"),
    roles=(Role("admin", (Grant(ANY, (ANY,)),), owner=True),),
    secret_keys=SecretKeyPolicy(
        prefix=TOKEN_PREFIX,
        modes=(AccessMode.RESTRICTED, AccessMode.READ_ONLY, AccessMode.ALL),
        # A token for which nothing was chosen is refused rather than made all-powerful.
        default_mode=AccessMode.RESTRICTED,
        restricted=RestrictedPolicy(RestrictedScope.RESOURCES, (Grant(ANY, (ANY,)),)),
    ),
    machine_users=MachineUserPolicy(role="admin", lifetime=Lifetime.BOUND_TO_KEYS),
    credential=CredentialHeader("authorization", "Bearer"),
)
