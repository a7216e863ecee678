"""A real PgBouncer in front of a database."""

import asyncio
import os
import pwd
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from gatekey_server.store.embedded import _privileges

from tests.support.ports import free_ports

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")

_CONFIG = """
[databases]
{database} = host={host} port=5432 user=gatekey

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
logfile = {directory}/pgbouncer.log
pidfile = {directory}/pgbouncer.pid
{more}
"""


@asynccontextmanager
async def pgbouncer(directory: Path, url: str, mode: str, *, size: int = 20, more: str = "") -> AsyncIterator[str]:
    """Run PgBouncer in front of a URL's database, with a pool of so many; the URL that leads through it."""
    assert PGBOUNCER is not None
    parts = urlsplit(url)
    host, database, port = parse_qs(parts.query)["host"][0], parts.path[1:], free_ports(1)
    file = directory / "pgbouncer.ini"
    file.write_text(
        _CONFIG.format(database=database, host=host, port=port, mode=mode, size=size, directory=directory, more=more)
    )
    # Not as root, which it refuses, but as the user of the database, who may enter the directory of the socket.
    owner = pwd.getpwuid(Path(host).stat().st_uid)
    for path in (directory, file):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    command: list[str | Path] = ["setpriv", "--pdeathsig=KILL", *_privileges(owner)[-1], "--", PGBOUNCER, "-q", file]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    assert process.returncode is None, await process.stderr.read() if process.stderr else ""
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield f"postgresql://gatekey@127.0.0.1:{port}/{database}?sslmode=disable"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
