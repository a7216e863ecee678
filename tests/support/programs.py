"""Other languages' tools and programs."""

import asyncio
import re
import textwrap
from pathlib import Path

from tests.support.server import environment

_TIMEOUT_S = 600
"""The first build fetches and compiles all that a client depends on."""


async def run(*command: str | Path, cwd: Path | None = None, stdin: str = "", **variables: str) -> str:
    """Run a program to its end; answers what it printed. Fails with all of its output unless it succeeds."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environment(**variables),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, errors = await process.communicate(stdin.encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, f"{command} failed:\n{output.decode()}{errors.decode()}"
    return output.decode()


def blocks(document: Path, language: str) -> list[str]:
    """The blocks of code in a document, without what they are indented by."""
    found = re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for code in found]
