"""TLS: who may connect, who a client certificate stands for, new certificates without a restart, and bad files."""

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from gatekey.core.names import parse_key_id
from gatekey.v1 import api_key_service_pb2, tenant_service_pb2
from gatekey_server.rpc import certificates
from gatekey_server.rpc.tls import WatchedFiles
from gatekey_server.runtime import config
from google.protobuf.message import Message

from tests.support.certificates import LOCALHOST, Authority, Pair, replace
from tests.support.freshness import applied_everywhere
from tests.support.server import PEPPERS, Client, Problem, Rpc, ServerProcess, problem_of

SYSTEM = "products/gatekey/tenants/system"
TOKEN = f"{SYSTEM}/apiKeys/key_01kwz3k0000000000000000000"
SPIFFE = "spiffe://example.org/ns/shop/sa/api"

AUTHORITY, CLIENTS, STRANGER = Authority.make("servers", "clients", "stranger")
SERVER = AUTHORITY.issue(LOCALHOST, common_name="gatekey")
SHORT_KEY = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused


def dns(name: str) -> x509.DNSName:
    """A DNS name."""
    return x509.DNSName(name)


async def problem(client: Client) -> Problem:
    """How the server, or the connection to it, refuses a client."""
    with pytest.raises(grpc.RpcError) as raised:
        await client.check("nothing", "links", "read")
    return problem_of(raised.value)


