"""A server under random calls, bytes and specs, and what it did wrong."""

import asyncio
import base64
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import grpc
from gatekey.core.secrets import new_secret
from gatekey.v1 import (
    api_key_service_pb2,
    check_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    tenant_service_pb2,
    types_pb2,
)
from gatekey.v1.product_spec_pb2 import MachineUserPolicy, ProductSpec
from gatekey_server.rpc.server import SERVICES
from google.protobuf import text_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from tests.fuzz import judge, sockets, specs
from tests.fuzz.judge import Answer
from tests.fuzz.messages import Maker, Words
from tests.support.server import EXAMPLES, PEPPERS, PRODUCTS, Client, ServerProcess, read_example

METHODS = [method for service in SERVICES.values() for method in service.methods]
KEPT = "kept"
"""A product that no random call names."""

_CALL_TIMEOUT_S = 20
_AT_A_TIME = 8
_RENEW_EVERY = 100
"""After how many rounds what random calls have removed is made again."""
_LOOK_EVERY = 10
"""After how many rounds it is looked whether others are still served."""
_SERVED_WITHIN_S = 5
_READ_S, _READ_S_PER_BYTE = 8.0, 100 / (1 << 20)
"""How long the reading of a spec may take, on a busy machine: what is nested deeply takes ruamel.yaml 4 s at most."""


@dataclass(frozen=True)
class Caller:
    """With what metadata somebody calls."""

    name: str
    metadata: tuple[tuple[str, str], ...]
    identified: bool


