"""What an operator's machine may be like: the server works all the same, or says in one line why it cannot."""

import asyncio
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import grpc
import pytest
from gatekey.core.secrets import new_secret
from gatekey.v1 import product_service_pb2
from gatekey_server.store.database import ConnectError, Primary

from tests.integration.test_service import run_async
from tests.integration.test_workers import children, gone
from tests.support.certificates import LOCALHOST, Authority
from tests.support.databases import Databases
from tests.support.server import GATEKEY, PEPPERS, Client, ServerProcess, environment

ROOT_TOKEN = new_secret("gk_")
IS_ROOT = os.geteuid() == 0
# Everything is mounted anew, to be read only; what had to be written anywhere would fail.
READ_ONLY = """
mount --make-rprivate / && mount -o remount,ro,bind / && for place in /tmp /var/tmp /dev/shm /run "$TMPDIR"; do
    ! mountpoint -q "$place" || mount -t tmpfs -o ro none "$place" || exit 70
done
! touch /tmp/probe 2>/dev/null && ! touch /dev/shm/probe 2>/dev/null && exec "$@"
"""


def wrapped(script: str, *prefix: str) -> type[ServerProcess]:
    """Servers that a shell starts, once it has made the machine as it should be; the script ends with `exec "$@"`."""

    class Wrapped(ServerProcess):
        command = (*prefix, "sh", "-c", script, "sh", *GATEKEY)

    return Wrapped


@pytest.fixture(scope="module")
async def url(databases: Databases) -> str:
    """A database that these servers share, each after the other."""
    return await databases.create()


@pytest.fixture
def variables(url: str) -> dict[str, str]:
    """For a server on the shared database."""
    return {"GATEKEY_DATABASE_URL": url, "GATEKEY_PEPPERS": PEPPERS, "GATEKEY_ROOT_TOKEN": ROOT_TOKEN}


async def works(server: ServerProcess) -> None:
    """The server answers, and ends in order."""
    client = Client(server.address, ROOT_TOKEN)
    await client.products.ListProducts(product_service_pb2.ListProductsRequest(), timeout=10)
    await client.close()
    assert await server.stop() == 0
    assert "Traceback" not in "".join(server.output)


@pytest.mark.slow
@pytest.mark.skipif(not IS_ROOT or shutil.which("unshare") is None, reason="it takes root and the program `unshare`")
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_nothing_needs_to_be_written(variables: dict[str, str], workers: str) -> None:
    server = await wrapped(READ_ONLY, "unshare", "-m").start({**variables, "GATEKEY_WORKERS": workers}, cwd=Path("/"))
    await works(server)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "more"),
    [
        (
            'ulimit -Sn 20; unset HOME USER LOGNAME; exec "$@" <&-',
            {
                "LC_ALL": "C",
                "PYTHONUTF8": "0",
                "PYTHONCOERCECLOCALE": "0",
                "TZ": "Nowhere/Odd+99",
                "GATEKEY_LISTEN": "localhost:0",
                "GATEKEY_PORT": "tcp://10.96.14.7:50051",
            },
        ),
        ('exec "$@"', {"GATEKEY_LISTEN": "[::1]:0", "GATEKEY_METRICS_LISTEN": "[::1]:0", "GATEKEY_WORKERS": "2"}),
    ],
    ids=["bare", "ipv6"],
)
async def test_a_server_works_on_odd_machines(variables: dict[str, str], script: str, more: dict[str, str]) -> None:
    server = await wrapped(script).start({**variables, **more})
    # Without a terminal there is nothing to do.
    server.process.send_signal(signal.SIGHUP)
    await until(lambda: "server.hangup_ignored" in "".join(server.output))
    await works(server)


async def test_a_log_that_nobody_reads_does_not_stop_the_server(variables: dict[str, str]) -> None:
    server = await wrapped('exec "$@" 2>/dev/full').start(variables)
    server.process.send_signal(signal.SIGHUP)
    await works(server)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "more", "expected"),
    [
        ('ulimit -n 20; exec "$@"', {}, "this process may have 20 files and connections open (ulimit -n), and needs"),
        ('exec "$@"', {"GATEKEY_LISTEN": "192.0.2.1:0", "GATEKEY_INSECURE": "1"}, "Cannot assign requested address"),
        (
            'exec "$@"',
            {"GATEKEY_LISTEN": "no-such-host.invalid:0", "GATEKEY_INSECURE": "1"},
            "cannot listen on no-such",
        ),
        ('exec "$@"', {"GATEKEY_METRICS_LISTEN": "no-such-host.invalid:0"}, "cannot listen on no-such-host.invalid:0"),
    ],
)
async def test_what_keeps_a_server_from_starting_is_one_line(
    variables: dict[str, str], script: str, more: dict[str, str], expected: str
) -> None:
    with pytest.raises(AssertionError, match="the server did not start") as raised:
        await wrapped(script).start({**variables, **more})
    told = str(raised.value).partition("did not start: ")[2].splitlines()
    # The first of these servers logs that it has stored the root token.
    (line,) = [line for line in told if "root_token.stored" not in line]
    assert line.startswith("error: ")
    assert expected in line


