"""What the users of a client say about its cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gatekey._cache.sync import CacheSync


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """How a client cache is to be."""

    entries: int = 100_000
    """How many keys are held at most."""
    stale_s: float = 0.0
    """Where the server cannot be reached: for how many seconds more, after the lease is over, checks are decided by
    what was known last. Such a decision may be stale: a key that was revoked may be allowed. 0: never."""


def make_cache(cache: bool | Cache) -> CacheSync | None:
    """Return an empty client cache; None where none is wanted. Raises `ValueError`."""
    if cache is False:
        return None
    options = Cache() if cache is True else cache
    if options.entries < 1 or options.stale_s < 0:
        raise ValueError("a client cache holds at least one key, and is stale for no less than 0 s")
    # Late: what decides takes a third of the time in which `gatekey` is imported, and only caches need it.
    from gatekey._cache.lookup import LocalCache  # noqa: PLC0415
    from gatekey._cache.sync import CacheSync  # noqa: PLC0415

    return CacheSync(LocalCache(options.entries, options.stale_s))
