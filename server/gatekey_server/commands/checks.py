"""The check: who asks, whom it is about, and the decision."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from gatekey_server.commands import callers
from gatekey_server.commands.callers import Caller
from gatekey_server.domain.decisions import KEY_UNKNOWN, Decision, Fact, Request, decide
from gatekey_server.domain.errors import GatekeyError
from gatekey_server.freshness.facts import FactSource, Known, Secret


class Question(NamedTuple):
    """May the holder of a key do this, by facts of `min_revision` or later?"""

    key: Secret
    request: Request
    min_revision: int = 0


class CheckResult(NamedTuple):
    """A decision, and the fact it was made from; None for a key that is unknown to the caller."""

    decision: Decision
    fact: Fact | None
    revision: int
    """The decision is right as of this revision."""


def check_at_once(
    source: FactSource, token: Secret, questions: Sequence[Question], now: datetime
) -> tuple[Caller, list[CheckResult]] | None:
    """Decide requests on behalf of the holder of a service token, by what is remembered; None: too little is.

    Raises `Unauthenticated` (`TOKEN_INVALID`).
    """
    asking = source.recall(token)
    if asking is None:
        return None
    caller = callers.identify(asking.fact, now)
    results, secret, known = [], None, None
    for question in questions:
        # Neighbours are often about one key.
        if question.key is not secret:
            secret = question.key
            known = source.recall(secret)
        if known is None or known.revision < question.min_revision:
            return None
        results.append(_decide(caller, asking.revision, known, question.request))
    return caller, results


async def check_each(
    source: FactSource, token: Secret, questions: Sequence[Question], now: datetime
) -> tuple[Caller, list[CheckResult | GatekeyError]]:
    """Decide requests on behalf of the holder of a service token; what must be looked up is looked up together.

    The error for those that cannot be decided. Raises `Unauthenticated` (`TOKEN_INVALID`), and
    `Unavailable` or `Overloaded` where nothing is known of the token.
    """
    asking, *found = await source.get_each(
        [(token, 0), *((question.key, question.min_revision) for question in questions)]
    )
    if isinstance(asking, GatekeyError):
        raise asking
    caller, revision = callers.identify(asking.fact, now), asking.revision
    return caller, [
        known if isinstance(known, GatekeyError) else _decide(caller, revision, known, question.request)
        for known, question in zip(found, questions, strict=True)
    ]


def _decide(caller: Caller, caller_revision: int, known: Known, request: Request) -> CheckResult:
    fact, revision = known.fact, min(caller_revision, known.revision)
    if fact is None or not caller.may_check(fact.product):
        return CheckResult(KEY_UNKNOWN, None, revision)
    decision = decide(fact, request, caller.now)
    return CheckResult(decision, None if decision is KEY_UNKNOWN else fact, revision)
