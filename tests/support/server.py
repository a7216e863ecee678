"""A real server process, and a client of it made of the generated stubs."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import grpc
from gatekey.v1 import (
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    audit_service_pb2_grpc,
    check_service_pb2,
    check_service_pb2_grpc,
    machine_user_service_pb2_grpc,
    member_service_pb2,
    member_service_pb2_grpc,
    product_service_pb2,
    product_service_pb2_grpc,
    product_spec_pb2,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
    types_pb2,
)
from google.protobuf import any_pb2, json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PRODUCTS = tuple(sorted(path.stem for path in EXAMPLES.glob("*.yaml")))
GATEKEY = (sys.executable, "-c", "from gatekey_command import main; main()")

Rpc: TypeAlias = Callable[..., Awaitable[Any]]
"""A method of a stub, for tables of methods that take different requests."""

PEPPERS = "1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

_MODES = {"bitsy": "RESTRICTED", "formbox": "ALL", "heyoo": "ALL"}

_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 30


def read_example(product: str) -> product_spec_pb2.ProductSpec:
    """One of the example specs."""
    document = YAML(typ="safe", pure=True).load(EXAMPLES / f"{product}.yaml")
    return json_format.ParseDict(document, product_spec_pb2.ProductSpec())


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without its own Gatekey variables, and with the given ones."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GATEKEY_")}
    return {**inherited, "PYTHONUNBUFFERED": "1", **variables}


class ServerProcess:
    """`gatekey serve`, started by us and stopped by us, by its pid."""

    command: ClassVar[tuple[str, ...]] = GATEKEY

    started: ClassVar[list["ServerProcess"]] = []
    """All that were started, so that none outlives the tests when one of them fails."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, output: list[str]) -> None:
        self.process = process
        self.address = address
        self.output = output
        self._drains: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, variables: Mapping[str, str], *arguments: str, cwd: Path | None = None) -> Self:
        """Start a server and wait until it answers."""
        process = await asyncio.create_subprocess_exec(
            *cls.command,
            "serve",
            *arguments,
            env=environment(**{"GATEKEY_LISTEN": "127.0.0.1:0", "GATEKEY_LOG_FORMAT": "json", **variables}),
            cwd=cwd,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        server = cls(process, "", [])
        cls.started.append(server)
        server._drains.append(asyncio.create_task(server._drain(process.stderr)))
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                server.address = await server._read_address()
        except BaseException:
            await server.kill()
            raise
        server._drains.append(asyncio.create_task(server._drain(process.stdout)))
        return server

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask the server to stop, and wait for it. Answers its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                code = await self.process.wait()
        except TimeoutError:
            await self.kill()
            raise
        await asyncio.gather(*self._drains)
        return code

    async def kill(self) -> None:
        """Kill the server without warning."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await asyncio.gather(*self._drains)

    async def _read_address(self) -> str:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            text = line.decode()
            self.output.append(text)
            if text.startswith("Gatekey serves on "):
                return text.split()[-1]
        await asyncio.gather(*self._drains)
        raise AssertionError(f"the server did not start: {''.join(self.output)}")

    async def _drain(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        async for line in stream:
            self.output.append(line.decode())


@dataclass(frozen=True)
class Problem:
    """An error as a client sees it."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    fields: dict[str, str]
    """The reason of each field violation, by field."""


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it: of a `Struct`, its fields and their plain values."""
    return json_format.MessageToDict(message)


def problem_of(error: grpc.RpcError) -> Problem:
    """Unpack an error; one without details has an empty reason."""
    assert isinstance(error, grpc.aio.AioRpcError)
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value if isinstance(value, bytes) else value.encode())
    info = _unpack(status, error_details_pb2.ErrorInfo())
    bad_request = _unpack(status, error_details_pb2.BadRequest())
    if status.details:
        assert info.domain == "gatekey"
        assert status.code == error.code().value[0]
    return Problem(
        error.code(),
        error.details() or "",
        info.reason,
        dict(info.metadata),
        {violation.field: violation.reason for violation in bad_request.field_violations},
    )


def _unpack(status: status_pb2.Status, message: Any) -> Any:
    for detail in status.details:
        assert isinstance(detail, any_pb2.Any)
        detail.Unpack(message)
    return message


class Client:
    """All stubs over one connection, with a service token; over TLS with `credentials`."""

    def __init__(self, address: str, token: str | None, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.address = address
        self.token = token
        interceptors = [_Authorize(token)]
        # Else clients of the same server share a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, options, interceptors=interceptors)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, options, interceptors=interceptors)
        self.checks = check_service_pb2_grpc.CheckServiceStub(self.channel)
        self.products = product_service_pb2_grpc.ProductServiceStub(self.channel)
        self.tenants = tenant_service_pb2_grpc.TenantServiceStub(self.channel)
        self.members = member_service_pb2_grpc.MemberServiceStub(self.channel)
        self.machine_users = machine_user_service_pb2_grpc.MachineUserServiceStub(self.channel)
        self.keys = api_key_service_pb2_grpc.ApiKeyServiceStub(self.channel)
        self.audit = audit_service_pb2_grpc.AuditServiceStub(self.channel)

    async def close(self) -> None:
        """Close the connection."""
        await self.channel.close()

    async def check(
        self, key: str, resource: str, action: str, tenant: str | None = None
    ) -> check_service_pb2.CheckResponse:
        """Check a key."""
        request = check_service_pb2.CheckRequest(key=key, resource=resource, action=action, tenant=tenant)
        response: check_service_pb2.CheckResponse = await self.checks.Check(request, timeout=10)
        return response

    async def verdict(self, key: str, resource: str, action: str, tenant: str | None = None) -> str:
        """The reason of a check's answer, without its prefix. Proves that only ALLOWED allows."""
        response = await self.check(key, resource, action, tenant)
        name = check_service_pb2.CheckResponse.Reason.Name(response.reason).removeprefix("REASON_")
        assert response.allowed == (name == "ALLOWED")
        return name

    async def apply(self, spec: product_spec_pb2.ProductSpec, *, force: bool = False) -> product_service_pb2.Product:
        """Apply a spec."""
        request = product_service_pb2.ApplyProductRequest(spec=spec, force=force)
        product: product_service_pb2.Product = await self.products.ApplyProduct(request, timeout=10)
        return product

    async def create_tenant(self, product: str, tenant: str) -> str:
        """Create a tenant; answers its name."""
        request = tenant_service_pb2.CreateTenantRequest(parent=f"products/{product}", tenant_id=tenant)
        return (await self.tenants.CreateTenant(request, timeout=10)).name

    async def add_member(self, tenant: str, member: str, role: str) -> str:
        """Add a member; answers its name."""
        request = member_service_pb2.AddMemberRequest(
            parent=tenant, member_id=member, member=member_service_pb2.Member(role=role)
        )
        return (await self.members.AddMember(request, timeout=10)).name

    async def create_key(
        self,
        tenant: str,
        owner: str = "",
        *,
        name: str = "Key",
        mode: str | None = None,
        kind: str = "UNSPECIFIED",
        grants: Mapping[str, list[str]] | None = None,
        new_machine_user: bool = False,
        **fields: Any,
    ) -> api_key_service_pb2.CreateApiKeyResponse:
        """Create a key; where no mode is given, the default that tests have for products that have none."""
        if mode is None:
            mode = "UNSPECIFIED" if kind == "PUBLISHABLE" else _MODES.get(tenant.split("/")[1], "UNSPECIFIED")
        request = api_key_service_pb2.CreateApiKeyRequest(
            parent=tenant,
            api_key=api_key_service_pb2.ApiKey(
                display_name=name,
                owner=owner,
                mode=types_pb2.AccessMode.Value(f"ACCESS_MODE_{mode}"),
                kind=types_pb2.KeyKind.Value(f"KEY_KIND_{kind}"),
                grants=[types_pb2.Grant(resource=r, actions=a) for r, a in (grants or {}).items()],
                **fields,
            ),
        )
        if new_machine_user:
            request.new_machine_user.SetInParent()
        response: api_key_service_pb2.CreateApiKeyResponse = await self.keys.CreateApiKey(request, timeout=10)
        return response

    async def create_token(self, grants: Mapping[str, list[str]]) -> str:
        """Create a service token with these grants; answers it."""
        created = await self.create_key(
            "products/gatekey/tenants/system", name="Token", mode="RESTRICTED", grants=grants, new_machine_user=True
        )
        return created.secret

    def with_token(self, token: str | None) -> "Client":
        """A second client of the same server, with another token. To be closed by the caller."""
        return Client(self.address, token)


class _Authorize(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, token: str | None) -> None:
        self._token = token

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        if self._token is not None:
            metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()))
            metadata.add("authorization", f"Bearer {self._token}")
            client_call_details = client_call_details._replace(metadata=metadata)
        return await continuation(client_call_details, request)
