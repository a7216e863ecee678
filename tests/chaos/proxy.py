"""A way to PostgreSQL on which answers come late, or connections are silently lost."""

import asyncio
import contextlib
import enum
from dataclasses import dataclass
from pathlib import Path

SOCKET = ".s.PGSQL.5432"

_CHANGES = b"application_name\0gatekey-changes\0"
_CHUNK = 1 << 16


class Loss(enum.Enum):
    """What of a connection is lost."""

    NOTHING = frozenset[str]()
    ANSWERS = frozenset({"answers"})
    """The database goes on hearing from the process, which hears nothing of it."""
    ALL = frozenset({"questions", "answers"})


@dataclass(eq=False, slots=True)
class _Link:
    is_of_changes: bool
    loss: Loss = Loss.NOTHING


class Proxy:
    """Listens on a socket in `directory` as PostgreSQL would, and hands everything on to the one in `upstream`.

    A connection that was lost stays lost: both ends keep it open, and nothing comes through.
    """

    def __init__(self, directory: Path, upstream: Path) -> None:
        self._directory = directory
        self._upstream = upstream
        self._links: set[_Link] = set()
        self._delay_s = 0.0
        self._loss = Loss.NOTHING
        self._changes_only = True
        self._healed = asyncio.Event()
        self._healed.set()

    async def listen(self) -> asyncio.Server:
        """Begin to listen."""
        return await asyncio.start_unix_server(self._serve, self._directory / SOCKET)

    def slow(self, round_trip_s: float) -> None:
        """Let every round trip take this much longer."""
        self._delay_s = round_trip_s / 2

    def lose(self, loss: Loss, *, changes_only: bool) -> None:
        """Lose connections, new ones as well, until `heal`."""
        self._loss, self._changes_only = loss, changes_only
        self._healed.clear()
        for link in self._links:
            self._touch(link)

    def heal(self) -> None:
        """Let new connections be good ones again."""
        self._loss = Loss.NOTHING
        self._healed.set()

    def _touch(self, link: _Link) -> None:
        if link.is_of_changes or not self._changes_only:
            link.loss = self._loss

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            startup = await _read_packet(reader)
            up_reader, up_writer = await asyncio.open_unix_connection(self._upstream / SOCKET)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return
        link = _Link(is_of_changes=_CHANGES in startup)
        self._touch(link)
        self._links.add(link)
        if "questions" not in link.loss.value:
            up_writer.write(startup)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump("questions", reader, up_writer, link))
                tasks.create_task(self._pump("answers", up_reader, writer, link))
        finally:
            self._links.discard(link)

    async def _pump(
        self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if direction not in link.loss.value:
                    writer.write(data)
                    await writer.drain()
        if link.loss is not Loss.NOTHING:
            # The end of one side does not reach the other either.
            await self._healed.wait()
        writer.close()


async def _read_packet(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length) - 4)
