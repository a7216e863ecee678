"""The initial data of a deployment: the fingerprints of its peppers, the built-in product, a root token."""

import secrets
from collections.abc import Callable
from datetime import datetime

from gatekey.core import builtin, specs
from gatekey.core.errors import FailedPrecondition
from gatekey.core.names import MachineUserName
from gatekey.core.secrets import Keyring, SealedSecret
from gatekey.core.specs import AccessMode, KeyKind

from gatekey_server.commands.api_keys import new_uid
from gatekey_server.store import api_keys, principals, products, service, tenants
from gatekey_server.store.database import Connection, Database


async def prepare(database: Database, keyring: Keyring) -> bool:
    """Check the peppers, and upgrade the built-in product to this release.

    Returns whether this is the first start. Raises `FailedPrecondition` (`PEPPER_MISSING`,
    `PEPPER_MISMATCH`): under other peppers than before, every key would be unknown.
    """

    async def work(connection: Connection) -> bool:
        await service.lock_bootstrap(connection)
        await _check_peppers(connection, keyring)
        await _apply_built_in(connection)
        tenant = await tenants.insert(connection, builtin.SYSTEM_TENANT, "Service tokens")
        return tenant is not None

    return await database.transaction(work)


async def add_root_token(database: Database, seal: Callable[[str], SealedSecret], now: datetime) -> bool:
    """Store a token that may do everything. Returns False where that token is stored already."""

    async def work(connection: Connection) -> bool:
        await service.lock_bootstrap(connection)
        tenant = await tenants.lock(connection, builtin.SYSTEM_TENANT)
        if tenant is None:
            raise AssertionError("the deployment was not prepared")
        sealed = seal(builtin.TOKEN_PREFIX)
        if await service.secret_exists(connection, [sealed.digest]):
            return False
        name = MachineUserName(builtin.SYSTEM_TENANT, f"root-{secrets.token_hex(4)}")
        owner = await principals.insert(connection, tenant, name, role=None, display_name="Root")
        await api_keys.insert(
            connection,
            tenant,
            new_uid(now),
            owner=owner,
            display_name="Root token",
            kind=KeyKind.SECRET,
            mode=AccessMode.ALL,
            grants=(),
            expire_time=None,
            secret=sealed,
        )
        return True

    return await database.transaction(work)


async def _check_peppers(connection: Connection, keyring: Keyring) -> None:
    known = await service.pepper_fingerprints(connection)
    missing = sorted(set(known) - set(keyring.versions))
    if missing:
        raise FailedPrecondition(
            "PEPPER_MISSING", f"secrets were sealed under pepper {missing[0]}, which is not configured"
        )
    for version in sorted(keyring.versions):
        fingerprint = keyring.fingerprint(version)
        if known.get(version, fingerprint) != fingerprint:
            raise FailedPrecondition(
                "PEPPER_MISMATCH", f"pepper {version} is not the one that secrets were sealed under"
            )
        if version not in known:
            await service.add_pepper(connection, version, fingerprint)


async def _apply_built_in(connection: Connection) -> None:
    spec = builtin.SPEC
    specs.validate(spec)
    before = await products.lock(connection, builtin.PRODUCT)
    if before is None:
        await products.insert(connection, spec, spec_version=builtin.SPEC_VERSION, built_in=True)
    elif before.spec_version >= builtin.SPEC_VERSION:
        return
    else:
        await products.update_spec(connection, spec, builtin.SPEC_VERSION)
    await products.claim_prefixes(connection, spec)
