"""`CheckService` on the wire."""

import functools
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Self

from gatekey.v1 import check_service_pb2 as pb

from gatekey_server.commands import callers, checks
from gatekey_server.commands.callers import Caller
from gatekey_server.commands.checks import CheckResult, Question
from gatekey_server.commands.usage import UsageRecorder
from gatekey_server.domain.decisions import ALLOWED, PrincipalKind, Request
from gatekey_server.domain.errors import GatekeyError, InvalidRequest
from gatekey_server.domain.grants import parse_action, parse_path
from gatekey_server.domain.names import parse_id
from gatekey_server.domain.secrets import Keyring
from gatekey_server.freshness.facts import FactSource, Secret
from gatekey_server.rpc import batches, errors
from gatekey_server.rpc.edge import Clock, Later, Token
from gatekey_server.rpc.repeats import Recent, Repeats
from gatekey_server.rpc.values import KEY_KIND, REASON

MAX_CHECKS = 1000
_MAX_TOKENS = 10_000

_PEOPLE = {PrincipalKind.MEMBER: "members", PrincipalKind.MACHINE_USER: "machineUsers"}


class CheckServicer:
    """Answers checks; the caller and the keys are looked up together."""

    def __init__(
        self,
        facts: FactSource,
        keyring: Keyring,
        clock: Clock,
        usage: UsageRecorder,
        token_of: Callable[[str], Token],
    ) -> None:
        self._facts = facts
        self._keyring = keyring
        self._clock = clock
        self._usage = usage
        self._token_of = token_of
        self._tokens = Recent[Secret](_MAX_TOKENS)
        self._repeats = Repeats(facts, usage, _write_without_revision)

    def check_at_once(self, data: bytes, authorization: str) -> bytes | Later | None:
        """Answer a check by what is remembered, or once its facts are loaded; None where even that must wait."""
        names, now = self._repeats.names(authorization), self._clock()
        name = names(data)
        said = self._repeats.say_again((name,), now)
        if said is not None:
            return said[0]
        token = self._token(authorization, names)
        question = _read(pb.CheckRequest.FromString(data), self._keyring.digests)
        checking = checks.begin(self._facts, token, (question,), now)
        if checking is None:
            return None
        if checking.loading is not None:
            return Later(checking.loading, lambda: self._answer(*checking.result()))
        caller, results = checking.result()
        self._remember((name,), token, caller, (question,), results)
        return self._answer(caller, results).SerializeToString()

    async def Check(self, request: pb.CheckRequest, token: Token) -> pb.CheckResponse:  # noqa: N802
        """See the protocol definition."""
        now = self._clock()
        try:
            question = _read(request, self._keyring.digests)
        except InvalidRequest:
            await self._identify(token, now)
            raise
        return self._answer(*await checks.check_each(self._facts, token.digests, (question,), now))

    def _answer(self, caller: Caller, results: Sequence[CheckResult | GatekeyError]) -> pb.CheckResponse:
        (result,) = results
        if isinstance(result, GatekeyError):
            raise result
        self._record(caller, (result,))
        return _write(result)

    def batch_check_at_once(self, data: bytes, authorization: str) -> bytes | Later | None:
        """Answer a batch as `check_at_once` answers a check."""
        name, now, parts = self._repeats.names(authorization), self._clock(), batches.split(data)
        names = list(map(name, parts)) if parts else []
        said = self._repeats.say_again(names, now) if 1 <= len(names) <= MAX_CHECKS else None
        if said is not None:
            return b"".join([piece for answer in said for piece in (batches.head(len(answer)), answer)])
        token = self._token(authorization, name)
        batch = _Batch.read(pb.BatchCheckRequest.FromString(data), self._keyring.digests)
        checking = checks.begin(self._facts, token, batch.questions, now)
        if checking is None:
            return None
        if checking.loading is not None:
            return Later(checking.loading, lambda: self._answer_batch(batch, *checking.result()))
        caller, results = checking.result()
        if len(results) == len(names):
            self._remember(names, token, caller, batch.questions, results)
        return self._answer_batch(batch, caller, results).SerializeToString()

    async def BatchCheck(self, request: pb.BatchCheckRequest, token: Token) -> pb.BatchCheckResponse:  # noqa: N802
        """See the protocol definition."""
        now = self._clock()
        try:
            batch = _Batch.read(request, self._keyring.digests)
        except InvalidRequest:
            await self._identify(token, now)
            raise
        return self._answer_batch(batch, *await checks.check_each(self._facts, token.digests, batch.questions, now))

    def _answer_batch(
        self, batch: "_Batch", caller: Caller, results: Sequence[CheckResult | GatekeyError]
    ) -> pb.BatchCheckResponse:
        self._record(caller, results)
        return batch.write(results)

    def _token(self, authorization: str, names: Callable[[bytes], bytes]) -> Secret:
        """The token of `authorization`, by the name of what says nothing else."""
        name = names(b"")
        token = self._tokens.get(name)
        if token is None:
            token = self._token_of(authorization).digests
            self._tokens.put(name, token)
        return token

    def _remember(
        self,
        names: Sequence[bytes],
        token: Secret,
        caller: Caller,
        questions: Sequence[Question],
        results: Sequence[CheckResult | GatekeyError],
    ) -> None:
        for name, question, result in zip(names, questions, results, strict=True):
            if isinstance(result, CheckResult):
                self._repeats.remember(name, token, caller, question, result)

    async def _identify(self, token: Token, now: datetime) -> None:
        # To whoever has no valid token, a bad request tells nothing.
        callers.identify((await self._facts.get(token.digests)).fact, now)

    def _record(self, caller: Caller, results: Iterable[CheckResult | GatekeyError]) -> None:
        self._usage.record(caller.fact, caller.now)
        before = None
        for result in results:
            if not isinstance(result, CheckResult) or result.fact is None or result.fact is before:
                continue
            if result.decision is ALLOWED:
                before = result.fact
                self._usage.record(before, caller.now)


