"""The check: who asks, whom it is about, and the decision."""

from dataclasses import dataclass
from datetime import datetime

from gatekey_server.commands import callers
from gatekey_server.domain.decisions import KEY_UNKNOWN, Decision, Fact, Request, decide
from gatekey_server.domain.names import ProductName
from gatekey_server.freshness.facts import FactSource, Secret


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A decision, and the fact it was made from; None for a key that is unknown to the caller."""

    decision: Decision
    fact: Fact | None
    caller: Fact
    """What is known of the service token."""
    revision: int
    """The decision is right as of this revision."""


async def check(
    source: FactSource, token: Secret, key: Secret, request: Request, now: datetime, min_revision: int = 0
) -> CheckResult:
    """Decide a request for the holder of a key, on behalf of the holder of a service token.

    By facts of `min_revision` or later; both are looked up together. Raises `Unauthenticated`
    (`TOKEN_INVALID`) and `Unavailable`.
    """
    known = await source.get(token, key, min_revision=min_revision)
    caller_fact, fact = known.facts
    caller = callers.identify(caller_fact, now)
    if fact is None or not caller.may((*ProductName(fact.product).path, "checks"), "create"):
        return CheckResult(KEY_UNKNOWN, None, caller.fact, known.revision)
    decision = decide(fact, request, now)
    return CheckResult(decision, None if decision is KEY_UNKNOWN else fact, caller.fact, known.revision)
