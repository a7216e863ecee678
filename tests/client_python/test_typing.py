"""The public signatures are what `signatures.py` says, and mistakes in calls are found."""

import subprocess
import sys

from tests.support.server import ROOT


def test_the_public_signatures() -> None:
    """`make types` has the same read by pyright."""
    command = [sys.executable, "-m", "mypy", "-m", "tests.client_python.signatures"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (ROOT / "tests/client_python/signatures.py").read_text().count("# type: ignore[") > 5