async def is_served(address: str, credentials: grpc.ChannelCredentials, token: str) -> bool:
    """Whether a new connection is made, and its first check is answered."""
    client = Client(address, token, credentials)
    try:
        await client.check("nothing", "links", "read")
    except grpc.RpcError as error:
        assert problem_of(error).code == grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - the only error that may be
        return False
    else:
        return True
    finally:
        await client.close()


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds; the server looks for new files once a second."""
    for _ in range(50):
        if await condition():
            return
        await asyncio.sleep(0.2)
    pytest.fail("not within ten seconds")


def logged(server: ServerProcess, event: str) -> list[dict[str, object]]:
    """What the server has logged of a kind."""
    lines = (json.loads(line) for line in server.output if line.startswith("{"))
    return [line for line in lines if line["event"] == event]


# One server with TLS, for whichever client.


@pytest.fixture
async def secured(root: Client, database_url: str, tmp_path: Path) -> AsyncIterator[tuple[ServerProcess, Path]]:
    """A server with TLS, and the directory of its certificate."""
    certificate, key = SERVER.write(tmp_path)
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": database_url,
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_TLS_CERTIFICATE": str(certificate),
            "GATEKEY_TLS_KEY": str(key),
        }
    )
    yield server, tmp_path
    assert await server.stop() == 0
    output = "".join(server.output)
    assert "Traceback" not in output
    assert "PRIVATE KEY" not in output


async def test_only_tls_is_spoken_and_only_to_whom_trusts_the_certificate(
    secured: tuple[ServerProcess, Path], root_token: str
) -> None:
    server, _ = secured
    assert await is_served(server.address, AUTHORITY.trusted(), root_token)
    assert not await is_served(server.address, STRANGER.trusted(), root_token)
    for client, code in (
        (Client(server.address, root_token), grpc.StatusCode.UNAVAILABLE),
        (Client(server.address, None, AUTHORITY.trusted()), grpc.StatusCode.UNAUTHENTICATED),
    ):
        assert (await problem(client)).code == code
        await client.close()


@pytest.mark.slow
async def test_a_new_certificate_is_taken_up_and_a_broken_one_is_not(
    secured: tuple[ServerProcess, Path], root_token: str
) -> None:
    server, directory = secured
    newer, newest = Authority.make("newer", "newest")
    connected = Client(server.address, root_token, AUTHORITY.trusted())
    await connected.check("nothing", "links", "read")

    newer.issue(LOCALHOST).write(directory)
    await eventually(lambda: is_served(server.address, newer.trusted(), root_token))
    assert not await is_served(server.address, AUTHORITY.trusted(), root_token)
    # It does not trust the new certificate: it has never had to connect again.
    await connected.check("nothing", "links", "read")
    await connected.close()
    assert len(logged(server, "tls.reloaded")) == 1

    # A certificate whose key has not been written yet.
    later = newest.issue(LOCALHOST)
    replace(directory / "server.pem", later.certificate)
    for _ in range(4):
        assert await is_served(server.address, newer.trusted(), root_token)
        await asyncio.sleep(0.7)
    (failure,) = logged(server, "tls.reload_failed")
    assert "is not the key of the certificate" in str(failure["problems"])
    (directory / "server.pem").unlink()
    await eventually(lambda: _logs(server, newer, root_token, "No such file or directory"))

    later.write(directory)
    await eventually(lambda: is_served(server.address, newest.trusted(), root_token))
    assert len(logged(server, "tls.reloaded")) == 2
    assert len(logged(server, "tls.reload_failed")) == 2


async def _logs(server: ServerProcess, trusted: Authority, token: str, text: str) -> bool:
    assert await is_served(server.address, trusted.trusted(), token)
    return any(text in str(line["problems"]) for line in logged(server, "tls.reload_failed"))


@pytest.mark.slow
async def test_a_certificate_that_becomes_valid_later_is_taken_up_then(
    secured: tuple[ServerProcess, Path], root_token: str
) -> None:
    server, directory = secured
    (newer,) = Authority.make("newer")
    newer.issue(LOCALHOST, begins=timedelta(seconds=3)).write(directory)
    await asyncio.sleep(1.1)
    assert await is_served(server.address, AUTHORITY.trusted(), root_token)
    await eventually(lambda: is_served(server.address, newer.trusted(), root_token))
    (failure,) = logged(server, "tls.reload_failed")
    assert "is not valid before" in str(failure["problems"])


def test_files_are_looked_at_once_a_second_and_taken_up_where_they_differ(tmp_path: Path) -> None:
    now = 0.0
    certificate, key = SERVER.write(tmp_path)
    watched = WatchedFiles(certificates.Files(certificate, key, None), clock=lambda: now)
    replace(certificate, SERVER.certificate)
    now = 1.0
    assert not watched.refresh()
    AUTHORITY.issue(LOCALHOST).write(tmp_path)
    now = 1.9
    assert not watched.refresh()
    now = 2.0
    assert watched.refresh()
    now = 3.0
    assert not watched.refresh()


# One server for clients with certificates, some of whom it knows.


@dataclass(frozen=True)
class Mutual:
    """A server that asks for certificates, and the token that some of them stand for."""

    server: ServerProcess
    directory: Path
    token: str
    """Its resource name."""
    secret: str
    doomed_token: str
    second: str

    def client(self, *names: x509.GeneralName, token: str | None = None) -> Client:
        """A client with a certificate of these names."""
        return self.present(CLIENTS.issue(*names, common_name="api.example"), token)

    def present(self, certificate: Pair | None, token: str | None = None) -> Client:
        """A client with a certificate."""
        return Client(self.server.address, token, AUTHORITY.trusted(certificate))


@pytest.fixture(scope="module")
async def mutual(root: Client, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mutual]:
    """The server; it lets a token check the keys of Heyoo."""
    directory = tmp_path_factory.mktemp("mutual")
    certificate, key = SERVER.write(directory)
    replace(directory / "clients.pem", CLIENTS.pem)
    tokens = [
        await root.create_key(
            SYSTEM,
            name="API",
            mode="RESTRICTED",
            grants={"products/heyoo/checks": ["create"], **more},
            new_machine_user=True,
        )
        for more in ({}, {"products/heyoo/tenants": ["create"]}, {})
    ]
    first, second, third = (created.api_key.name for created in tokens)
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": database_url,
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_TLS_CERTIFICATE": str(certificate),
            "GATEKEY_TLS_KEY": str(key),
            "GATEKEY_TLS_CLIENT_CA": str(directory / "clients.pem"),
            "GATEKEY_TLS_CALLERS": f"api.example={first} {SPIFFE}={first},other.example={second},gone.example={third}",
        }
    )
    yield Mutual(server, directory, first, tokens[0].secret, third, second)
    assert await server.stop() == 0
    assert "Traceback" not in "".join(server.output)


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        STRANGER.issue(dns("api.example")),
        CLIENTS.issue(dns("api.example"), begins=timedelta(hours=-2), ends=timedelta(hours=-1)),
    ],
    ids=["none", "of another authority", "expired"],
)
async def test_without_a_certificate_nobody_connects(mutual: Mutual, root_token: str, certificate: Pair | None) -> None:
    client = mutual.present(certificate, root_token)
    refusal = await problem(client)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "")
    await client.close()


async def test_a_certificate_stands_for_its_key_until_the_commit(
    mutual: Mutual, root: Client, fresh_id: str, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """A rotation changes nothing for it, also while a mutation is under way; disabling the key does."""
    client, name = mutual.present(CLIENTS.issue(dns("other.example"))), mutual.second
    rotate = api_key_service_pb2.RotateApiKeyRequest(name=name)
    disable = api_key_service_pb2.DisableApiKeyRequest(name=name)
    changes: list[tuple[Rpc, Message, str]] = [
        (root.keys.RotateApiKey, rotate, ""),
        (root.keys.DisableApiKey, disable, "TOKEN_INVALID"),
    ]
    for index, (change, wanted, reason) in enumerate(changes):
        request = tenant_service_pb2.CreateTenantRequest(parent="products/heyoo", tenant_id=f"{fresh_id}-{index}")
        async with sql.transaction():
            await sql.execute("select from product where product_id = 'heyoo' for update")
            call = asyncio.ensure_future(client.tenants.CreateTenant(request, timeout=10))
            while not await sql.fetchval("select exists (select from pg_locks where not granted)"):
                await asyncio.sleep(0.005)
            await change(wanted)
        (result,) = await asyncio.gather(call, return_exceptions=True)
        assert (problem_of(result).reason if isinstance(result, grpc.RpcError) else "") == reason
    await root.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(name=name))
    await client.close()


@pytest.fixture
async def heyoo_key(root: Client, fresh_id: str) -> str:
    """A key that may do everything in Heyoo."""
    tenant = await root.create_tenant("heyoo", fresh_id)
    return (await root.create_key(tenant, await root.add_member(tenant, "owner", "owner"))).secret


@pytest.mark.parametrize("name", [dns("api.example"), x509.UniformResourceIdentifier(SPIFFE)], ids=["DNS", "URI"])
async def test_a_certificate_has_exactly_the_grants_of_its_token(
    mutual: Mutual, root: Client, fresh_id: str, heyoo_key: str, name: x509.GeneralName
) -> None:
    tenant = await root.create_tenant("tally", fresh_id)
    tally_key = (await root.create_key(tenant, await root.add_member(tenant, "owner", "admin"))).secret
    assert await root.verdict(tally_key, "invoices", "read") != "KEY_UNKNOWN"
    client = mutual.client(name, dns("unknown.example"))
    with_token = Client(root.address, mutual.secret)
    for caller in (client, with_token):
        assert await caller.verdict(heyoo_key, "campaigns", "read") == "ALLOWED"
        assert await caller.verdict(tally_key, "invoices", "read") == "KEY_UNKNOWN"
        with pytest.raises(grpc.RpcError) as raised:
            await caller.create_tenant("heyoo", "never")
        assert problem_of(raised.value).reason == "PERMISSION_MISSING"
        await caller.close()


async def test_where_there_is_a_token_the_token_decides(mutual: Mutual, root_token: str, fresh_id: str) -> None:
    client = mutual.client(dns("api.example"), token=root_token)
    await client.create_tenant("heyoo", fresh_id)
    await client.close()
    client = mutual.client(dns("api.example"), token="none")
    refusal = await problem(client)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    await client.close()


@pytest.mark.parametrize(
    "names",
    [
        (),
        (dns("apixexample"),),
        (dns("API.example"),),
        (dns("sub.api.example"),),
        (dns("*.example"),),
        (dns("api.example\0.evil"),),
        (dns(SPIFFE),),
        (x509.UniformResourceIdentifier("api.example"),),
        (x509.UniformResourceIdentifier(f"{SPIFFE}/more"),),
        (x509.RFC822Name("api.example"),),
        (LOCALHOST,),
    ],
    ids=repr,
)
async def test_a_name_counts_whole_and_by_its_kind(mutual: Mutual, names: tuple[x509.GeneralName, ...]) -> None:
    client = mutual.client(*names)
    refusal = await problem(client)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CERTIFICATE_UNKNOWN")
    await client.close()


async def test_a_certificate_for_two_tokens_is_nobodys(mutual: Mutual, heyoo_key: str) -> None:
    client = mutual.client(dns("api.example"), dns("other.example"))
    refusal = await problem(client)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CERTIFICATE_AMBIGUOUS")
    assert "'api.example', 'other.example'" in refusal.message
    await client.close()
    client = mutual.client(dns("api.example"), x509.UniformResourceIdentifier(SPIFFE))
    assert await client.verdict(heyoo_key, "campaigns", "read") == "ALLOWED"
    await client.close()


@pytest.mark.parametrize(
    ("change", "undo", "state"),
    [
        ("update api_key set disable_time = now()", "update api_key set disable_time = null", "disabled"),
        ("update api_key set revoke_time = now()", "update api_key set revoke_time = null", "revoked"),
        ("update api_key set expire_time = now()", "update api_key set expire_time = null", "expired"),
    ],
)
async def test_a_certificate_works_as_long_as_its_token(
    mutual: Mutual,
    sql: "asyncpg.Connection[asyncpg.Record]",
    heyoo_key: str,
    change: str,
    undo: str,
    state: str,
) -> None:
    key_uid = parse_key_id(mutual.token.rpartition("/")[2])
    client = mutual.client(dns("api.example"))
    await sql.execute(f"{change} where key_uid = $1", key_uid)
    await applied_everywhere(sql)
    try:
        refusal = await problem(client)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
        assert state in refusal.message
    finally:
        await sql.execute(f"{undo} where key_uid = $1", key_uid)
        await applied_everywhere(sql)
    assert await client.verdict(heyoo_key, "campaigns", "read") == "ALLOWED"
    await client.close()


async def test_a_deleted_tenant_of_tokens_has_no_callers(
    mutual: Mutual, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    client = mutual.client(dns("api.example"))
    await sql.execute("update tenant set delete_time = now() where tenant_id = 'system'")
    await applied_everywhere(sql)
    try:
        assert "deleted" in (await problem(client)).message
    finally:
        await sql.execute("update tenant set delete_time = null where tenant_id = 'system'")
        await applied_everywhere(sql)
    await client.close()


async def test_a_certificate_outlives_a_rotated_secret(
    mutual: Mutual, sql: "asyncpg.Connection[asyncpg.Record]", heyoo_key: str
) -> None:
    key_uid = parse_key_id(mutual.token.rpartition("/")[2])
    await sql.execute(
        """
        insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint, expire_time)
        select tenant_uid, key_uid, 2, sha256('old'), pepper_version, hint, now() from secret where key_uid = $1
        """,
        key_uid,
    )
    client = mutual.client(dns("api.example"))
    assert await client.verdict(heyoo_key, "campaigns", "read") == "ALLOWED"
    await client.close()


async def test_new_client_authorities_are_taken_up(mutual: Mutual, heyoo_key: str) -> None:
    (newer,) = Authority.make("newer clients")
    client = newer.issue(dns("api.example"))

    async def is_answered() -> bool:
        connected = mutual.present(client)
        try:
            return await connected.verdict(heyoo_key, "campaigns", "read") == "ALLOWED"
        except grpc.RpcError:
            return False
        finally:
            await connected.close()

    assert not await is_answered()
    replace(mutual.directory / "clients.pem", CLIENTS.pem + newer.pem)
    await eventually(is_answered)


async def test_a_certificate_ends_with_its_token(mutual: Mutual, root: Client) -> None:
    client = mutual.client(dns("gone.example"))
    await client.check("nothing", "links", "read")
    await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=mutual.doomed_token), timeout=10)
    refusal = await problem(client)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    assert mutual.doomed_token in refusal.message
    await client.close()


# What is half-configured, or would not work, is told at the start.


@dataclass(frozen=True)
class Files:
    """Good files, to be spoilt."""

    tls_certificate: Path
    tls_key: Path
    tls_client_ca: Path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """The files, and no Gatekey variables."""
    for name in [name for name in os.environ if name.startswith("GATEKEY_")]:
        monkeypatch.delenv(name)
    certificate, key = SERVER.write(tmp_path)
    replace(tmp_path / "clients.pem", CLIENTS.pem)
    return Files(certificate, key, tmp_path / "clients.pem")


def problems(**settings: Any) -> list[str]:
    """What is wrong with settings."""
    try:
        config.load({}, **settings)
    except config.ConfigError as error:
        return error.problems
    return []


def test_whole_configurations_are_accepted(files: Files) -> None:
    everything = dataclasses.asdict(files)
    assert problems(**everything, tls_callers=f"api.example={TOKEN}", listen="0.0.0.0:50051") == []
    assert problems(tls_certificate=files.tls_certificate, tls_key=files.tls_key, listen="0.0.0.0:50051") == []
    assert problems(listen="0.0.0.0:50051", insecure=True) == []
    assert [problems(listen=f"{host}:0") for host in ("localhost", "127.0.0.9", "[::1]")] == [[], [], []]


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:1", "gatekey.example:1", "[::ffff:127.0.0.1]:1"]
)
def test_other_machines_are_not_served_in_plain_text(files: Files, listen: str) -> None:
    (line,) = problems(listen=listen)
    assert line.startswith(f"GATEKEY_LISTEN: {listen} serves other machines")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["tls_certificate"], ["GATEKEY_TLS_KEY is required with GATEKEY_TLS_CERTIFICATE"]),
        (["tls_key"], ["GATEKEY_TLS_CERTIFICATE is required with GATEKEY_TLS_KEY"]),
        (
            ["tls_client_ca"],
            ["GATEKEY_TLS_CERTIFICATE and GATEKEY_TLS_KEY are required with GATEKEY_TLS_CLIENT_CA"],
        ),
        (["tls_callers"], ["GATEKEY_TLS_CLIENT_CA is required with GATEKEY_TLS_CALLERS"]),
        (
            ["tls_certificate", "tls_key", "tls_callers"],
            ["GATEKEY_TLS_CLIENT_CA is required with GATEKEY_TLS_CALLERS"],
        ),
        (
            ["tls_certificate", "tls_client_ca", "insecure"],
            ["GATEKEY_TLS_KEY is required with GATEKEY_TLS_CERTIFICATE", "GATEKEY_INSECURE is true"],
        ),
    ],
    ids=repr,
)
def test_half_a_configuration_is_refused(files: Files, given: list[str], expected: list[str]) -> None:
    values = {**dataclasses.asdict(files), "tls_callers": f"api.example={TOKEN}", "insecure": True}
    found = problems(**{name: values[name] for name in given})
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def _spoil_mode(mode: int) -> Callable[[Files], None]:
    return lambda files: files.tls_key.chmod(mode)


def _write(field: str, data: bytes) -> Callable[[Files], None]:
    return lambda files: replace(getattr(files, field), data)


def _with_key(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> Callable[[Files], None]:
    def spoil(files: Files) -> None:
        AUTHORITY.issue(LOCALHOST, key=key).write(files.tls_key.parent)

    return spoil


def _encrypt(files: Files) -> None:
    key = load_pem_private_key(SERVER.key, None)
    replace(files.tls_key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2")))


def _directory(files: Files) -> None:
    files.tls_client_ca.unlink()
    files.tls_client_ca.mkdir()


def _date(begins: int, ends: int) -> Callable[[Files], None]:
    def spoil(files: Files) -> None:
        pair = AUTHORITY.issue(LOCALHOST, begins=timedelta(hours=begins), ends=timedelta(hours=ends))
        pair.write(files.tls_key.parent)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda files: files.tls_certificate.unlink(), "CERTIFICATE: {tls_certificate}: No such file or directory"),
        (lambda files: files.tls_key.unlink(), "KEY: {tls_key}: No such file or directory"),
        (lambda files: files.tls_client_ca.unlink(), "CLIENT_CA: {tls_client_ca}: No such file or directory"),
        (_directory, "CLIENT_CA: {tls_client_ca}: Is a directory"),
        (_write("tls_certificate", b""), "CERTIFICATE: {tls_certificate} is empty"),
        (_write("tls_certificate", SERVER.key), "CERTIFICATE: {tls_certificate} holds no certificate in PEM form"),
        (_write("tls_certificate", SERVER.certificate[:200]), "CERTIFICATE: {tls_certificate} holds no certificate"),
        (_date(-2, -1), "CERTIFICATE: {tls_certificate} has expired at "),
        (_date(1, 2), "CERTIFICATE: {tls_certificate} is not valid before "),
        (_write("tls_key", b" \n"), "KEY: {tls_key} is empty"),
        (_write("tls_key", SERVER.certificate), "KEY: {tls_key} holds no private key in PEM form"),
        (_write("tls_key", SERVER.key[:100]), "KEY: {tls_key} holds no private key in PEM form"),
        (_write("tls_key", AUTHORITY.issue().key), "KEY: {tls_key} is not the key of the certificate"),
        (_encrypt, "KEY: {tls_key} is encrypted"),
        (_spoil_mode(0o604), "KEY: {tls_key} has the mode 0604"),
        (_spoil_mode(0o640), "KEY: {tls_key} has the mode 0640"),
        (_with_key(ed25519.Ed25519PrivateKey.generate()), "KEY: {tls_key} is neither an RSA key of 2048 bits"),
        (_with_key(ec.generate_private_key(ec.SECP521R1())), "KEY: {tls_key} is neither an RSA key of 2048 bits"),
        (_with_key(SHORT_KEY), "KEY: {tls_key} is neither an RSA key of 2048 bits"),
        (_write("tls_client_ca", b""), "CLIENT_CA: {tls_client_ca} is empty"),
        (_write("tls_client_ca", b"clients"), "CLIENT_CA: {tls_client_ca} holds no certificate in PEM form"),
    ],
)
def test_files_that_would_not_work_are_refused(files: Files, spoil: Callable[[Files], None], expected: str) -> None:
    spoil(files)
    (line,) = problems(**dataclasses.asdict(files))
    assert line.startswith("GATEKEY_TLS_" + expected.format(**dataclasses.asdict(files)))
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (" , ", "there is no caller"),
        ("api.example", "entry 1 is not NAME=TOKEN"),
        (f"a.example={TOKEN},api.example:gk_x", "entry 2 is not NAME=TOKEN"),
        (f"={TOKEN}", "entry 1 has neither a URI nor a DNS name"),
        (f"*.example={TOKEN}", "entry 1 has neither a URI nor a DNS name"),
        (f"a..example={TOKEN}", "entry 1 has neither a URI nor a DNS name"),
        (f"bücher.example={TOKEN}", "entry 1 has neither a URI nor a DNS name"),
        (f"a.example={TOKEN} a.example={TOKEN}", "entry 2 names a.example, which was named before"),
        ("api.example=gk_secret", "entry 1 names no service token"),
        (f"api.example={TOKEN}x", "entry 1 names no service token"),
        (f"api.example={TOKEN.replace('gatekey', 'heyoo')}", "entry 1 names no service token"),
    ],
)
def test_a_mapping_that_cannot_be_read_is_refused(files: Files, mapping: str, expected: str) -> None:
    (line,) = problems(**dataclasses.asdict(files), tls_callers=mapping)
    assert line.startswith(f"GATEKEY_TLS_CALLERS: {expected}")
    assert "secret" not in line


def test_a_uri_may_hold_what_separates_names_from_tokens() -> None:
    uri = "https://example.org/api?kind=web"
    (name,) = config.parse_tls_callers(f"{uri}={TOKEN}")
    assert name == x509.UniformResourceIdentifier(uri)


async def test_a_server_tells_all_problems_at_once_and_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the server did not start") as raised:
        await ServerProcess.start(
            {
                "GATEKEY_DATA_DIR": str(tmp_path),
                "GATEKEY_LISTEN": "nowhere",
                "GATEKEY_TLS_KEY": str(tmp_path / "none"),
                "GATEKEY_TLS_CALLERS": "x",
                "GATEKEY_INSECURE": "true",
            }
        )
    text = str(raised.value)
    for expected in (
        "GATEKEY_LISTEN: is not HOST:PORT",
        "GATEKEY_TLS_CALLERS: entry 1 is not NAME=TOKEN",
        "GATEKEY_TLS_CERTIFICATE is required with GATEKEY_TLS_KEY",
        "GATEKEY_TLS_CLIENT_CA is required with GATEKEY_TLS_CALLERS",
        "GATEKEY_INSECURE is true, but",
        f"GATEKEY_TLS_KEY: {tmp_path / 'none'}: No such file or directory",
    ):
        assert expected in text
    assert "Traceback" not in text
    assert not (tmp_path / "postgres").exists()


def test_migrations_need_nothing_of_tls(files: Files) -> None:
    config.load({}, serving=False, listen="0.0.0.0:50051", tls_certificate=Path("/no/such/file"))
