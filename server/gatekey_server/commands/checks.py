"""The check: who asks, whom it is about, and the decision."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from gatekey_server.commands import callers
from gatekey_server.domain.decisions import KEY_UNKNOWN, Decision, Fact, Request, decide
from gatekey_server.domain.names import ProductName
from gatekey_server.domain.secrets import Digest
from gatekey_server.freshness.facts import FactSource


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A decision, and the fact it was made from; None for a key that is unknown to the caller."""

    decision: Decision
    fact: Fact | None
    caller: Fact
    """What is known of the service token."""


async def check(
    source: FactSource, token: Sequence[Digest], key: Sequence[Digest], request: Request, now: datetime
) -> CheckResult:
    """Decide a request for the holder of a key, on behalf of the holder of a service token.

    The facts of both come by one round trip. Raises `Unauthenticated` (`TOKEN_INVALID`) and `Unavailable`.
    """
    facts = await source.get([*token, *key])
    caller = callers.identify(facts, token, now)
    fact = callers.find(facts, key)
    if fact is None or not caller.may((*ProductName(fact.product).path, "checks"), "create"):
        return CheckResult(KEY_UNKNOWN, None, caller.fact)
    decision = decide(fact, request, now)
    return CheckResult(decision, None if decision is KEY_UNKNOWN else fact, caller.fact)
