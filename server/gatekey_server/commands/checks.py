"""The check: who asks, whom it is about, and the decision."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from gatekey_server.commands import callers
from gatekey_server.commands.callers import Caller
from gatekey_server.domain.decisions import KEY_UNKNOWN, Decision, Fact, Request, decide
from gatekey_server.domain.errors import Unavailable
from gatekey_server.domain.names import ProductName
from gatekey_server.freshness.facts import FactSource, Known, Secret


@dataclass(frozen=True, slots=True)
class Question:
    """May the holder of a key do this, by facts of `min_revision` or later?"""

    key: Secret
    request: Request
    min_revision: int = 0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A decision, and the fact it was made from; None for a key that is unknown to the caller."""

    decision: Decision
    fact: Fact | None
    revision: int
    """The decision is right as of this revision."""


def check_at_once(
    source: FactSource, token: Secret, question: Question, now: datetime
) -> tuple[Caller, CheckResult] | None:
    """Decide a request on behalf of the holder of a service token, by what is remembered; None: too little is.

    Raises `Unauthenticated` (`TOKEN_INVALID`).
    """
    asking = source.recall(token)
    if asking is None:
        return None
    caller = callers.identify(asking.fact, now)
    known = source.recall(question.key, question.min_revision)
    return None if known is None else (caller, _decide(caller, asking.revision, known, question.request))


async def check_each(
    source: FactSource, token: Secret, questions: Sequence[Question], now: datetime
) -> tuple[Caller, list[CheckResult | Unavailable]]:
    """Decide requests on behalf of the holder of a service token; what must be looked up is looked up together.

    The error for those that cannot be decided. Raises `Unauthenticated` (`TOKEN_INVALID`), and
    `Unavailable` where nothing is known of the token.
    """
    asking, *found = await source.get_each(
        [token, *(question.key for question in questions)], [0, *(question.min_revision for question in questions)]
    )
    if isinstance(asking, Unavailable):
        raise asking
    caller, revision = callers.identify(asking.fact, now), asking.revision
    return caller, [
        known if isinstance(known, Unavailable) else _decide(caller, revision, known, question.request)
        for known, question in zip(found, questions, strict=True)
    ]


def _decide(caller: Caller, caller_revision: int, known: Known, request: Request) -> CheckResult:
    fact, revision = known.fact, min(caller_revision, known.revision)
    if fact is None or not caller.may((*ProductName(fact.product).path, "checks"), "create"):
        return CheckResult(KEY_UNKNOWN, None, revision)
    decision = decide(fact, request, caller.now)
    return CheckResult(decision, None if decision is KEY_UNKNOWN else fact, revision)
