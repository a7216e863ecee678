"""The command `gatekey`."""

import sys


def main() -> None:
    """Run the command line, whose parts are in the extra `gatekey[cli]`."""
    try:
        from gatekey.cli.app import run  # noqa: PLC0415 - the extra may be missing

        code = run()
    except ModuleNotFoundError as error:
        sys.exit(f"gatekey: {error.name} is missing: pip install 'gatekey[cli]'")
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
