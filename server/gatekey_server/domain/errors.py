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
└── Unavailable          no answer could be had now; trying again later may help

A denied check is none of these: it is an answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field of a request."""

    field: str
    """Path of the field in the request, as in `spec.roles[1].grants[0].resource`."""
    reason: str
    """Stable, in UPPER_SNAKE_CASE."""
    description: str
    """A sentence for people."""

    def below(self, prefix: str) -> Self:
        """Give the same violation with its path below `prefix`."""
        return type(self)(f"{prefix}.{self.field}", self.reason, self.description)


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

    @classmethod
    def at(cls, field: str, reason: str, description: str) -> Self:
        """Refuse a request for one field of it."""
        return cls(reason, f"{field}: {description}", violations=(Violation(field, reason, description),))

    @classmethod
    def all(cls, reason: str, violations: Sequence[Violation]) -> Self:
        """Refuse a request for everything that is wrong with it."""
        lines = "; ".join(f"{v.field}: {v.description}" for v in violations)
        return cls(reason, lines, violations=violations)


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