@pytest.mark.slow
async def test_a_taken_port_comes_with_a_way_out(variables: dict[str, str]) -> None:
    server = await ServerProcess.start({**variables, "GATEKEY_METRICS_LISTEN": "127.0.0.1:0"})
    metrics = next(line for line in server.output if "metrics.ready" in line).partition('"address": "')[2].split('"')[0]
    for more, way_out in (
        ({"GATEKEY_LISTEN": server.address}, "`gatekey serve --listen 127.0.0.1:0`"),
        ({"GATEKEY_METRICS_LISTEN": metrics}, "GATEKEY_METRICS_LISTEN=127.0.0.1:0 takes a free port"),
    ):
        result = await run_async("serve", **{"GATEKEY_LISTEN": "127.0.0.1:0", **variables, **more})
        assert result.returncode == 1
        assert "another program listens there" in result.stderr
        assert way_out in result.stderr
    await works(server)


# ---------------------------------------------------------------- databases that do not behave

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


@asynccontextmanager
async def peer(behave: Peer) -> AsyncIterator[str]:
    """Something that is not a PostgreSQL; the URL that leads there."""
    writers = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        behave(reader, writer)

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"postgresql://u:hunter2@127.0.0.1:{server.sockets[0].getsockname()[1]}/d"
        for writer in writers:
            writer.close()


@pytest.mark.parametrize(
    ("behave", "query", "expected"),
    [
        (lambda _, __: None, "", "no response within 0.5 s"),
        (lambda _, writer: writer.close(), "", ""),
        (lambda _, writer: writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "", ""),
        (lambda _, writer: writer.write(b"N\x00\x00\x00"), "?sslmode=require", "rejected SSL upgrade"),
        (lambda _, writer: writer.write(b"S" + bytes(64)), "?sslmode=require", ""),
        (lambda _, writer: writer.write(b"R" + b"\xff" * 64), "?sslmode=disable", ""),
    ],
    ids=["silent", "closes", "http", "no-tls", "bad-tls", "nonsense"],
)
async def test_what_is_not_a_database_is_described(behave: Peer, query: str, expected: str) -> None:
    async with peer(behave) as url:
        with pytest.raises(ConnectError) as raised:
            await Primary(url + query).connect(timeout=0.5, server_settings={})
    told = str(raised.value)
    assert re.fullmatch(r"127\.0\.0\.1:\d+: .{4,}", told)
    assert expected in told
    assert "hunter2" not in told


@pytest.mark.slow
async def test_what_is_not_a_database_is_given_up_in_one_line() -> None:
    async with peer(lambda _, __: None) as url:
        began_at = time.monotonic()
        result = await run_async("serve", GATEKEY_DATABASE_URL=f"{url}?connect_timeout=1", GATEKEY_PEPPERS=PEPPERS)
    assert result.returncode == 1
    assert re.fullmatch(
        r"error: the database cannot be used: 127\.0\.0\.1:\d+: no response within 1 s\n", result.stderr
    )
    assert time.monotonic() - began_at < 15


# ---------------------------------------------------------------- stopping


