"""A way to PostgreSQL on which connections can be lost without either end being told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

_SOCKET = ".s.PGSQL.5432"
_CHANGES = b"application_name\0gatekey-changes\0"
_CHUNK = 1 << 16


class Proxy:
    """Hands on what it is sent, until it is told to lose it."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._feeds: list[asyncio.Event] = []
        self._links: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path, url: str) -> AsyncIterator[tuple["Proxy", str]]:
        """Listen on a socket in a directory; also answers the URL that leads through it."""
        host = parse_qs(urlsplit(url).query)["host"][0]
        proxy = cls(Path(host))
        server = await asyncio.start_unix_server(proxy._serve, directory / _SOCKET)
        try:
            yield proxy, url.replace(f"host={quote(host)}", f"host={quote(str(directory))}")
        finally:
            server.close()
            for link in tuple(proxy._links):
                link.cancel()
            await asyncio.gather(*proxy._links, return_exceptions=True)

    def lose_feeds(self) -> None:
        """Lose the connections on which changes are polled; those that are made from now on are good ones."""
        for lost in self._feeds:
            lost.set()
        self._feeds.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        up_reader, up_writer = await asyncio.open_unix_connection(self._upstream / _SOCKET)
        lost = asyncio.Event()
        try:
            length = await reader.readexactly(4)
            startup = length + await reader.readexactly(int.from_bytes(length) - 4)
            if _CHANGES in startup:
                self._feeds.append(lost)
            up_writer.write(startup)
            pumps = [asyncio.create_task(_pump(reader, up_writer, lost))]
            pumps.append(asyncio.create_task(_pump(up_reader, writer, lost)))
            # Where it was lost, the end of one side does not reach the other either.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if lost.is_set():
                await asyncio.wait(pumps)
        finally:
            for one in (writer, up_writer):
                one.close()
            self._links.discard(task)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            if not lost.is_set():
                writer.write(data)
                await writer.drain()
