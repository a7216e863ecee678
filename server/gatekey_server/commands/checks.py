"""The check: who asks, whom it is about, and the decision."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from gatekey_server.commands import callers
from gatekey_server.commands.callers import Caller
from gatekey_server.domain.decisions import KEY_UNKNOWN, Decision, Fact, Request, decide
from gatekey_server.domain.errors import GatekeyError
from gatekey_server.freshness.facts import FactSource, Known, Lookup, Secret, Wanted


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


class Checking(NamedTuple):
    """Requests on behalf of the holder of a service token, whose facts are remembered, or being loaded."""

    questions: Sequence[Question]
    now: datetime
    lookup: Lookup

    @property
    def loading(self) -> "asyncio.Future[Any] | None":
        """What has to be waited for; None where that is nothing."""
        return self.lookup.loading

    def result(self) -> tuple[Caller, list[CheckResult | GatekeyError]]:
        """What `check_each` answers or raises, once `loading` is done."""
        return _decide_each(self.lookup.result(), self.questions, self.now)


def begin(source: FactSource, token: Secret, questions: Sequence[Question], now: datetime) -> Checking | None:
    """Begin what `check_each` does; None where even that has to wait."""
    lookup = source.look_up(_wanted(token, questions))
    return None if lookup is None else Checking(questions, now, lookup)


async def check_each(
    source: FactSource, token: Secret, questions: Sequence[Question], now: datetime
) -> tuple[Caller, list[CheckResult | GatekeyError]]:
    """Decide requests on behalf of the holder of a service token; what must be looked up is looked up together.

    The error for those that cannot be decided. Raises `Unauthenticated` (`TOKEN_INVALID`), and
    `Unavailable` or `Overloaded` where nothing is known of the token.
    """
    return _decide_each(await source.get_each(_wanted(token, questions)), questions, now)


def _wanted(token: Secret, questions: Sequence[Question]) -> Wanted:
    return [(token, 0), *[(question.key, question.min_revision) for question in questions]]


def _decide_each(
    found: Sequence[Known | GatekeyError], questions: Sequence[Question], now: datetime
) -> tuple[Caller, list[CheckResult | GatekeyError]]:
    asking, *keys = found
    if isinstance(asking, GatekeyError):
        raise asking
    caller, revision = callers.identify(asking.fact, now), asking.revision
    return caller, [
        known if isinstance(known, GatekeyError) else _decide(_as_seen(caller, revision, known), question.request, now)
        for known, question in zip(keys, questions, strict=True)
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