@dataclass(frozen=True)
class Finding:
    """Something that must not be."""

    what: str
    where: str
    request: str
    """As text."""
    data: bytes = b""
    """As it was sent."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n{self.request}"

    def save(self, directory: Path, number: int) -> None:
        """Write it down, and what was sent beside it."""
        directory.mkdir(parents=True, exist_ok=True)
        name = f"{number:03}-{self.where.split()[0].replace('/', '.').strip('.')}"
        (directory / f"{name}.txt").write_text(f"{self}\n")
        (directory / f"{name}.bin").write_bytes(self.data)


@dataclass
class Result:
    """What a campaign did and found."""

    sent: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    """By method and status."""
    findings: list[Finding] = field(default_factory=list)

    def summary(self) -> str:
        """For people."""
        codes: Counter[str] = Counter()
        for answer, count in self.answers.items():
            codes[answer.rpartition(" ")[2]] += count
        done = {answer.split()[0] for answer in self.answers if answer.endswith(" OK")}
        never = sorted({method.name for method in METHODS} - done) if self.sent["messages"] else []
        return "\n".join(
            (
                ", ".join(f"{count} {what}" for what, count in sorted(self.sent.items())),
                ", ".join(f"{code} {count}" for code, count in codes.most_common()),
                f"never answered OK: {', '.join(never) or 'none'}",
                f"{len(self.findings)} findings",
            )
        )


class Campaign:
    """Random calls, bytes and specs against one server."""

    def __init__(self, server: ServerProcess, root: Client, rng: random.Random, result: Result) -> None:
        assert root.token is not None
        self._server = server
        self._root = root
        self._rng = rng
        self.result = result
        self._log_read = 0
        self._rounds = 0
        self.words = Words(keep_from=(f"products/{KEPT}", "products/gatekey/tenants"))
        self._maker = Maker(rng, self.words, [*map(_spec, PRODUCTS), *_requests()])
        self._bytes = sockets.Bytes(rng, root.token)
        self._specs = specs.Specs(rng, [(EXAMPLES / f"{product}.yaml").read_text() for product in PRODUCTS])
        self._channel = grpc.aio.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
        self._kept_key = ""
        self._callers: list[Caller] = []
        self._weights: list[int] = []
        self.secrets = {root.token}
        """What must not be logged, nor told in errors."""

    @classmethod
    @asynccontextmanager
    async def against(cls, server: ServerProcess, token: str, seed: int) -> AsyncIterator[Self]:
        """Prepare a server that is for this alone."""
        root = Client(server.address, token)
        campaign = cls(server, root, random.Random(seed), Result())
        try:
            await campaign._prepare()
            yield campaign
        finally:
            await campaign._channel.close()
            await root.close()

    async def _prepare(self) -> None:
        kept = read_example("heyoo")
        kept.product, kept.secret_keys.prefix = KEPT, "kept_"
        await self._root.apply(kept)
        tenant = await self._root.create_tenant(KEPT, "acme")
        owner = await self._root.add_member(tenant, "owner", "owner")
        self._kept_key = (await self._root.create_key(tenant, owner, mode="ALL")).secret
        await self._renew()
        limited = await self._root.create_token({"products/heyoo/checks": ["create"]})
        gone = await self._root.create_key(
            "products/gatekey/tenants/system", mode="RESTRICTED", grants={"products": ["list"]}, new_machine_user=True
        )
        await self._root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=gone.api_key.name))
        self.secrets |= {limited, gone.secret, self._kept_key}
        self._add_callers(limited, gone.secret)
        words = self.words
        words.add("name", "products/heyoo", "products/gatekey", "products/bitsy/checkConfig", "products/-/checkConfig")
        words.add("secret", self._kept_key, limited, new_secret("hey_"), new_secret("gk_"), "hey_x", "x")
        words.add("token", "x", base64.urlsafe_b64encode(b"0123456789ab" + b"a\0b").decode())
        words.add("etag", "x", '"1"', "0" * 40)
        words.add(
            "id", *PRODUCTS, "acme", "other", "owner", "somebody", "new", "gatekey", "system", "robot", "me@x.com"
        )
        words.add("action", "read", "write", "create", "delete", "*", "list", "update", "send", "apply")
        words.add("verb", "CreateApiKey", "ApplyProduct", "x")
        words.add("mask", "*", "display_name", "role", "description", "labels", "mode", "grants", "expire_time")
        words.add("prefix", "new_", "hey_", "x_", "gk_", "kept_")
        words.add("header", "authorization", "x-api-key", "Bearer", "Basic")
        for product in PRODUCTS:
            spec = read_example(product)
            words.add("role", *(role.role for role in spec.roles))
            for collection in spec.collections:
                pattern = collection.pattern
                words.add("resource", pattern, pattern.replace("*", "x"), f"{pattern.replace('*', 'x')}/y")
                words.add("action", *collection.actions)
        words.add("resource", "*")

    def _add_callers(self, limited: str, gone: str) -> None:
        root = ("authorization", f"Bearer {self._root.token}")
        actors = (
            *("products/heyoo/tenants/acme/members/owner", "products/bitsy/tenants/acme/members/somebody"),
            *("x", "products/heyoo/tenants/acme/machineUsers/robot", "a" * 3000, "products/-/tenants/-/members/-"),
        )
        callers: list[tuple[int, Caller]] = [
            (40, Caller("root", (root,), True)),
            (5, Caller("limited", (("authorization", f"bearer  {limited} "),), True)),
            (1, Caller("root, waiting", (root, ("gatekey-wait", self._rng.choice(("everywhere", "x")))), True)),
            (1, Caller("root, two actors", (root, *(("gatekey-actor", actor) for actor in actors[:2])), True)),
            *((1, Caller(f"root for {actor[:60]}", (root, ("gatekey-actor", actor)), True)) for actor in actors),
            (1, Caller("nobody", (), False)),
            (1, Caller("revoked", (("authorization", f"Bearer {gone}"),), False)),
            (1, Caller("a key of a product", (("authorization", f"Bearer {self._kept_key}"),), False)),
            *(
                (1, Caller(f"authorization {text!r}", (("authorization", text),), False))
                for text in (
                    "",
                    "Bearer",
                    "Bearer ",
                    f"Basic {self._root.token}",
                    f"Bearer {self._root.token}x",
                    "Bearer " + "x" * 4000,
                )
            ),
            (1, Caller("root, twice", (root, root), False)),
        ]
        self._weights, self._callers = [weight for weight, _ in callers], [caller for _, caller in callers]

    async def _renew(self) -> None:
        """Make what random calls work with, where it is no more."""
        root = self._root
        for product in PRODUCTS:
            with suppress(grpc.RpcError):
                await root.products.ApplyProduct(
                    product_service_pb2.ApplyProductRequest(spec=_spec(product), force=True), timeout=10
                )
            role = next((role.role for role in read_example(product).roles if role.owner), "owner")
            for tenant in ("acme", "other"):
                name = f"products/{product}/tenants/{tenant}"
                with suppress(grpc.RpcError):
                    await root.create_tenant(product, tenant)
                for member in ("owner", "somebody"):
                    with suppress(grpc.RpcError):
                        await root.add_member(name, member, role)
                with suppress(grpc.RpcError):
                    await root.machine_users.CreateMachineUser(
                        machine_user_service_pb2.CreateMachineUserRequest(parent=name, machine_user_id="robot"),
                        timeout=10,
                    )
                for mode in ("ALL", "READ_ONLY"):
                    with suppress(grpc.RpcError):
                        self.words.learn(await root.create_key(name, f"{name}/members/owner", mode=mode))
                    with suppress(grpc.RpcError):
                        self.words.learn(await root.create_key(name, mode=mode, new_machine_user=True))
                if not self._rounds:
                    self.words.add("name", name, *(f"{name}/members/{member}" for member in ("owner", "somebody")))
                    self.words.add("name", f"{name}/machineUsers/robot", f"products/{product}")

    # ------------------------------------------------------------ what is sent

    async def messages(self, seconds: float, most: int = 1 << 62) -> None:
        """Send random messages for so long, or so many."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.result.sent["messages"] < most:
            calls = [self._make() for _ in range(_AT_A_TIME)]
            answers = await asyncio.gather(*(self._call(*call) for call in calls))
            self.result.sent["messages"] += len(calls)
            for (method, _, caller, _), answer in zip(calls, answers, strict=True):
                self.result.answers[f"{method.name} {answer[0].code.name}"] += 1
                if answer[1] is not None and caller.identified:
                    self.words.learn(answer[1])
            await self._after_round()

    def _make(self) -> tuple[MethodDescriptor, bytes, Caller, Message | None]:
        method = self._rng.choice(METHODS)
        data, message = self._maker.request(method)
        (caller,) = self._rng.choices(self._callers, self._weights)
        return method, data, caller, message

    async def _call(
        self, method: MethodDescriptor, data: bytes, caller: Caller, message: Message | None
    ) -> tuple[Answer, Message | None]:
        path = f"/{method.containing_service.full_name}/{method.name}"
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
        reply = None
        try:
            written = await call(data, metadata=caller.metadata, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            details = trailers.get("grpc-status-details-bin", b"")
            answer = Answer(error.code(), error.details() or "", details if isinstance(details, bytes) else b"")
            found = judge.faults(answer, identified=caller.identified, secrets=self.secrets)
        else:
            answer = Answer(grpc.StatusCode.OK)
            found = judge.faults(answer, identified=caller.identified)
            try:
                reply = GetMessageClass(method.output_type).FromString(written)
            except DecodeError:
                found.append("the answer is not of the method's type")
        for what in found:
            text = repr(data[:2000]) if message is None else text_format.MessageToString(message, as_utf8=True)[:4000]
            where = f"{path} as {caller.name}"
            self._find(Finding(f"{what} ({answer.code.name} {answer.message[:500]!r})", where, text, data))
        return answer, reply

    async def sockets(self, seconds: float) -> None:
        """Send random bytes over connections for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sent = [self._bytes.damaged() for _ in range(_AT_A_TIME)]
            await asyncio.gather(*(self._send(data, self._rng.randrange(1 << 32)) for data in sent))
            self.result.sent["connections"] += len(sent)
            await self._after_round(sent)

    async def _send(self, data: bytes, seed: int) -> None:
        try:
            answer = await sockets.send(self._server.address, data, random.Random(seed))
        except OSError as error:
            self._find(Finding(f"no connection: {error}", "socket", repr(data[:2000]), data))
            return
        for secret in self.secrets:
            if secret.encode() in answer:
                self._find(Finding("a secret comes back", "socket", repr(data[:2000]), data))
        for fault in (b"Traceback", b"gatekey_server", b"asyncpg"):
            if fault in answer:
                self._find(Finding(f"{fault.decode()} comes back", "socket", repr(data[:2000]), data))

    async def specs(self, seconds: float) -> None:
        """Read damaged specs for so long, and send to the server what can be read."""
        until = time.monotonic() + seconds
        apply = SERVICES["gatekey.v1.ProductService"].methods_by_name["ApplyProduct"]
        root = self._callers[0]
        with TemporaryDirectory(prefix="gatekey-fuzz-") as directory:
            path = Path(directory, "spec.yaml")
            while time.monotonic() < until:
                data = self._specs.damaged()
                path.write_bytes(data)
                began = time.process_time()
                spec, found = specs.read(path)
                took = time.process_time() - began
                if took > _READ_S + len(data) * _READ_S_PER_BYTE:
                    found.append(f"reading takes {took:.1f} s")
                self.result.sent["specs"] += 1
                for what in found:
                    text = data[:4000].decode(errors="backslashreplace")
                    self._find(Finding(what, "spec", text, data))
                if spec is not None:
                    self.result.sent["specs that can be read"] += 1
                    request = product_service_pb2.ApplyProductRequest(spec=spec, validate_only=True, force=True)
                    await self._call(apply, request.SerializeToString(), root, request)

    # ------------------------------------------------------------ what must hold

    async def _after_round(self, sent: list[bytes] | None = None) -> None:
        self._rounds += 1
        if self._rounds % _RENEW_EVERY == 0:
            await self._renew()
        if self._rounds % _LOOK_EVERY == 0:
            await self.look(sent)

    async def look(self, sent: list[bytes] | None = None) -> None:
        """See whether the server lives and serves others, and whether its log is as it should be."""
        where = "socket" if sent else "server"
        before = b"\n----\n".join(sent or ())
        request = check_service_pb2.CheckRequest(key=self._kept_key, resource="campaigns/a", action="read")
        try:
            answer = await self._root.checks.Check(request, timeout=_SERVED_WITHIN_S)
        except grpc.RpcError as error:
            self._find(Finding(f"others are not served: {error}", where, repr(before[:2000]), before))
        else:
            if not answer.allowed:
                self._find(Finding(f"the kept key is refused: {answer}", where, repr(before[:2000]), before))
        if self._server.process.returncode is not None:
            raise ServerEnded(f"the server has ended with {self._server.process.returncode}")
        lines = self._server.output[self._log_read :]
        self._log_read += len(lines)
        for what in judge.faults_of_log(lines, self.secrets):
            self._find(Finding(what, "log", "among the calls just before"))

    def _find(self, finding: Finding) -> None:
        # One of a kind says enough.
        kind = (finding.where.split()[0], finding.what[:60])
        if kind not in {(known.where.split()[0], known.what[:60]) for known in self.result.findings}:
            self.result.findings.append(finding)


def _spec(product: str) -> ProductSpec:
    """An example; in one of them, machine users are made by themselves."""
    spec = read_example(product)
    if product == "codeqr":
        spec.machine_users.lifetime = MachineUserPolicy.LIFETIME_INDEPENDENT
    return spec


def _requests() -> Iterator[Message]:
    """Requests with several parts that have to fit together."""
    heyoo, bitsy, codeqr = (f"products/{product}/tenants/acme" for product in ("heyoo", "bitsy", "codeqr"))
    for tenant, mode in ((heyoo, types_pb2.ACCESS_MODE_ALL), (codeqr, types_pb2.ACCESS_MODE_READ_ONLY)):
        key = api_key_service_pb2.ApiKey(display_name="Key", owner=f"{tenant}/members/owner", mode=mode)
        yield api_key_service_pb2.CreateApiKeyRequest(parent=tenant, api_key=key)
    key = api_key_service_pb2.ApiKey(display_name="Key", mode=types_pb2.ACCESS_MODE_RESTRICTED)
    key.grants.add(resource="links", actions=["read"])
    key.labels["team"] = "x"
    yield api_key_service_pb2.CreateApiKeyRequest(parent=bitsy, api_key=key)
    key.grants[0].resource = "campaigns"
    yield api_key_service_pb2.CreateApiKeyRequest(
        parent=heyoo, api_key=key, new_machine_user=api_key_service_pb2.CreateApiKeyRequest.NewMachineUser()
    )
    for number in range(5):
        yield machine_user_service_pb2.CreateMachineUserRequest(
            parent=codeqr,
            machine_user_id=f"robot-{number}",
            machine_user=machine_user_service_pb2.MachineUser(display_name="Robot"),
        )
    mask, name = FieldMask(paths=["display_name"]), "Another name"
    yield tenant_service_pb2.UpdateTenantRequest(
        tenant=tenant_service_pb2.Tenant(name=heyoo, display_name=name), update_mask=mask
    )
    yield member_service_pb2.UpdateMemberRequest(
        member=member_service_pb2.Member(name=f"{heyoo}/members/somebody", display_name=name), update_mask=mask
    )
    yield machine_user_service_pb2.UpdateMachineUserRequest(
        machine_user=machine_user_service_pb2.MachineUser(name=f"{codeqr}/machineUsers/robot", display_name=name),
        update_mask=mask,
    )
    yield check_service_pb2.GetCheckConfigRequest(name="products/heyoo/checkConfig")


class ServerEnded(Exception):
    """There is nothing left to send anything to."""


def variables(database_url: str, token: str) -> Mapping[str, str]:
    """How a server for a campaign is started."""
    return {
        "GATEKEY_DATABASE_URL": database_url,
        "GATEKEY_PEPPERS": PEPPERS,
        "GATEKEY_ROOT_TOKEN": token,
        "GATEKEY_LOG_LEVEL": "debug",
    }


@contextmanager
def saved(result: Result, directory: Path | None) -> Iterator[None]:
    """Write findings down, also where the campaign breaks off."""
    try:
        yield
    finally:
        if directory is not None:
            for number, finding in enumerate(result.findings, 1):
                finding.save(directory, number)
