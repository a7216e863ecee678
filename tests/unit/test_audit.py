"""Verification of audit events needs neither a server nor more than the base installation."""

import io
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from gatekey import audit
from gatekey.core.audit import GENESIS, Event
from gatekey.v1 import audit_service_pb2 as pb
from google.protobuf import json_format

EXTRAS = ("pydantic", "asyncpg", "alembic", "aiosql", "sqlalchemy", "structlog", "typer", "rich", "cryptography")


def test_it_needs_no_extra() -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in EXTRAS)
    subprocess.run([sys.executable, "-c", f"import sys; {blocked}import gatekey.audit"], check=True)


@pytest.fixture
def events() -> list[pb.AuditEvent]:
    """A chain of three events: from before there were revisions, from before names of callers, and a new one."""
    previous, made = GENESIS, []
    for number, (revision, name) in enumerate([(None, None), (7, None), (8, "edge")], 1):
        event = Event(
            product="heyoo",
            tenant="acme",
            sequence=number,
            time=datetime(2027, 1, 1, 12, 0, number, tzinfo=UTC),
            verb="UpdateTenant",
            target="products/heyoo/tenants/acme",
            caller="products/gatekey/tenants/system/apiKeys/key_1",
            actor="",
            request_id="",
            before={"display_name": '\u00e9\u2028"', "count": number},
            after=None,
            revision=revision,
            caller_display_name=name,
        )
        previous = event.hash_after(previous)
        message = pb.AuditEvent(
            parent="products/heyoo/tenants/acme",
            sequence=number,
            verb=event.verb,
            target=event.target,
            caller=event.caller,
            hash=previous,
            revision=revision,
            caller_display_name=name or "",
        )
        message.event_time.FromDatetime(event.time)
        message.before.update(event.before or {})
        made.append(message)
    return made


def export(events: list[pb.AuditEvent]) -> io.StringIO:
    page = pb.ListAuditEventsResponse(audit_events=events)
    return io.StringIO(json_format.MessageToJson(page))


def test_an_export_is_verified(events: list[pb.AuditEvent]) -> None:
    (head,) = audit.verify(audit.read(export(events))).values()
    assert head == audit.Head(3, events[-1].hash) == audit.Head.parse(str(head))
    # Page after page, as they may have been kept.
    both = io.StringIO(export(events[:1]).getvalue() + "\n" + export(events[1:]).getvalue())
    assert audit.verify(audit.read(both)) == {"products/heyoo/tenants/acme": head}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("verb", "DeleteTenant"),
        ("target", "products/heyoo"),
        ("caller", ""),
        ("caller_display_name", "other"),
        ("actor", "x"),
        ("request_id", "x"),
        ("revision", 9),
        ("sequence", 2),
        ("hash", bytes(32)),
        ("parent", "products/heyoo"),
        ("parent", ""),
        ("parent", "x"),
    ],
)
def test_a_change_of_any_field_is_found(events: list[pb.AuditEvent], field: str, value: object) -> None:
    setattr(events[-1], field, value)
    with pytest.raises(audit.ChainBroken):
        audit.verify(audit.read(export(events)))


def test_a_name_that_is_added_or_taken_away_is_found(events: list[pb.AuditEvent]) -> None:
    events[0].caller_display_name = "edge"
    with pytest.raises(audit.ChainBroken, match="event 1"):
        audit.verify(events)


@pytest.mark.parametrize(
    "text", ["", "1", "1:", ":x", f"-1:{'A' * 43}=", "1:AAAA", f"1:{'g' * 64}", f"\u0661:{'0' * 64}"]
)
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NUMBER:HASH"):
        audit.Head.parse(text)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "x", '{"auditEvents": [{"sequence": "x"}]}', '{"auditEvents": [{"no": 1}]}']
)
def test_what_is_no_export_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of JSON, of protobuf, or ours
        list(audit.read(io.StringIO(text)))
