"""Pages of lists."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list, and the cursor after them; None at the end of the list."""

    items: Sequence[T]
    next_cursor: str | None

    @classmethod
    def of(cls, found: Sequence[T], size: int, cursor: Callable[[T], object]) -> "Page[T]":
        """Make a page of up to `size + 1` items that were found: one more shows that the list goes on."""
        if len(found) <= size:
            return cls(found, None)
        return cls(found[:size], str(cursor(found[size - 1])))
