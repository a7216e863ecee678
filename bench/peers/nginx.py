"""nginx that answers every request with an empty 200 over HTTP/2: about the least that a server can do."""

import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import Plan
from bench.processes import answers, process

_CONFIG = """\
worker_processes 1;
daemon off;
pid {home}/pid;
error_log {home}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen 127.0.0.1:{port} http2;
        keepalive_requests 1000000000;
        location / {{ return 200; }}
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A server that answers."""

    address: str
    pid: int

    def plan(self, bodies: Path, **changes: object) -> Plan:
        """A load of requests."""
        return Plan(address=self.address, path="/", bodies=str(bodies), **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def nginx(cores: frozenset[int]) -> AsyncIterator[Nginx | str]:
    """Start it; yields why not where it cannot be had."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        yield "nginx is missing"
        return
    with tempfile.TemporaryDirectory(prefix="gatekey-bench-") as directory, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.close()
        home = Path(directory)
        home.chmod(0o755)
        config = home / "nginx.conf"
        config.write_text(_CONFIG.format(home=home, port=port))
        async with process(program, "-c", str(config), cores=cores) as server:
            await answers(f"127.0.0.1:{port}")
            yield Nginx(f"127.0.0.1:{port}", server.pid)
