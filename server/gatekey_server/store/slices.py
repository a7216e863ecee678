"""Slices of lists."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

T = TypeVar("T")
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Slice(Generic[T, C]):
    """Consecutive items of a list."""

    items: Sequence[T]
    last: C | None
    """The cursor of the next slice; None at the end of the list."""

    @classmethod
    def of(cls, items: Sequence[T], limit: int, cursor: Callable[[T], C]) -> Self:
        """Return the slice of the items that a query with `limit` found."""
        return cls(items, cursor(items[-1]) if len(items) == limit else None)
