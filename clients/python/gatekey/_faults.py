"""What a service does wrong is told to its log, loudly, and not for every request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from gatekey.decisions import CheckFailed, Decision, Question, Reason
from gatekey.errors import ApiError, NotFound, PermissionDenied

EVERY_S = 60.0
"""How often the same fault is logged at most."""

_MAX_KINDS = 256
_log = logging.getLogger("gatekey")


class FaultLog:
    """Logs each fault at once, and then at most once in `EVERY_S`, with how often it came meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When each kind was logged, the longest ago first, and how often it came since. Without a lock: at worst a line
        # is logged twice.
        self._kinds: dict[str, tuple[float, int]] = {}
        self._doubted: set[str] = set()

    def report(self, message: str, kind: str | None = None) -> None:
        """Log a fault; those of one kind are taken for one."""
        kind, now = kind or message, self._clock()
        logged_at, kept = self._kinds.get(kind, (-EVERY_S, 0))
        if kind in self._kinds and now - logged_at < EVERY_S:
            self._kinds[kind] = logged_at, kept + 1
            return
        self._kinds.pop(kind, None)
        if len(self._kinds) >= _MAX_KINDS:
            oldest, (logged_at, _) = next(iter(self._kinds.items()))
            if now - logged_at < EVERY_S:
                return
            self._kinds.pop(oldest, None)
        self._kinds[kind] = now, 0
        _log.error("%s%s", message, f" (and {kept} times since this was last logged)" if kept else "")

    def note(self, decision: Decision, resource: str, action: str) -> Decision:
        """The decision; logs it where it says that the service has asked for what there is not."""
        if not decision.allowed and decision.reason.is_fault:
            product = decision.product or "its product"
            self.report(
                f"{decision.reason}: this service checks `{action}` on {resource!r}, which the spec of {product}"
                " does not declare: mend the service, or the spec",
                f"{decision.reason} {action} {'/'.join(resource.split('/')[::2])}",
            )
        return decision

    def is_doubtful(self, decision: Decision, product: str | None) -> bool:
        """Whether to find out if the key is unknown because the token may not check it: once for each product."""
        if product is None or decision.reason is not Reason.KEY_UNKNOWN:
            return False
        if product in self._doubted or len(self._doubted) >= _MAX_KINDS:
            return False
        self._doubted.add(product)
        return True

    def refuted(self, product: str, error: ApiError) -> None:
        """Log that the token may not check the product, where it was asked for that and the error says so."""
        if isinstance(error, PermissionDenied | NotFound):
            self.report(
                f"all keys of the product `{product}` are unknown: the service token cannot check them: {error}"
            )

    def note_all(
        self, asked: Iterable[Question], results: list[Decision | CheckFailed]
    ) -> list[Decision | CheckFailed]:
        """The results, each noted."""
        for question, result in zip(asked, results, strict=True):
            if isinstance(result, Decision):
                self.note(result, question.resource, question.action)
        return results
