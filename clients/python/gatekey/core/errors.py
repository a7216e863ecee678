"""The errors of Gatekey, as one tree.

DomainError
├── InvalidRequest       the request cannot be carried out in any state of the data
├── Unauthenticated      the caller did not prove who it is
├── PermissionDenied     the caller is known, and may not do this
├── NotFound             it does not exist, or the caller may not see it
├── AlreadyExists        the name is taken
├── Aborted              it has changed since the caller last saw it
├── FailedPrecondition   the data are in a state that forbids it
├── ResourceExhausted    a limit is reached
│   └── Overloaded       the server has too much to do; the call was not begun
├── Unavailable          the request cannot be served now; a retry may help
└── Unreadable           the stored data of one entity cannot be read

A denied check is none of these: it is a result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

MAX_VIOLATIONS = 50
"""How many violations an error lists."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A problem with one field of a request."""

    field: str
    """The path of the field in the request, as in `spec.roles[1].grants[0].resource`; empty for the whole request."""
    reason: str
    """A stable identifier in UPPER_SNAKE_CASE."""
    description: str
    """A sentence for people."""

    def below(self, prefix: str) -> Self:
        """Return the same violation with its path below `prefix`."""
        return type(self)(f"{prefix}.{self.field}" if self.field else prefix, self.reason, self.description)


class DomainError(Exception):
    """An error with a stable reason.

    `reason` is in UPPER_SNAKE_CASE and part of the API. `message` is for people. `metadata` holds values for programs,
    such as counts and names. `violations` name the invalid fields.
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


class InvalidRequest(DomainError):
    """The request cannot be carried out in any state of the data."""

    unlisted = 0
    """How many violations are not listed."""

    @classmethod
    def at(cls, field: str, reason: str, description: str, *, metadata: Mapping[str, str] | None = None) -> Self:
        """Return the error for one field of a request."""
        violations = (Violation(field, reason, description),)
        return cls(reason, f"{field}: {description}", metadata=metadata, violations=violations)

    @classmethod
    def all(cls, reason: str, violations: Sequence[Violation], *, unlisted: int = 0) -> Self:
        """Return the error for all violations of a request, of which the first `MAX_VIOLATIONS` are listed."""
        listed = violations[:MAX_VIOLATIONS]
        unlisted += len(violations) - len(listed)
        lines = "; ".join(f"{v.field}: {v.description}" for v in listed)
        if unlisted:
            lines = f"{len(listed) + unlisted} problems, {unlisted} of which are not listed: {lines}"
        error = cls(reason, lines, violations=listed)
        error.unlisted = unlisted
        return error

    def below(self, prefix: str) -> Self:
        """Return the same error with the paths of its violations below `prefix`."""
        return self.all(self.reason, [each.below(prefix) for each in self.violations], unlisted=self.unlisted)


class Unauthenticated(DomainError):
    """The caller did not prove who it is."""


class PermissionDenied(DomainError):
    """The caller is known, and may not do this."""


class NotFound(DomainError):
    """It does not exist, or the caller may not see it."""


class AlreadyExists(DomainError):
    """The name is taken."""


class Aborted(DomainError):
    """It has changed since the caller last saw it."""


class FailedPrecondition(DomainError):
    """The data are in a state that forbids it."""


class ResourceExhausted(DomainError):
    """A limit is reached."""


class Overloaded(ResourceExhausted):
    """The server has too much to do. The call was not begun."""

    RETRY_AFTER = timedelta(milliseconds=100)
    """The earliest time for a retry."""


class Unavailable(DomainError):
    """The request cannot be served now. A retry may help."""


class Unreadable(DomainError):
    """The stored data of one entity cannot be read. The rest of a request is served.

    `product` is the product of the entity. A caller that may not see it must not get this error.
    """

    def __init__(self, reason: str, message: str, *, product: str = "") -> None:
        super().__init__(reason, message)
        self.product = product
