"""Every way in which Gatekey refuses to do something, as one tree.

GatekeyError
├── InvalidRequest       the request cannot be carried out in any state of the data
├── Unauthenticated      the caller did not prove who it is
├── PermissionDenied     the caller is known, and may not do this
├── NotFound             there is no such thing, or none that the caller may see
├── AlreadyExists        the name is taken
├── Aborted              it has changed since the caller last saw it
├── FailedPrecondition   the data are in a state that forbids it
├── ResourceExhausted    a limit is reached
│   └── Overloaded       there is more to do at the moment than can be done
├── Unavailable          no answer could be had now; trying again later may help
└── Unreadable           what is stored about one thing makes no sense

A denied check is none of these: it is an answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

MAX_VIOLATIONS = 50
"""How many an error lists."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field of a request."""

    field: str
    """Path of the field in the request, as in `spec.roles[1].grants[0].resource`; empty for all of it."""
    reason: str
    """Stable, in UPPER_SNAKE_CASE."""
    description: str
    """A sentence for people."""

    def below(self, prefix: str) -> Self:
        """Give the same violation with its path below `prefix`."""
        return type(self)(f"{prefix}.{self.field}" if self.field else prefix, self.reason, self.description)


class GatekeyError(Exception):
    """A refusal with a stable reason.

    `reason` is in UPPER_SNAKE_CASE and part of the API; `message` is for people; `metadata` holds
    what programs may want to know (counts, names); `violations` say which fields are at fault.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)


class InvalidRequest(GatekeyError):
    """The request cannot be carried out in any state of the data."""

    unlisted = 0
    """How many violations there are besides those that are listed."""

    @classmethod
    def at(cls, field: str, reason: str, description: str, *, metadata: Mapping[str, str] | None = None) -> Self:
        """Refuse a request for one field of it."""
        violations = (Violation(field, reason, description),)
        return cls(reason, f"{field}: {description}", metadata=metadata, violations=violations)

    @classmethod
    def all(cls, reason: str, violations: Sequence[Violation], *, unlisted: int = 0) -> Self:
        """Refuse a request for everything that is wrong with it, and tell the first of it."""
        listed = violations[:MAX_VIOLATIONS]
        unlisted += len(violations) - len(listed)
        lines = "; ".join(f"{v.field}: {v.description}" for v in listed)
        if unlisted:
            lines = f"{len(listed) + unlisted} problems, {unlisted} of which are not listed: {lines}"
        error = cls(reason, lines, violations=listed)
        error.unlisted = unlisted
        return error

    def below(self, prefix: str) -> Self:
        """Give the same refusal with the paths of its violations below `prefix`."""
        return self.all(self.reason, [each.below(prefix) for each in self.violations], unlisted=self.unlisted)


class Unauthenticated(GatekeyError):
    """The caller did not prove who it is."""


class PermissionDenied(GatekeyError):
    """The caller is known, and may not do this."""


class NotFound(GatekeyError):
    """There is no such thing, or none that the caller may see."""


class AlreadyExists(GatekeyError):
    """The name is taken."""


class Aborted(GatekeyError):
    """It has changed since the caller last saw it."""


class FailedPrecondition(GatekeyError):
    """The data are in a state that forbids it."""


class ResourceExhausted(GatekeyError):
    """A limit is reached."""


class Overloaded(ResourceExhausted):
    """There is more to do at the moment than can be done; the call was not begun."""

    RETRY_AFTER = timedelta(milliseconds=100)
    """When to try again, at the earliest."""


class Unavailable(GatekeyError):
    """No answer could be had now; trying again later may help."""


class Unreadable(GatekeyError):
    """What is stored about one thing makes no sense; whatever else was asked for is answered.

    `product` is where that thing is: whoever may not see into that is not to be told.
    """

    def __init__(self, reason: str, message: str, *, product: str = "") -> None:
        super().__init__(reason, message)
        self.product = product
