"""The command `gatekey`, before its parts are imported.

A package of its own, for the import of `gatekey` alone takes longer than people wait before they press Ctrl-C.
"""

# What `signal` is made of: that one takes a while, too.
import _signal as signal  # type: ignore[import-not-found]
import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command line, whose parts are in the extra `gatekey[cli]`."""
    # No exception: in the middle of an import it may turn up as another one, or nowhere.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, _leave)
    # A server takes what grpcio writes of its own accord into its log. From a command it would say once more, in
    # grpcio's words, what the command says itself. It is read once, when grpcio is imported.
    if next((word for word in sys.argv[1:] if not word.startswith("-")), "") != "serve":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from gatekey.cli.app import run  # noqa: PLC0415 - the extra may be missing
    except ModuleNotFoundError as error:
        sys.exit(f"gatekey: {error.name} is missing: pip install 'gatekey[cli]'")
    try:
        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


def _leave(*_: object) -> None:
    os._exit(_INTERRUPTED)
