"""`CheckService` on the wire."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial

from gatekey.core.decisions import ALLOWED, PrincipalKind, Request
from gatekey.core.entities import Product
from gatekey.core.errors import DomainError, InvalidRequest
from gatekey.core.grants import parse_action, parse_path
from gatekey.core.names import CheckConfigName, parse_id
from gatekey.core.secrets import Keyring, Secret
from gatekey.v1 import check_service_pb2 as pb
from gatekey.wire.conversions import KEY_KIND, REASON
from gatekey.wire.specs import write_spec

from gatekey_server.authorization import callers
from gatekey_server.authorization.callers import Caller
from gatekey_server.background.uses import UsageRecorder
from gatekey_server.commands import checks, products
from gatekey_server.commands.checks import Checking, CheckResult, Question
from gatekey_server.freshness.snapshot_source import SnapshotSource
from gatekey_server.rpc import batches, errors
from gatekey_server.rpc.context import Clock, Later, Token
from gatekey_server.rpc.repeats import Repeats
from gatekey_server.store import pauses
from gatekey_server.store.database import Database

MAX_CHECKS = 1000

MAX_CHECKS_AT_ONCE = 128
MAX_AT_ONCE_BYTES = 32 << 10
"""Batches up to this size are decoded without a pause, which takes some milliseconds."""

_PEOPLE = {PrincipalKind.MEMBER: "members", PrincipalKind.MACHINE_USER: "machineUsers"}


class CheckServicer:
    """Serves checks. The caller and the keys are looked up together."""

    def __init__(
        self,
        database: Database,
        snapshots: SnapshotSource,
        keyring: Keyring,
        clock: Clock,
        usage: UsageRecorder,
        token_of: Callable[[str], Token],
    ) -> None:
        self._database = database
        self._snapshots = snapshots
        self._keyring = keyring
        self._clock = clock
        self._usage = usage
        self._token_of = token_of
        self._repeats = Repeats(snapshots, usage, _write_without_revision)

    def check_at_once(self, data: bytes, authorization: str) -> bytes | Later | None:
        """Answer a check by what is remembered, or once its snapshots are loaded; None where even that must wait."""
        names, now = self._repeats.names(authorization), self._clock()
        name = names(data)
        said = self._repeats.say_again((name,), now)
        if said is not None:
            return said[0]
        token = self._token_of(authorization).digests
        question = _read(pb.CheckRequest.FromString(data), self._keyring.digests)
        checking = checks.begin(self._snapshots, token, (question,), now)
        if checking is None:
            return None
        if checking.loading is not None:
            return Later(checking.loading, partial(self._answer_later, checking))
        caller, decided = checking.result()
        results = list(decided)
        self._remember((name,), token, caller, (question,), results)
        return self._answer(caller, results).SerializeToString()

    async def _answer_later(self, checking: Checking) -> pb.CheckResponse:
        caller, results = checking.result()
        return self._answer(caller, list(results))

    async def Check(self, request: pb.CheckRequest, token: Token) -> pb.CheckResponse:  # noqa: N802
        """See the protocol definition."""
        question = _read(request, self._keyring.digests)
        return self._answer(*await checks.check_each(self._snapshots, token.digests, (question,), self._clock()))

    def _answer(self, caller: Caller, results: Sequence[CheckResult | DomainError]) -> pb.CheckResponse:
        (result,) = results
        if isinstance(result, DomainError):
            raise result
        self._record(caller, (result,))
        return _write(result)

    def batch_check_at_once(self, data: bytes, authorization: str) -> bytes | Later | None:
        """Answer a batch as `check_at_once` answers a check, if it is none of the largest."""
        if len(data) > MAX_AT_ONCE_BYTES:
            return None
        name, now, parts = self._repeats.names(authorization), self._clock(), batches.split(data, MAX_CHECKS_AT_ONCE)
        if not parts:
            return None
        names = list(map(name, parts))
        said = self._repeats.say_again(names, now)
        if said is not None:
            return b"".join([piece for answer in said for piece in (batches.head(len(answer)), answer)])
        token = self._token_of(authorization).digests
        batch = _Batch(list(_read_each(pb.BatchCheckRequest.FromString(data), self._keyring.digests)))
        checking = checks.begin(self._snapshots, token, batch.questions, now)
        if checking is None:
            return None
        if not checking.is_quick:
            return Later(checking.loading, partial(self._answer_batch_later, batch, checking))
        caller, decided = checking.result()
        results = list(decided)
        if len(results) == len(names):
            self._remember(names, token, caller, batch.questions, results)
        self._record(caller, results)
        return pb.BatchCheckResponse(results=batch.write(results)).SerializeToString()

    async def _answer_batch_later(self, batch: "_Batch", checking: Checking) -> pb.BatchCheckResponse:
        caller, results = checking.result()
        return await self._answer_batch(batch, caller, await pauses.each(results))

    async def BatchCheck(self, request: pb.BatchCheckRequest, token: Token) -> pb.BatchCheckResponse:  # noqa: N802
        """See the protocol definition."""
        batch = _Batch(await pauses.each(_read_each(request, self._keyring.digests)))
        decided = await checks.check_each(self._snapshots, token.digests, batch.questions, self._clock())
        return await self._answer_batch(batch, *decided)

    async def GetCheckConfig(self, request: pb.GetCheckConfigRequest, token: Token) -> pb.CheckConfig:  # noqa: N802
        """See the protocol definition."""
        caller = await self._identify(token, self._clock())
        self._usage.record(caller.snapshot, caller.now)
        name = CheckConfigName.parse(request.name, "name")
        return _write_config(await products.get_check_config(self._database, caller, name))

    async def _answer_batch(
        self, batch: "_Batch", caller: Caller, results: Sequence[CheckResult | DomainError]
    ) -> pb.BatchCheckResponse:
        self._record(caller, results)
        return pb.BatchCheckResponse(results=await pauses.each(batch.write(results)))

    def _remember(
        self,
        names: Sequence[bytes],
        token: Secret,
        caller: Caller,
        questions: Sequence[Question],
        results: Sequence[CheckResult | DomainError],
    ) -> None:
        for name, question, result in zip(names, questions, results, strict=True):
            if isinstance(result, CheckResult):
                self._repeats.remember(name, token, caller, question, result)

    async def _identify(self, token: Token, now: datetime) -> Caller:
        # Identified first: a caller without a valid token learns nothing about its bad request.
        return callers.identify(await self._snapshots.get(token.digests), now)

    def _record(self, caller: Caller, results: Iterable[CheckResult | DomainError]) -> None:
        self._usage.record(caller.snapshot, caller.now)
        before = None
        for result in results:
            if not isinstance(result, CheckResult) or result.snapshot is None or result.snapshot is before:
                continue
            if result.decision is ALLOWED:
                before = result.snapshot
                self._usage.record(before, caller.now)


def _read(request: pb.CheckRequest, digests: Callable[[str], Secret]) -> Question:
    if not request.key:
        raise InvalidRequest.at("key", "KEY_REQUIRED", "a key is required")
    if request.min_revision < 0:
        raise InvalidRequest.at("min_revision", "REVISION_INVALID", "a revision is not negative")
    tenant, product = request.tenant, request.product
    fields = _read_request(
        request.resource,
        request.action,
        tenant if tenant or request.HasField("tenant") else None,
        product if product or request.HasField("product") else None,
    )
    return Question(digests(request.key), fields, request.min_revision)


# The same requests come again and again.
@functools.lru_cache(maxsize=4096)
def _read_request(resource: str, action: str, tenant: str | None, product: str | None) -> Request:
    return Request(
        parse_path(resource, "resource"),
        parse_action(action, "action"),
        parse_id(tenant, "tenant") if tenant is not None else None,
        parse_id(product, "product") if product is not None else None,
    )


def _write_config(product: Product) -> pb.CheckConfig:
    spec = write_spec(product.compiled.spec)
    return pb.CheckConfig(
        name=str(CheckConfigName(product.name.product)),
        credential=spec.credential,
        collections=spec.collections,
        tenant_noun=product.compiled.tenant_noun,
        spec_version=product.spec_version,
    )


def _read_each(request: pb.BatchCheckRequest, digests: Callable[[str], Secret]) -> Iterator[Question | InvalidRequest]:
    """Return the requests of a batch, each or its error. Raises `InvalidRequest` where the batch itself is invalid."""
    if not 1 <= len(request.checks) <= MAX_CHECKS:
        raise InvalidRequest.at("checks", "CHECKS_COUNT_INVALID", f"must hold 1 to {MAX_CHECKS}")
    # Many requests of a batch are often about one key.
    digests = functools.cache(digests)
    for check in request.checks:
        try:
            yield _read(check, digests)
        except InvalidRequest as error:
            yield error


class _Batch:
    """The requests of a batch, including invalid ones."""

    def __init__(self, read: Sequence[Question | InvalidRequest]) -> None:
        self._read = read
        self.questions = [question for question in read if not isinstance(question, InvalidRequest)]

    def write(self, results: Sequence[CheckResult | DomainError]) -> Iterator[pb.BatchCheckResult]:
        """Return the responses, in the order of the requests."""
        decided, written = iter(results), dict[tuple[int, int, int], pb.BatchCheckResult]()
        for question in self._read:
            result = next(decided) if isinstance(question, Question) else question
            if not isinstance(result, CheckResult):
                yield _write_error(result)
                continue
            # Many responses about one key are the same. Its snapshot is the same object then.
            same = (id(result.decision), id(result.snapshot), result.revision)
            if same not in written:
                written[same] = pb.BatchCheckResult(response=_write(result))
            yield written[same]


def _write_error(error: DomainError) -> pb.BatchCheckResult:
    return pb.BatchCheckResult(
        error=pb.CheckError(
            code=errors.status_code(error).value[0],
            reason=error.reason,
            message=errors.message(error),
            field=error.violations[0].field if error.violations else "",
        )
    )


def _write_without_revision(result: CheckResult) -> bytes:
    return _write(result._replace(revision=0)).SerializeToString()


def _write(result: CheckResult) -> pb.CheckResponse:
    decision, snapshot, revision = result
    reason = REASON.write(decision.reason)
    if snapshot is None:
        return pb.CheckResponse(reason=reason, message=decision.message(), revision=revision)
    # The names are formatted by hand: their classes would take longer than the decision.
    tenant = f"products/{snapshot.product}/tenants/{snapshot.tenant}"
    owner = snapshot.owner
    response = pb.CheckResponse(
        allowed=decision is ALLOWED,
        reason=reason,
        message=decision.message(snapshot.compiled.tenant_noun),
        product=snapshot.product,
        tenant=snapshot.tenant,
        principal=f"{tenant}/{_PEOPLE[owner.kind]}/{owner.id}" if owner else "",
        role=snapshot.role or "",
        api_key=f"{tenant}/apiKeys/{snapshot.key_id}",
        kind=KEY_KIND.write(snapshot.kind),
        revision=revision,
    )
    if decision.missing:
        response.missing_permissions.add(resource=decision.missing.resource, action=decision.missing.action)
    if snapshot.expire_time is not None:
        response.expire_time.FromDatetime(snapshot.expire_time)
    return response
