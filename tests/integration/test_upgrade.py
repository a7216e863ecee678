"""A database with data is migrated while the previous release is serving from it."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2, machine_user_service_pb2, member_service_pb2, types_pb2
from gatekey_server.store import schema

from tests.support.databases import Databases
from tests.support.server import PEPPERS, ROOT, Client, ServerProcess, environment, read_example

pytestmark = pytest.mark.drill

MIGRATIONS = "server/gatekey_server/store/migrations/versions"


def git(*arguments: str) -> bytes:
    """What git prints; the test is skipped where the history is not there."""
    result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"needs the repository's history: {result.stderr.decode().strip()}")
    return result.stdout


@pytest.fixture(scope="module")
def previous_release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The code as it was before the newest migration came, and the version of the schema that it needs."""
    newest = schema.newest_version()
    (file,) = (ROOT / MIGRATIONS).glob(f"{newest}_*.py")
    added = git("log", "--diff-filter=A", "--format=%H", "--", str(file.relative_to(ROOT))).decode().split()
    if not added:
        pytest.skip("the newest migration is not committed yet")
    directory = tmp_path_factory.mktemp("previous")
    archive = git("archive", f"{added[-1]}^", "server", "clients/python")
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    return directory, f"{int(newest) - 1:04}"


def path_of(directory: Path) -> str:
    """PYTHONPATH for the code in a directory, and proof that it is what runs."""
    path = f"{directory / 'server'}:{directory / 'clients' / 'python'}"
    where = subprocess.run(
        [sys.executable, "-c", "import gatekey_server; print(gatekey_server.__file__)"],
        env=environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(directory)), "the previous release is not what runs"
    return path


async def test_the_previous_release_serves_on_while_its_database_is_migrated(
    databases: Databases, previous_release: tuple[Path, str]
) -> None:
    directory, version = previous_release
    url, token = await databases.create(template="template1"), new_secret("gk_")
    variables = {"GATEKEY_DATABASE_URL": url, "GATEKEY_PEPPERS": PEPPERS, "GATEKEY_ROOT_TOKEN": token}
    await schema.migrate(url, version=version)
    path = await asyncio.to_thread(path_of, directory)
    old = await ServerProcess.start({**variables, "PYTHONPATH": path})
    client = Client(old.address, token)
    spec = read_example("heyoo")
    for role in spec.roles:
        role.ClearField("administration")
    # The previous release demands one.
    spec.secret_keys.default_mode = types_pb2.ACCESS_MODE_ALL
    await client.apply(spec)
    tenant = await client.create_tenant("heyoo", "acme")
    owner = await client.add_member(tenant, "owner", "owner")
    secrets = [(await client.create_key(tenant, owner, name=f"{number}")).secret for number in range(50)]
    stop, done = asyncio.Event(), {"checks": 0, "creations": 0}

    async def check() -> None:
        while not stop.is_set():
            for secret in secrets[:50]:
                assert await client.verdict(secret, "tags", "read") == "ALLOWED"
                done["checks"] += 1

    async def create() -> None:
        while not stop.is_set():
            created = await client.create_key(tenant, owner, new_machine_user=False)
            secrets.append(created.secret)
            await client.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant, page_size=5))
            done["creations"] += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(check())
        tasks.create_task(create())
        await asyncio.sleep(0.3)
        await schema.migrate(url)
        migrated_at = dict(done)
        for _ in range(600):
            if done["checks"] >= migrated_at["checks"] + 100 and done["creations"] >= migrated_at["creations"] + 10:
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the previous release stopped serving")
        stop.set()

    # Both releases at once, then the new one alone.
    new = await ServerProcess.start(variables)
    newer = Client(new.address, token)
    for secret in secrets:
        assert await newer.verdict(secret, "tags", "read") == "ALLOWED"
        assert await client.verdict(secret, "tags", "read") == "ALLOWED"
    created = await newer.create_key(tenant, owner, mode="READ_ONLY")
    assert await client.verdict(created.secret, "tags", "read") == "ALLOWED"
    assert await client.verdict(created.secret, "tags", "write") == "KEY_PERMISSION_MISSING"
    # What the new one removes, the old one allows nothing any more, whatever it remembers of it.
    member = await newer.add_member(tenant, "leaving", "owner")
    going = [await newer.create_key(tenant, member), await newer.create_key(tenant, new_machine_user=True)]
    for key in going:
        assert await client.verdict(key.secret, "tags", "read") == "ALLOWED"
    await newer.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member))
    await newer.machine_users.DeleteMachineUser(
        machine_user_service_pb2.DeleteMachineUserRequest(name=going[1].machine_user.name)
    )
    for key in going:
        assert await newer.verdict(key.secret, "tags", "read") == "KEY_UNKNOWN"
        assert await client.verdict(key.secret, "tags", "read") in {"KEY_UNKNOWN", "OWNER_PERMISSION_MISSING"}
    assert await client.add_member(tenant, "leaving", "owner") == member
    await newer.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=created.api_key.name))
    assert await client.verdict(created.secret, "tags", "read") == "KEY_REVOKED"
    await client.close()
    assert await old.stop() == 0
    assert "rpc.failed" not in "".join(old.output)
    await newer.close()
    assert await new.stop() == 0
