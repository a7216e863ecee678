"""A server under attack: a victim that goes on asking, what it sees, and what the attack leaves in the server."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
from gatekey.core.secrets import new_secret

from tests.attack.attacks import Attack
from tests.attack.ground import ATTACKED, Ground, Scene
from tests.attack.victim import Found, Needs
from tests.support.certificates import LOCALHOST, Authority
from tests.support.server import PEPPERS, ROOT, Client, ServerProcess, read_example

TRANSPORTS = ("plain", "TLS")

MAX_P99_MS = 100.0
MAX_LOG_KB = 64.0
MAX_GROWTH_MB = 256.0

_WARM_KEYS = 20
_SECRET = re.compile(r"[a-z]+_[0-9A-Za-z]{38}")
_HEAD_START_S = 0.2
_WAIT_S = 60


@dataclass(frozen=True)
class Outcome:
    """What an attack did."""

    attack: Attack
    transport: str
    found: Found
    growth_mb: float
    """How far the server's memory rose above what it was, at its highest."""
    log_kb: float
    secrets_in_log: int
    failures: list[str]
    """What the log says of calls, and of work in the background, that the server calls its own fault."""
    is_alive: bool
    seen: Mapping[str, int]
    """What the attacker saw, for whoever wonders whether it attacked at all."""

    def percentile(self, part: float) -> float:
        """Of the times that checks took, in milliseconds."""
        took = sorted(self.found.ms)
        return took[min(int(len(took) * part), len(took) - 1)] if took else float("inf")

    @property
    def faults(self) -> list[str]:
        """What is not as it must be."""
        judgements = {
            f"p99 over {MAX_P99_MS:g} ms": self.percentile(0.99) > MAX_P99_MS,
            f"lost {sorted(set(self.found.lost))[:3]}": self.found.lost,
            "a secret in the log": self.secrets_in_log,
            f"log over {MAX_LOG_KB:g} KB": self.log_kb > MAX_LOG_KB,
            f"memory over {MAX_GROWTH_MB:g} MB": self.growth_mb > MAX_GROWTH_MB,
            f"the server's own fault: {self.failures[:1]}": self.failures,
            "the server has ended": not self.is_alive,
            "the attacker saw nothing": not self.seen,
        }
        return [text for text, holds in judgements.items() if holds]


@dataclass
class Field:
    """A server, its database, a victim, and what attackers are told."""

    transport: str
    server: ServerProcess
    ground: Ground
    scene: Scene
    _victim: asyncio.subprocess.Process
    _tokens: list[str]
    """Of everybody: none of them may be found in the log."""

    async def suffer(self, attack: Attack, seconds: float) -> Outcome:
        """Let an attack be done for so long."""
        snapshots = await attack.prepare(self.ground)
        scene = replace(self.scene, snapshots=snapshots)
        attacker = await _spawn(sys.executable, "-m", "tests.attack.attacker", attack.name)
        try:
            _tell(attacker, json.dumps(asdict(scene)))
            assert await _line(attacker) == "ready"
            log_begin, before_kb = len(self.server.output), self._memory_kb("VmRSS")
            Path(f"/proc/{self.server.process.pid}/clear_refs").write_text("5")
            _tell(attacker, str(seconds + 2 * _HEAD_START_S))
            await asyncio.sleep(_HEAD_START_S)
            _tell(self._victim, str(seconds))
            found = Found(**json.loads(await _line(self._victim)))
            seen = json.loads(await _line(attacker))
            await attacker.wait()
        finally:
            if attacker.returncode is None:
                attacker.kill()
                await attacker.wait()
        is_alive = self.server.process.returncode is None
        log = "".join(self.server.output[log_begin:])
        return Outcome(
            attack=attack,
            transport=self.transport,
            found=found,
            growth_mb=(self._memory_kb("VmHWM") - before_kb) / 1024 if is_alive else 0,
            log_kb=len(log.encode()) / 1024,
            secrets_in_log=len(_SECRET.findall(log)) + sum(token[3:35] in log for token in self._tokens),
            failures=[line for line in log.splitlines() if '.failed"' in line],
            is_alive=is_alive,
            seen=seen,
        )

    def _memory_kb(self, name: str) -> int:
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0])


@asynccontextmanager
async def open_field(
    transport: str, database_url: str, directory: Path, *, cold_keys: int, scale: float
) -> AsyncIterator[Field]:
    """Start a server and a victim; end them afterwards.

    Args:
        transport: one of `TRANSPORTS`.
        database_url: an empty database with the schema.
        directory: for certificates.
        cold_keys: how many keys the victim can ask for once.
        scale: of how many rows there are to be, where an attack is about many.
    """
    token, variables = new_secret("gk_"), dict[str, str]()
    authority = Authority("attacked")
    ca = directory / "authority.pem"
    if transport == "TLS":
        certificate, key = authority.issue(LOCALHOST).write(directory)
        ca.write_bytes(authority.pem)
        variables = {"GATEKEY_TLS_CERTIFICATE": str(certificate), "GATEKEY_TLS_KEY": str(key)}
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": database_url,
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_ROOT_TOKEN": token,
            # Removed rows are purged while the victim asks.
            "GATEKEY_MAINTENANCE_INTERVAL_S": "0.5",
            **variables,
        }
    )
    root = Client(server.address, token, authority.trusted() if variables else None)
    sql = await asyncpg.connect(database_url)
    ground = Ground(root, sql, scale)
    victim = await _spawn(sys.executable, "-m", "tests.attack.victim")
    try:
        needs = await _set_up(ground, str(ca) if variables else None, cold_keys)
        _tell(victim, json.dumps(asdict(needs)))
        scene = Scene(
            address=server.address,
            ca=needs.ca,
            checker=await root.create_token({f"products/{ATTACKED}/checks": ["create"]}),
            administrator=await root.create_token({f"products/{ATTACKED}": ["*"]}),
        )
        tokens = [token, needs.token, scene.checker, scene.administrator]
        yield Field(transport, server, ground, scene, victim, tokens)
    finally:
        # It may have ended by itself: the server is to be stopped all the same.
        if victim.returncode is None:
            victim.kill()
        await victim.wait()
        await sql.close()
        await root.close()
        await server.stop()


async def _set_up(ground: Ground, ca: str | None, cold_keys: int) -> Needs:
    """Make the victim's product and the one that attackers know."""
    root = ground.root
    await root.apply(read_example("heyoo"))
    spec = read_example("codeqr")
    spec.product, spec.secret_keys.prefix, spec.publishable_keys.prefix = ATTACKED, f"{ATTACKED}_", f"{ATTACKED}pub_"
    spec.collections.add(pattern="domains/*/links", actions=["read", "write"])
    await root.apply(spec)
    tenant = await root.create_tenant("heyoo", "victim")
    key = await root.create_key(tenant, await root.add_member(tenant, "owner", "owner"), mode="ALL")
    secrets = await ground.copies(key.api_key.name, _WARM_KEYS + cold_keys)
    token = await root.create_token({"products/heyoo/checks": ["create"]})
    return Needs(root.address, ca, token, secrets[:_WARM_KEYS], secrets[_WARM_KEYS:])


async def _spawn(*command: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe, limit=1 << 26)


def _tell(process: asyncio.subprocess.Process, line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())


async def _line(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    async with asyncio.timeout(_WAIT_S):
        return (await process.stdout.readline()).decode().strip()
