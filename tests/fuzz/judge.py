"""What holds for every answer and for the log, whatever was sent."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

MAX_TRAILER_BYTES = 8 << 10
"""Clients refuse larger ones, and the answer with them."""

_Code = grpc.StatusCode
_FAULTS = {_Code.INTERNAL, _Code.UNKNOWN, _Code.DATA_LOSS, _Code.DEADLINE_EXCEEDED, _Code.CANCELLED}
_REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
# What an exception, a driver or a traceback would say, and no answer does.
_EXCEPTION = re.compile(
    r"Traceback|\b[A-Z]\w*(?:Error|Exception|Warning)\b|<class '|\bobject at 0x|asyncpg|sqlalchemy"
    r"|gatekey_server|google\.protobuf|site-packages|\.py\b|\bline \d+, in |/(?:usr|home|tmp|var|root)/"
    r"|(?i:\b(?:select\b.+\bfrom|insert into|delete from|update \w+ set)\b)|PostgreSQL|SQLSTATE"
)
# What the transport says by itself, before there is a request of ours.
_OF_TRANSPORT = ((_Code.RESOURCE_EXHAUSTED, re.compile(r".*Received message larger than max.*", re.DOTALL)),)
_BAD_EVENT = re.compile(r"\w+(?:\.\w+)+")
"""Of ours: those of the transport are sentences. At the level of an error there is none for what a peer sends."""
_ERRORS = {"error", "critical"}


@dataclass(frozen=True)
class Answer:
    """How a call ended."""

    code: grpc.StatusCode
    message: str = ""
    details: bytes = b""
    """The trailer `grpc-status-details-bin`."""


def faults(answer: Answer, *, identified: bool, secrets: Collection[str] = ()) -> list[str]:
    """What is wrong with an answer, to a caller with a valid token or to another."""
    if not identified and answer.code not in {_Code.UNAUTHENTICATED, _Code.RESOURCE_EXHAUSTED}:
        return [f"a caller without a valid token is answered {answer.code.name}"]
    if answer.code is _Code.OK:
        return []
    found = [f"the status is {answer.code.name}"] if answer.code in _FAULTS else []
    if any(answer.code is code and words.fullmatch(answer.message) for code, words in _OF_TRANSPORT):
        return found
    found += _faults_of_text("the message", answer.message, secrets)
    size = len(quote(answer.message)) + len(answer.details) * 4 // 3
    if size > MAX_TRAILER_BYTES:
        found.append(f"message and details have {size} bytes")
    return found + _faults_of_details(answer, secrets)


def _faults_of_details(answer: Answer, secrets: Collection[str]) -> list[str]:
    try:
        status = status_pb2.Status.FromString(answer.details)
    except DecodeError:
        return ["the details are no message"]
    info, bad_request, found = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), list[str]()
    if not any(detail.Unpack(info) for detail in status.details):
        return ["there is no ErrorInfo"]
    for detail in status.details:
        detail.Unpack(bad_request)
    if status.code != answer.code.value[0]:
        found.append(f"the details have the code {status.code}")
    if info.domain != "gatekey":
        found.append(f"the domain is {info.domain!r}")
    for reason in (info.reason, *(violation.reason for violation in bad_request.field_violations)):
        if not _REASON.fullmatch(reason):
            found.append(f"{reason!r} is no reason")
    texts = [status.message, *info.metadata.values()]
    for violation in bad_request.field_violations:
        texts += [violation.field, violation.description]
    for text in texts:
        found += _faults_of_text("the details", text, secrets)
    return found


def _faults_of_text(what: str, text: str, secrets: Collection[str]) -> list[str]:
    found = []
    if match := _EXCEPTION.search(text):
        found.append(f"{what} has {match[0]!r}: {text[:300]!r}")
    if any(secret in text for secret in secrets):
        found.append(f"{what} has a secret in it")
    return found


def faults_of_log(lines: Iterable[str], secrets: Collection[str] = ()) -> list[str]:
    """What is wrong with lines of a log."""
    found = []
    for line in lines:
        if "Traceback" in line or _is_failure(line):
            found.append(f"the log has {line.strip()[:3000]}")
        if any(secret in line for secret in secrets):
            found.append("the log has a secret in it")
    return found


def _is_failure(line: str) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        # What is no entry is what the command prints at the start.
        return False
    event = str(entry.get("event", ""))
    return bool(_BAD_EVENT.fullmatch(event)) and (event.endswith(".failed") or entry.get("level") in _ERRORS)


def faults_of_problem(lines: Sequence[str], exit_code: int) -> list[str]:
    """What is wrong with how the command line refuses a spec."""
    found = [] if exit_code == 1 else [f"the exit code is {exit_code}"]
    for line in lines:
        found += _faults_of_text("a line", line, ())
    if not lines or not re.search(r"\([A-Z][A-Z_]+\)$", lines[0]):
        found.append(f"there is no reason: {lines[:1]}")
    return found