def _read(request: pb.CheckRequest, digests: Callable[[str], Secret]) -> Question:
    if not request.key:
        raise InvalidRequest.at("key", "KEY_REQUIRED", "a key is required")
    if request.min_revision < 0:
        raise InvalidRequest.at("min_revision", "REVISION_INVALID", "a revision is not negative")
    tenant, product = request.tenant, request.product
    wish = _read_wish(
        request.resource,
        request.action,
        tenant if tenant or request.HasField("tenant") else None,
        product if product or request.HasField("product") else None,
    )
    return Question(digests(request.key), wish, request.min_revision)


# The same are asked for again and again.
@functools.lru_cache(maxsize=4096)
def _read_wish(resource: str, action: str, tenant: str | None, product: str | None) -> Request:
    return Request(
        parse_path(resource, "resource"),
        parse_action(action, "action"),
        parse_id(tenant, "tenant") if tenant is not None else None,
        parse_id(product, "product") if product is not None else None,
    )


class _Batch:
    """The questions of a batch, those that make no sense among them."""

    def __init__(self, read: Sequence[Question | InvalidRequest]) -> None:
        self._read = read
        self.questions = [question for question in read if not isinstance(question, InvalidRequest)]

    @classmethod
    def read(cls, request: pb.BatchCheckRequest, digests: Callable[[str], Secret]) -> Self:
        """Raises `InvalidRequest` where the batch as a whole makes none."""
        if not 1 <= len(request.checks) <= MAX_CHECKS:
            raise InvalidRequest.at("checks", "CHECKS_COUNT_INVALID", f"must hold 1 to {MAX_CHECKS}")
        # Many questions of a batch are often about one key.
        digests = functools.cache(digests)
        read: list[Question | InvalidRequest] = []
        for check in request.checks:
            try:
                read.append(_read(check, digests))
            except InvalidRequest as error:
                read.append(error)
        return cls(read)

    def write(self, results: Sequence[CheckResult | GatekeyError]) -> pb.BatchCheckResponse:
        """The answers, in the order of the questions."""
        decided, written = iter(results), dict[tuple[int, int, int], pb.BatchCheckResult]()
        answers = []
        for question in self._read:
            result = next(decided) if isinstance(question, Question) else question
            if not isinstance(result, CheckResult):
                answers.append(_write_error(result))
                continue
            # Many answers about one key are the same; its fact is the same object then.
            same = (id(result.decision), id(result.fact), result.revision)
            if same not in written:
                written[same] = pb.BatchCheckResult(response=_write(result))
            answers.append(written[same])
        return pb.BatchCheckResponse(results=answers)


def _write_error(error: GatekeyError) -> pb.BatchCheckResult:
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
    decision, fact, revision = result
    reason = REASON.write(decision.reason)
    if fact is None:
        return pb.CheckResponse(reason=reason, message=decision.message(), revision=revision)
    # The names are put together by hand: their classes take longer than the decision does.
    tenant = f"products/{fact.product}/tenants/{fact.tenant}"
    owner = fact.owner
    response = pb.CheckResponse(
        allowed=decision is ALLOWED,
        reason=reason,
        message=decision.message(fact.policy.tenant_noun),
        product=fact.product,
        tenant=fact.tenant,
        principal=f"{tenant}/{_PEOPLE[owner.kind]}/{owner.id}" if owner else "",
        role=fact.role or "",
        api_key=f"{tenant}/apiKeys/{fact.key_id}",
        kind=KEY_KIND.write(fact.kind),
        revision=revision,
    )
    if decision.missing:
        response.missing_permissions.add(resource=decision.missing.resource, action=decision.missing.action)
    if fact.expire_time is not None:
        response.expire_time.FromDatetime(fact.expire_time)
    return response
