"""What a guard knows of the product whose keys it checks: where they are presented, and what can be checked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import grpc

from gatekey import errors
from gatekey._faults import FaultLog
from gatekey._fork_hooks import in_forked_child
from gatekey._protection import BEARER, AccessRefused, Credential, Requirement

if TYPE_CHECKING:
    from gatekey.client import AsyncClient, Client
    from gatekey.v1 import check_service_pb2 as pb

REFRESH_S: Final = 30.0
"""How often it is asked whether the spec has changed."""
RETRY_S: Final = 1.0
"""How often the server is asked while it has not told."""


class GuardedProduct:
    """Makes no calls: whoever has a client asks when it `is_due`, and has it `learn` or `fail`."""

    def __init__(self, product: str | None, credential: Credential | None) -> None:
        self.id = product
        self.requirements: list[Requirement[Any]] = []
        """What is checked, as far as it is known before there are requests."""
        self.faults = FaultLog()
        self._given = credential
        self._clock = time.monotonic
        self._config: pb.CheckConfig | None = None
        self._is_refused = False
        self._is_untold = False
        self._due_at = self._clock()

    def is_known(self) -> bool:
        """Whether requests can be served while the server is asked once more."""
        return self._config is not None or self._is_untold or (self._given is not None and not self._is_refused)

    @property
    def presented(self) -> Credential:
        """Where keys are presented; as long as nobody has told: `authorization: Bearer <key>`."""
        if self._given is not None:
            return self._given
        if self._config is None:
            return BEARER
        return Credential(self._config.credential.header.lower(), self._config.credential.scheme)

    def credential(self) -> Credential:
        """Where keys are presented. Raises `AccessRefused` while that is not known."""
        if not self.is_known():
            raise AccessRefused(503, "UNDECIDED", "the key cannot be checked now; try again later")
        return self.presented

    def is_due(self) -> bool:
        """Whether to ask now; nobody else is told so before it is known what came of it, or should be."""
        now = self._clock()
        if now < self._due_at:
            return False
        self._due_at = now + REFRESH_S
        return True

    def learn(self, config: pb.CheckConfig) -> None:
        """Take what the server has told."""
        is_new = self._config is None or self._config.spec_version != config.spec_version
        self._config, self._is_refused, self._is_untold = config, False, False
        self._due_at = self._clock() + REFRESH_S
        if is_new:
            for problem in self.problems():
                self.faults.report(problem)

    def fail(self, error: errors.ApiError) -> None:
        """The server has told nothing."""
        # Whoever knows enough need not know soon, and in threads somebody has to wait for it.
        self._due_at = self._clock() + (RETRY_S if self._config is None else REFRESH_S)
        if error.code is grpc.StatusCode.UNIMPLEMENTED or error.reason == "PRODUCT_REQUIRED":
            # An older server, or a token for several products of which none was named: as told, or as most do.
            self._is_untold = True
            self._due_at += REFRESH_S
        elif _is_final(error):
            self._config, self._is_refused, self._is_untold = None, True, False
            self.faults.report(self.refused(error), error.reason)
        elif self._config is None:
            self.faults.report(f"the product's keys cannot be checked before Gatekey responds: {error}", "unreachable")

    def refused(self, error: errors.ApiError) -> str:
        """What to tell of a token that the product's keys cannot be checked with."""
        product = f"of the product `{self.id}`" if self.id else "of any product"
        return f"the service token cannot check keys {product}: {error}"

    def problems(self, requirements: Iterable[Requirement[Any]] | None = None) -> list[str]:
        """What is needed and cannot be had, since the spec does not declare it."""
        config = self._config
        if config is None:
            return []
        actions = {each.pattern: each.actions for each in config.collections}
        product = config.name.split("/")[1]
        problems = []
        for requirement in self.requirements if requirements is None else requirements:
            if requirement.collection is None:
                continue
            if requirement.collection not in actions:
                problems.append(
                    f"{requirement}: the product `{product}` declares no collection `{requirement.collection}`"
                )
            elif requirement.action not in actions[requirement.collection]:
                known = ", ".join(f"`{action}`" for action in actions[requirement.collection])
                problems.append(
                    f"{requirement}: the product `{product}` declares only {known} on `{requirement.collection}`"
                )
        return problems

    def verify(self, error: errors.ApiError | None, problems: Iterable[str] = ()) -> None:
        """Raise `Misconfigured` where requests cannot be served, by how the server was asked, and by more problems."""
        refused = [self.refused(error)] if error is not None and self._is_refused else []
        found = [*problems, *refused, *self.problems()]
        if found:
            raise errors.Misconfigured(found)


class Inquirer:
    """Asks about a product; for threads."""

    def __init__(self, client: Client, product: GuardedProduct) -> None:
        self._client = client
        self._product = product
        self._renew_lock()
        in_forked_child(self, Inquirer._renew_lock)

    def keep_up(self) -> None:
        """Ask if it is time to."""
        # Who knows enough does not wait for another thread that asks.
        if self._lock.acquire(blocking=not self._product.is_known()):
            try:
                if self._product.is_due():
                    self.ask()
            finally:
                self._lock.release()

    def ask(self) -> errors.ApiError | None:
        """Ask now; the error, if there was one."""
        try:
            self._product.learn(self._client.check_config(self._product.id))
        except errors.ApiError as error:
            self._product.fail(error)
            return error
        return None

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


class AsyncInquirer:
    """The same as `Inquirer`, for event loops."""

    def __init__(self, client: AsyncClient, product: GuardedProduct) -> None:
        self._client = client
        self._product = product
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def keep_up(self) -> None:
        """Ask if it is time to; nobody who knows enough waits for news."""
        if self._product.is_known():
            if self._product.is_due():
                self._task = asyncio.create_task(self._ask_behind(), name="gatekey-check-config")
            return
        async with self._lock:
            if not self._product.is_known() and self._product.is_due():
                await self.ask()

    async def ask(self) -> errors.ApiError | None:
        """Ask now; the error, if there was one."""
        try:
            self._product.learn(await self._client.check_config(self._product.id))
        except errors.ApiError as error:
            self._product.fail(error)
            return error
        return None

    async def _ask_behind(self) -> None:
        # It is closed once the service ends.
        with contextlib.suppress(RuntimeError):
            await self.ask()


def _is_final(error: errors.ApiError) -> bool:
    """Whether it would be no use to ask again as it is."""
    return isinstance(
        error, errors.InvalidArgument | errors.Unauthenticated | errors.PermissionDenied | errors.NotFound
    )
