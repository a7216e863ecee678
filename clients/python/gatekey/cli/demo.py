"""Placeholder."""

from pathlib import Path


def prepare(address: str, token: str, specs: Path, keys_file: Path) -> None:
    return None
