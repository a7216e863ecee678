"""No line of the log can be forged, filled with junk, or hold a token."""

import json
import logging
import subprocess
import sys

import pytest
from gatekey_server.runtime import logs

PROGRAM = """
import logging, sys, structlog
from gatekey_server.runtime import config, logs
logs.configure(config.load({}, log_format=sys.argv[1], serving=False))
text = "a\\n\\r\\x1b[31m\\0\\x85\\u2028\\u202e\\ud800\\x7f\\xa0b"
structlog.get_logger().warning(text, key=text, keys=[text, {text: text}], bad=ValueError(text))
try:
    raise ValueError(text)
except ValueError as error:
    structlog.get_logger().exception("failed", error=error)
logging.getLogger("library").warning("said %s", text)
import os, time
for number in range(1000):
    os.write(2, b"E1127 10:26:43.718521    6532 call.cc:358] Compression \\x1b[31m is disabled.\\n")
os.write(2, b"I1127 10:26:43.718521    6532 goaway.cc:1] " + b"x" * 100_000 + b"\\n")
os.write(2, b"by somebody else\\n")
os.write(2, b"E1127 10:26:43.718521    6532 goaway.cc:2] Got goaway with gk_0123456789abcdefghijABCDEFGHIJ01234567\\n")
for number in range(1000):
    structlog.get_logger().error("rpc.failed", method="Check", error=f"kind {number}")
time.sleep(0.5)
for number in range(1000):
    try:
        raise ValueError("gk_secret")
    except ValueError:
        logging.getLogger("grpc._cython.cygrpc").exception("Invalid encoding on %s", b"Bearer gk_secret")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_can_be_forged(form: str) -> None:
    command = [sys.executable, "-c", PROGRAM, form]
    output = subprocess.run(command, capture_output=True, check=True).stderr.decode()
    lines = output.split("\n")
    assert (
        len([line for line in lines if line and not line.startswith("  ")])
        == 6 + 2 * logs.MAX_TRANSPORT_LINES + logs.MAX_LINES
    )
    allowed = set("\x1b") if form == "console" else set[str]()
    assert [each for line in lines for each in line if not each.isprintable() and each not in allowed] == []
    assert "gk_secret" not in output
    assert "0123456789abcdefghij" not in output
    assert "Invalid encoding on %s (ValueError)" in output
    if form == "json":
        assert json.loads(lines[0])["event"] == r"a\n\r\x1b[31m\x00\x85\u2028\u202e\ud800\x7f\xa0b"


def test_what_was_left_out_is_counted() -> None:
    now = 0.0
    limited = logs.TransportFilter(clock=lambda: now)

    def record(text: str) -> logging.LogRecord:
        return logging.LogRecord("grpc.aio", logging.ERROR, "", 0, text, None, None)

    assert [limited.filter(record("one")) for _ in range(100)].count(True) == logs.MAX_TRANSPORT_LINES
    assert limited.filter(record("another"))
    now = logs.PERIOD_S
    following = record("one")
    assert limited.filter(following)
    assert following.__dict__["suppressed"] == 100 - logs.MAX_TRANSPORT_LINES
    assert [limited.filter(record(f"kind {number}")) for number in range(1000)].count(True) <= 200
    assert limited.filter(logging.LogRecord("gatekey", logging.ERROR, "", 0, "ours", None, None))
