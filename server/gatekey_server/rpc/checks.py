"""`CheckService` on the wire."""

import functools
from collections.abc import Callable, Iterable
from datetime import datetime

from gatekey.v1 import check_service_pb2 as pb

from gatekey_server.commands import callers, checks
from gatekey_server.commands.callers import Caller
from gatekey_server.commands.checks import CheckResult, Question
from gatekey_server.commands.usage import UsageRecorder
from gatekey_server.domain.decisions import Fact, Owner, PrincipalKind, Request
from gatekey_server.domain.errors import GatekeyError, InvalidRequest, Unavailable
from gatekey_server.domain.grants import parse_action, parse_path
from gatekey_server.domain.names import ApiKeyName, MachineUserName, MemberName, TenantName, parse_id
from gatekey_server.domain.secrets import Keyring
from gatekey_server.freshness.facts import FactSource, Secret
from gatekey_server.rpc import errors
from gatekey_server.rpc.edge import Clock, Token
from gatekey_server.rpc.values import KEY_KIND, REASON

MAX_CHECKS = 1000


class CheckServicer:
    """Answers checks; the caller and the keys are looked up together."""

    def __init__(self, facts: FactSource, keyring: Keyring, clock: Clock, usage: UsageRecorder) -> None:
        self._facts = facts
        self._keyring = keyring
        self._clock = clock
        self._usage = usage

    async def Check(self, request: pb.CheckRequest, token: Token) -> pb.CheckResponse:  # noqa: N802
        """See the protocol definition."""
        now = self._clock()
        try:
            question = _read(request, self._keyring.digests)
        except InvalidRequest:
            await self._identify(token, now)
            raise
        checked = checks.check_at_once(self._facts, token.digests, question, now)
        caller, result = checked or await self._look_up(token, question, now)
        self._record(caller, [result])
        return _write(result)

    async def _look_up(self, token: Token, question: Question, now: datetime) -> tuple[Caller, CheckResult]:
        caller, (result,) = await checks.check_each(self._facts, token.digests, [question], now)
        if isinstance(result, Unavailable):
            raise result
        return caller, result

    async def BatchCheck(self, request: pb.BatchCheckRequest, token: Token) -> pb.BatchCheckResponse:  # noqa: N802
        """See the protocol definition."""
        now = self._clock()
        if not 1 <= len(request.checks) <= MAX_CHECKS:
            await self._identify(token, now)
            raise InvalidRequest.at("checks", "CHECKS_COUNT_INVALID", f"must hold 1 to {MAX_CHECKS}")
        # Many questions of a batch are often about one key.
        digests = functools.cache(self._keyring.digests)
        read = [_try_to_read(check, digests) for check in request.checks]
        questions = [question for question in read if not isinstance(question, InvalidRequest)]
        caller, results = await checks.check_each(self._facts, token.digests, questions, now)
        self._record(caller, results)
        decided = iter(results)
        return pb.BatchCheckResponse(
            results=[_write_result(q if isinstance(q, InvalidRequest) else next(decided)) for q in read]
        )

    async def _identify(self, token: Token, now: datetime) -> None:
        # To whoever has no valid token, a bad request tells nothing.
        callers.identify((await self._facts.get(token.digests)).fact, now)

    def _record(self, caller: Caller, results: Iterable[CheckResult | Unavailable]) -> None:
        self._usage.record(caller.fact, caller.now)
        for result in results:
            if isinstance(result, CheckResult) and result.fact is not None and result.decision.allowed:
                self._usage.record(result.fact, caller.now)


def _read(request: pb.CheckRequest, digests: Callable[[str], Secret]) -> Question:
    if not request.key:
        raise InvalidRequest.at("key", "KEY_REQUIRED", "a key is required")
    if request.min_revision < 0:
        raise InvalidRequest.at("min_revision", "REVISION_INVALID", "a revision is not negative")
    wish = Request(
        parse_path(request.resource, "resource"),
        parse_action(request.action, "action"),
        parse_id(request.tenant, "tenant") if request.HasField("tenant") else None,
        parse_id(request.product, "product") if request.HasField("product") else None,
    )
    return Question(digests(request.key), wish, request.min_revision)


def _try_to_read(request: pb.CheckRequest, digests: Callable[[str], Secret]) -> Question | InvalidRequest:
    try:
        return _read(request, digests)
    except InvalidRequest as error:
        return error


def _write_result(result: CheckResult | GatekeyError) -> pb.BatchCheckResult:
    if isinstance(result, CheckResult):
        return pb.BatchCheckResult(response=_write(result))
    return pb.BatchCheckResult(
        error=pb.CheckError(
            code=errors.status_code(result).value[0],
            reason=result.reason,
            message=errors.message(result),
            field=result.violations[0].field if result.violations else "",
        )
    )


def _write(result: CheckResult) -> pb.CheckResponse:
    decision, fact = result.decision, result.fact
    response = pb.CheckResponse(
        allowed=decision.allowed,
        reason=REASON.write(decision.reason),
        message=decision.message(fact.policy.tenant_noun if fact else "tenant"),
        revision=result.revision,
    )
    if decision.missing:
        response.missing_permissions.add(resource=decision.missing.resource, action=decision.missing.action)
    if fact is not None:
        _describe(response, fact)
    return response


def _describe(response: pb.CheckResponse, fact: Fact) -> None:
    tenant = TenantName(fact.product, fact.tenant)
    response.product = fact.product
    response.tenant = fact.tenant
    response.api_key = str(ApiKeyName(tenant, fact.key_id))
    response.kind = KEY_KIND.write(fact.kind)
    if fact.owner is not None:
        response.principal = str(_principal(tenant, fact.owner))
        response.role = fact.role or ""
    if fact.expire_time is not None:
        response.expire_time.FromDatetime(fact.expire_time)


def _principal(tenant: TenantName, owner: Owner) -> MemberName | MachineUserName:
    if owner.kind is PrincipalKind.MACHINE_USER:
        return MachineUserName(tenant, owner.id)
    return MemberName(tenant, owner.id)
