"""Audit events, and the hash chain that shows whether one was changed or removed.

Each product and each tenant has its own chain, numbered from 1 without gaps. The hash of an event is the SHA-256 of
its predecessor's hash and of the event itself, as JSON with sorted keys and without white space. A chain alone does
not show whether its end was cut off: keep the newest sequence number and hash elsewhere, and compare.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from gatekey.core.entities import ApiKey, Deleted, Principal, Product, Tenant

GENESIS = bytes(32)
"""The hash that the first event follows."""

Description = Mapping[str, Any]
"""The JSON description of a resource. It holds no secrets."""


AuditPosition = tuple[str, str, int]
"""The position of an event: product, tenant (empty for the product's own chain) and sequence number."""


@dataclass(frozen=True, slots=True)
class Event:
    """An audit event: the change, its caller and its actor. Texts that do not apply are empty."""

    product: str
    tenant: str
    sequence: int
    time: datetime
    verb: str
    target: str
    caller: str
    actor: str
    request_id: str
    before: Description | None
    after: Description | None
    revision: int | None = None
    """The revision of the change; None for events from before there were revisions."""
    caller_display_name: str | None = None
    """The display name of the caller's token; None without a token, and in events from before this field."""

    def hash_after(self, previous: bytes) -> bytes:
        """Return the event's hash, given its predecessor's."""
        content: dict[str, Any] = {
            "product": self.product,
            "tenant": self.tenant,
            "sequence": self.sequence,
            "time": _time(self.time),
            "verb": self.verb,
            "target": self.target,
            "caller": self.caller,
            "actor": self.actor,
            "request_id": self.request_id,
            "before": self.before,
            "after": self.after,
        }
        if self.revision is not None:
            content["revision"] = self.revision
        if self.caller_display_name is not None:
            content["caller_display_name"] = self.caller_display_name
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(previous + text.encode()).digest()


def describe(thing: Product | Tenant | Principal | ApiKey | None) -> Description | None:
    """Return the description of a resource for an event; None for None."""
    if thing is None:
        return None
    if isinstance(thing, Product):
        return {
            "spec_version": thing.spec_version,
            "spec": _plain(thing.compiled.spec),
        }
    if isinstance(thing, Tenant):
        return {"display_name": thing.display_name, "state": thing.state.value, "purge_time": _time(thing.purge_time)}
    if isinstance(thing, Principal):
        return {"display_name": thing.display_name, "role": thing.role}
    return {
        **({"actor_required": True} if thing.actor_required else {}),
        "display_name": thing.display_name,
        "description": thing.description,
        "labels": dict(thing.labels),
        "owner": str(thing.owner) if thing.owner else None,
        "kind": thing.kind.value,
        "mode": thing.mode.value if thing.mode else None,
        "grants": [{"resource": grant.resource, "actions": list(grant.actions)} for grant in thing.grants],
        "creator": {
            "actor": thing.creator.actor,
            "caller": thing.creator.caller,
            "caller_display_name": thing.creator.caller_display_name,
        },
        "expire_time": _time(thing.expire_time),
        "disable_time": _time(thing.disable_time),
        "revoke_time": _time(thing.revoke_time),
        "revoke_reason": thing.revoke_reason,
        "secrets": [{"hint": secret.hint, "expire_time": _time(secret.expire_time)} for secret in thing.secrets],
    }


def describe_with_contents(thing: Product | Tenant, contents: Deleted) -> Description:
    """Return the description of a deleted product or tenant, with the counts of what it held."""
    return {**(describe(thing) or {}), "contents": asdict(contents)}


def describe_removed(principal: Principal, keys: int, named: Sequence[str]) -> Description:
    """Return the description of a removed principal, with the number of its keys and the names of some."""
    return {"display_name": principal.display_name, "role": principal.role, "api_key_count": keys, "api_keys": named}


def _plain(value: Any) -> Any:
    """Return a value of a spec as JSON. Written by hand because `dataclasses.asdict` takes several times as long."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return str(value)


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat(timespec="microseconds")
