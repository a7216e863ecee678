"""Verification of audit events, without a server: every hash is made anew and compared.

    with open("export.json") as file:  # what `gatekey audit list PRODUCT TENANT --output json` printed
        heads = gatekey.audit.verify(gatekey.audit.read(file))

How the hashes are made is in `docs/audit.md`.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Self, TextIO

from google.protobuf import json_format

from gatekey.core.audit import GENESIS, Event
from gatekey.v1 import audit_service_pb2 as pb

_HASH_BYTES = 32


class ChainBroken(Exception):
    """An event was changed, is missing or was put in between."""

    def __init__(self, parent: str, problem: str) -> None:
        super().__init__(f"{parent}: {problem}" if parent else problem)
        self.parent = parent
        """The product or the tenant whose chain it is."""
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain. As a text, `NUMBER:HASH` with the hash in base64, as in JSON."""

    sequence: int = 0
    hash: bytes = GENESIS

    def __str__(self) -> str:
        return f"{self.sequence}:{base64.b64encode(self.hash).decode()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NUMBER:HASH`. Raises `ValueError`."""
        number, _, hash_ = text.partition(":")
        try:
            # Heads that were kept from before are in hexadecimal.
            data = bytes.fromhex(hash_) if len(hash_) == 2 * _HASH_BYTES else base64.b64decode(hash_, validate=True)
        except ValueError as error:
            raise ValueError(f"{text} is not NUMBER:HASH") from error
        if not (number.isascii() and number.isdigit()) or len(data) != _HASH_BYTES:
            raise ValueError(f"{text} is not NUMBER:HASH")
        return cls(int(number), data)


class Chain:
    """The events of one product or tenant, from the first on, as far as they were added.

    Args:
        head: an end that the chain had before, which must still be part of it.
    """

    def __init__(self, parent: str, head: Head | None = None) -> None:
        self.parent = parent
        self.head = Head()
        self._wanted = head

    def add(self, event: pb.AuditEvent) -> None:
        """Verify the next event. Raises `ChainBroken`."""
        number = self.head.sequence + 1
        if event.sequence != number or event.parent != self.parent:
            raise ChainBroken(self.parent, f"event {number} is missing")
        made = _to_event(event).hash_after(self.head.hash)
        if made != event.hash:
            raise ChainBroken(self.parent, f"event {number} is not what was written")
        self.head = Head(number, made)
        if self._wanted is not None and number == self._wanted.sequence and self.head != self._wanted:
            raise ChainBroken(self.parent, f"event {number} is another one than before")

    def end(self) -> Head:
        """Return the head once all events were added. Raises `ChainBroken` where it ends before the earlier head."""
        if self._wanted is not None and self.head.sequence < self._wanted.sequence:
            raise ChainBroken(self.parent, f"the chain ends at {self.head.sequence}, before {self._wanted.sequence}")
        return self.head


def verify(events: Iterable[pb.AuditEvent]) -> dict[str, Head]:
    """Return the head of each chain, by its product or tenant, once all are verified. Raises `ChainBroken`."""
    chains: dict[str, Chain] = {}
    for event in events:
        chains.setdefault(event.parent, Chain(event.parent)).add(event)
    return {parent: chain.end() for parent, chain in chains.items()}


def read(file: TextIO) -> Iterator[pb.AuditEvent]:
    """Read the events of an export: the JSON of `ListAuditEvents`, or several of them one after the other.

    Raises `ValueError` for anything else.
    """
    text, decoder, place = file.read(), json.JSONDecoder(), 0
    while text[place:].strip():
        place += len(text[place:]) - len(text[place:].lstrip())
        page, place = decoder.raw_decode(text, place)
        if not isinstance(page, dict) or not isinstance(page.get("auditEvents"), list):
            raise ValueError("an export has a list `auditEvents`")
        for event in page["auditEvents"]:
            try:
                yield json_format.ParseDict(event, pb.AuditEvent())
            except json_format.ParseError as error:
                raise ValueError(f"not an audit event: {error}") from error


def _to_event(message: pb.AuditEvent) -> Event:
    ids = message.parent.split("/")[1::2]
    return Event(
        product="".join(ids[:1]),
        tenant="".join(ids[1:2]),
        sequence=message.sequence,
        time=message.event_time.ToDatetime(tzinfo=UTC),
        verb=message.verb,
        target=message.target,
        caller=message.caller,
        actor=message.actor,
        request_id=message.request_id,
        before=_plain(json_format.MessageToDict(message.before)) if message.HasField("before") else None,
        after=_plain(json_format.MessageToDict(message.after)) if message.HasField("after") else None,
        revision=message.revision if message.HasField("revision") else None,
        caller_display_name=message.caller_display_name or None,
    )


def _plain(value: Any) -> Any:
    """Undo what `Struct` does to whole numbers: events hold no others."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) else value