class Way:
    """A way to the database that can be lost."""

    def __init__(self) -> None:
        self.is_lost = asyncio.Event()

    @asynccontextmanager
    async def to(self, url: str, directory: Path) -> AsyncIterator[str]:
        """The URL of the way; whatever is sent on it once it is lost goes nowhere, and no end is told of the other."""
        host = parse_qs(urlsplit(url).query)["host"][0]
        links: set[asyncio.Task[None]] = set()
        writers: list[asyncio.StreamWriter] = []

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while (data := await reader.read(1 << 16)) and not self.is_lost.is_set():
                writer.write(data)
            if not self.is_lost.is_set():
                writer.close()
            await asyncio.Event().wait()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up_reader, up_writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.5432")
            writers.extend((writer, up_writer))
            links.update(asyncio.create_task(pump(*pair)) for pair in ((reader, up_writer), (up_reader, writer)))

        async with await asyncio.start_unix_server(accept, directory / ".s.PGSQL.5432"):
            yield url.replace(f"host={quote(host)}", f"host={quote(str(directory))}")
            for link in links:
                link.cancel()
            await asyncio.gather(*links, return_exceptions=True)
            for writer in writers:
                writer.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_stop_is_bounded_while_the_database_is_away(
    variables: dict[str, str], url: str, tmp_path: Path, workers: str
) -> None:
    way = Way()
    async with way.to(url, tmp_path) as lost_url:
        server = await ServerProcess.start(
            {
                **variables,
                "GATEKEY_DATABASE_URL": lost_url,
                "GATEKEY_WORKERS": workers,
                "GATEKEY_SHUTDOWN_GRACE_S": "1",
                # Whatever else the operator waits for.
                "GATEKEY_STATEMENT_TIMEOUT_S": "60",
                "GATEKEY_ACQUIRE_TIMEOUT_S": "60",
            }
        )
        way.is_lost.set()
        began_at = time.monotonic()
        assert await server.stop() == 0
        # Bounded by the grace and what follows it, and not by the times for requests.
        assert time.monotonic() - began_at < 20


async def test_a_stop_while_the_server_starts_ends_it_at_once(databases: Databases) -> None:
    url = await databases.create()
    other = await asyncpg.connect(url)
    await other.execute("begin; lock table schema_version in access exclusive mode")
    process = await asyncio.create_subprocess_exec(
        *(*GATEKEY, "serve"),
        env=environment(
            GATEKEY_DATABASE_URL=url,
            GATEKEY_PEPPERS=PEPPERS,
            GATEKEY_LISTEN="127.0.0.1:0",
            GATEKEY_STATEMENT_TIMEOUT_S="60",
        ),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        while not await other.fetchval("select count(*) from pg_locks where not granted"):
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    await other.close()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_second_signal_ends_the_server_at_once(databases: Databases, workers: str) -> None:
    url = await databases.create()
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": url,
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_ROOT_TOKEN": ROOT_TOKEN,
            "GATEKEY_WORKERS": workers,
            "GATEKEY_SHUTDOWN_GRACE_S": "60",
            "GATEKEY_STATEMENT_TIMEOUT_S": "60",
        }
    )
    other, client = await asyncpg.connect(url), Client(server.address, ROOT_TOKEN)
    await client.products.ListProducts(product_service_pb2.ListProductsRequest(), timeout=10)
    await other.execute("begin; lock table product in access exclusive mode")
    request = product_service_pb2.ListProductsRequest(page_size=7)
    call = asyncio.ensure_future(client.products.ListProducts(request, timeout=60))
    async with asyncio.timeout(20):
        while not await other.fetchval("select count(*) from pg_locks where not granted"):
            await asyncio.sleep(0.02)
    workers_pids = children(server.process.pid)
    server.process.send_signal(signal.SIGINT)
    await until(lambda: "server.stopping" in "".join(server.output))
    began_at = time.monotonic()
    assert await server.stop(signal.SIGINT) == 130
    await gone(workers_pids)
    assert time.monotonic() - began_at < 10
    with pytest.raises(grpc.RpcError):
        await call
    await client.close()
    await other.close()


@pytest.mark.slow
async def test_a_server_whose_own_database_is_lost_fails(tmp_path: Path) -> None:
    server = await ServerProcess.start({"GATEKEY_DATA_DIR": str(tmp_path), "GATEKEY_SHUTDOWN_GRACE_S": "0"})
    (tmp_path / "postgres" / "PG_VERSION").unlink()
    os.kill(int((tmp_path / "postgres" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGQUIT)
    async with asyncio.timeout(30):
        assert await server.process.wait() == 1
    assert await server.stop() == 1
    assert "error: the embedded database ended and cannot be started again: " in "".join(server.output)


@pytest.mark.slow
async def test_a_worker_whose_files_have_changed_says_so(variables: dict[str, str], tmp_path: Path) -> None:
    certificate, key = Authority("root").issue(LOCALHOST).write(tmp_path)
    server = await ServerProcess.start(
        {
            **variables,
            "GATEKEY_WORKERS": "2",
            "GATEKEY_TLS_CERTIFICATE": str(certificate),
            "GATEKEY_TLS_KEY": str(key),
        }
    )
    certificate.write_text("")
    os.kill(children(server.process.pid)[0], signal.SIGKILL)
    expected = f"error: GATEKEY_TLS_CERTIFICATE: {certificate} is empty"
    await until(lambda: expected in "".join(server.output))
    assert await server.stop() == 0
    assert "Traceback" not in "".join(server.output)
