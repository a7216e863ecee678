"""Parts of lists, as they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

T = TypeVar("T")
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Slice(Generic[T, C]):
    """Some items of a list."""

    items: Sequence[T]
    last: C | None
    """Behind which to read on; None at the end of the list."""

    @classmethod
    def of(cls, items: Sequence[T], limit: int, cursor: Callable[[T], C]) -> Self:
        """What was found where `limit` were asked for."""
        return cls(items, cursor(items[-1]) if len(items) == limit else None)
