"""The service token that is presented with every call, and where the next one comes from."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from gatekey import errors
from gatekey._fork_hooks import in_forked_child
from gatekey._secret_text import clean

TokenSource = str | Callable[[], str]
AsyncTokenSource = str | Callable[[], str | Awaitable[str]]
Metadata = tuple[tuple[str, str], ...]

S = TypeVar("S", bound=Callable[[], object])


class _CurrentToken(Generic[S]):
    """The token that is presented now. A callable is called for the first call, and again when its token is refused."""

    def __init__(self, given: str | S | None, *, optional: bool) -> None:
        """Raises `ValueError` where there is no token, unless it is optional."""
        self._from = "token="
        if given is None:
            given, self._from = os.environ.get("GATEKEY_TOKEN", ""), "GATEKEY_TOKEN"
        self._metadata: Metadata = ()
        self._source: S | None = None
        if not isinstance(given, str):
            self._source, self._from = given, "the function that gives the service token"
        elif given:
            self._take(given)
        elif not optional:
            raise ValueError("there is no service token: give token=..., or set GATEKEY_TOKEN")

    def _take(self, text: object) -> None:
        token = clean(text, self._from) if isinstance(text, str) else ""
        if not token:
            raise ValueError(f"{self._from}: there is no service token in it")
        self._metadata = (("authorization", f"Bearer {token}"),)

    def _take_from_source(self, text: object) -> None:
        try:
            self._take(text)
        except ValueError as error:
            raise errors.Unauthenticated(str(error), "TOKEN_UNAVAILABLE") from error

    @staticmethod
    def _failed() -> errors.Unauthenticated:
        return errors.Unauthenticated("the function that gives the service token failed", "TOKEN_UNAVAILABLE")


class Tokens(_CurrentToken[Callable[[], str]]):
    """For threads."""

    def __init__(self, given: TokenSource | None, *, optional: bool) -> None:
        super().__init__(given, optional=optional)
        self._renew_lock()
        in_forked_child(self, Tokens._renew_lock)

    def metadata(self) -> Metadata:
        """What to send with a call. Raises `Unauthenticated`."""
        return self._metadata or self.renewed(())

    def renewed(self, refused: Metadata) -> Metadata:
        """What to send after this was refused; the same where there is nothing else. Raises `Unauthenticated`."""
        if self._source is None:
            return refused
        with self._lock:
            if self._metadata == refused:
                try:
                    given = self._source()
                except Exception as error:
                    raise self._failed() from error
                self._take_from_source(given)
            return self._metadata

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


class AsyncTokens(_CurrentToken[Callable[[], str | Awaitable[str]]]):
    """For event loops."""

    def __init__(self, given: AsyncTokenSource | None, *, optional: bool) -> None:
        super().__init__(given, optional=optional)
        self._lock = asyncio.Lock()

    async def metadata(self) -> Metadata:
        """What to send with a call. Raises `Unauthenticated`."""
        return self._metadata or await self.renewed(())

    async def renewed(self, refused: Metadata) -> Metadata:
        """What to send after this was refused; the same where there is nothing else. Raises `Unauthenticated`."""
        if self._source is None:
            return refused
        async with self._lock:
            if self._metadata == refused:
                try:
                    given = self._source()
                    given = await given if inspect.isawaitable(given) else given
                except Exception as error:
                    raise self._failed() from error
                self._take_from_source(given)
            return self._metadata
