"""The peppers of a deployment: read from the configuration, or generated at the first start."""

import os
import secrets
from base64 import b64encode
from pathlib import Path

from gatekey.core.secrets import Keyring

from gatekey_server.files import open_regular
from gatekey_server.runtime import variables
from gatekey_server.runtime.config import ConfigError, Settings, parse_peppers


def path(settings: Settings) -> Path:
    """Return the path of the file of peppers, for when no variable holds them."""
    return settings.peppers_file or settings.data_dir / "peppers"


def load(settings: Settings) -> Keyring:
    """Return the peppers. The first start with an embedded database generates them. Raises `ConfigError`."""
    if settings.peppers is not None:
        return Keyring(parse_peppers(settings.peppers.get_secret_value()))
    file = path(settings)
    try:
        if settings.peppers_file is None and not file.exists():
            if (settings.data_dir / "postgres").exists():
                raise ConfigError([f"{file} is gone, and the database's keys are sealed under it: bring it back"])
            _write_private(file, generate(1) + "\n")
        if settings.workers > 1 and not file.is_file():
            # Each worker reads them itself.
            open_regular(file).close()
        return Keyring(parse_peppers(variables.read_file(file)))
    except (OSError, ValueError) as error:
        variable = "GATEKEY_DATA_DIR" if settings.peppers_file is None else "GATEKEY_PEPPERS_FILE"
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError([f"{variable}: {file}: {why}"]) from error


def generate(version: int) -> str:
    """Return a new pepper, in the form of `GATEKEY_PEPPERS`."""
    return f"{version}:{b64encode(secrets.token_bytes(32)).decode()}"


def _write_private(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
        opened.flush()
        # Synced to disk: losing a pepper means losing all keys that were hashed under it.
        os.fsync(opened.fileno())
