"""Pages of lists: bounded in rows and in bytes, and read in slices."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from gatekey_server.store.slices import Slice

T = TypeVar("T")
C = TypeVar("C")
T_contra = TypeVar("T_contra", contravariant=True)

MAX_SLICES = 300
"""How many slices are read for one page. A page that is not full by then ends with a page token."""


class Taker(Protocol[T_contra]):
    """A page that is being filled."""

    size: int
    """How many items it may hold."""

    async def take(self, item: T_contra) -> bool:
        """Add an item; False where the page has no room for it or any later one. Yields to the event loop."""


async def fill(
    page: Taker[T],
    read: Callable[[C, int], Awaitable[Slice[T, C]]],
    after: C,
    cursor: Callable[[T], C],
    slice_rows: int,
) -> str | None:
    """Read items after the cursor `after`, up to `slice_rows` at a time, until the page is full.

    Returns the cursor of the next page; None at the end of the list. A page that is not full may have one, too.
    """
    count = 0
    for _ in range(MAX_SLICES):
        found = await read(after, min(slice_rows, page.size + 1 - count))
        for item in found.items:
            if count == page.size or not await page.take(item):
                return str(after)
            count, after = count + 1, cursor(item)
        if found.last is None:
            return None
        after = found.last
    return str(after)
