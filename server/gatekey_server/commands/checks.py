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
    results, before, known, seen = [], None, None, None
    for key, request, min_revision in questions:
        # Neighbours are often about one key.
        if key is not before:
            before, known = key, source.recall(key)
            seen = known and _as_seen(caller, asking.revision, known)
        if known is None or seen is None or known.revision < min_revision:
            return None
        results.append(_decide(seen, request, now))
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
        known if isinstance(known, GatekeyError) else _decide(_as_seen(caller, revision, known), question.request, now)
        for known, question in zip(found, questions, strict=True)
    ]


def _as_seen(caller: Caller, caller_revision: int, known: Known) -> Known:
    """What is known of a key, for a caller who may not be allowed to know of it."""
    fact = known.fact
    if fact is not None and not caller.may_check(fact.product):
        fact = None
    return Known(fact, min(caller_revision, known.revision))


def _decide(seen: Known, request: Request, now: datetime) -> CheckResult:
    fact, revision = seen
    decision = decide(fact, request, now)
    return CheckResult(decision, None if decision is KEY_UNKNOWN else fact, revision)
