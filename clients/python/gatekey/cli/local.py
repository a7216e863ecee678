"""The file by which `gatekey serve` tells the other commands, on the same machine, where it is.

It holds a token that may do everything: it is readable by its owner only, and not believed otherwise.
"""

import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "client.toml"
DEFAULT_PATH = Path(".gatekey") / FILE_NAME


class LocalConfigError(Exception):
    """The file is there and cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """Where the server is and how to be let in."""

    address: str
    token: str

    def __repr__(self) -> str:
        return f"LocalConfig(address={self.address!r})"


def read(path: Path) -> LocalConfig | None:
    """Read the file; None where there is none. Raises `LocalConfigError`."""
    content = read_private(path)
    if content is None:
        return None
    address, token = content.get("address"), content.get("token")
    if not isinstance(address, str) or not isinstance(token, str):
        raise LocalConfigError(f"{path} needs `address` and `token`")
    return LocalConfig(address, token)


def write(path: Path, config: LocalConfig) -> None:
    """Write the file in one step, with mode 0600."""
    # Neither can hold a quote or a backslash: they are an address and base-62 characters.
    write_private(
        path,
        "# Written by `gatekey serve`; read by the other commands.\n"
        f'address = "{config.address}"\ntoken = "{config.token}"\n',
    )


def read_private(path: Path) -> dict[str, Any] | None:
    """Read a TOML file that holds secrets; None where there is none. Raises `LocalConfigError`."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            # Anybody can put a file into a directory that others come by; ours would send them our token.
            if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise LocalConfigError(f"{path} must belong to you and have mode 0600")
            return tomllib.loads(file.read().decode("utf-8-sig"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LocalConfigError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LocalConfigError(f"{path}: {error}") from error


def write_private(path: Path, text: str) -> None:
    """Write a file in one step, with mode 0600."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
