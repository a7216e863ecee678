"""The file by which `gatekey serve` tells the other commands, on the same machine, where it is.

It holds a token that may do everything: it is readable by its owner only, and not believed otherwise.
"""

import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path

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
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            # Anybody can put a file into a directory that others come by; ours would send them our token.
            if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise LocalConfigError(f"{path} must belong to you and have mode 0600")
            content = tomllib.load(file)
    except FileNotFoundError:
        return None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise LocalConfigError(f"{path}: {error}") from error
    address, token = content.get("address"), content.get("token")
    if not isinstance(address, str) or not isinstance(token, str):
        raise LocalConfigError(f"{path} needs `address` and `token`")
    return LocalConfig(address, token)


def write(path: Path, config: LocalConfig) -> None:
    """Write the file in one step, with mode 0600."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        # Neither can hold a quote or a backslash: they are an address and base-62 characters.
        file.write(f'# Written by `gatekey serve`; read by the other commands.\naddress = "{config.address}"\n')
        file.write(f'token = "{config.token}"\n')
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
