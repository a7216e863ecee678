"""`CheckService` on the wire."""

from gatekey.v1 import check_service_pb2 as pb

from gatekey_server.commands import callers, checks
from gatekey_server.commands.usage import UsageRecorder
from gatekey_server.domain.decisions import Fact, Owner, PrincipalKind, Request
from gatekey_server.domain.errors import InvalidRequest
from gatekey_server.domain.grants import parse_action, parse_path
from gatekey_server.domain.names import ApiKeyName, MachineUserName, MemberName, TenantName, parse_id
from gatekey_server.domain.secrets import Keyring
from gatekey_server.freshness.facts import FactSource
from gatekey_server.rpc.edge import Clock, Token
from gatekey_server.rpc.values import KEY_KIND, REASON


class CheckServicer:
    """Answers checks; the caller and the key are looked up together."""

    def __init__(self, facts: FactSource, keyring: Keyring, clock: Clock, usage: UsageRecorder) -> None:
        self._facts = facts
        self._keyring = keyring
        self._clock = clock
        self._usage = usage

    async def Check(self, request: pb.CheckRequest, token: Token) -> pb.CheckResponse:  # noqa: N802
        """See the protocol definition."""
        try:
            question = _read(request)
        except InvalidRequest:
            # To whoever has no valid token, a bad request tells nothing.
            callers.identify((await self._facts.get(token.digests)).facts[0], self._clock())
            raise
        key, now = self._keyring.digests(request.key), self._clock()
        result = await checks.check(self._facts, token.digests, key, question, now, request.min_revision)
        self._usage.record(result.caller, now)
        if result.fact is not None and result.decision.allowed:
            self._usage.record(result.fact, now)
        return _write(result)


def _read(request: pb.CheckRequest) -> Request:
    if not request.key:
        raise InvalidRequest.at("key", "KEY_REQUIRED", "a key is required")
    if request.min_revision < 0:
        raise InvalidRequest.at("min_revision", "REVISION_INVALID", "a revision is not negative")
    return Request(
        parse_path(request.resource, "resource"),
        parse_action(request.action, "action"),
        parse_id(request.tenant, "tenant") if request.HasField("tenant") else None,
        parse_id(request.product, "product") if request.HasField("product") else None,
    )


def _write(result: checks.CheckResult) -> pb.CheckResponse:
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
