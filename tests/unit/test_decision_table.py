"""Every case of the decision table, against `decide`. Over the network: tests/acceptance/test_decision_table.py."""

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from gatekey.core import specs
from gatekey.core.decisions import CompiledSpec, KeySnapshot, Owner, PrincipalKind, Reason, Request, decide
from gatekey.core.errors import InvalidRequest, Violation
from gatekey.core.grants import Grant, GrantSet, parse_action, parse_path
from gatekey.core.names import parse_id
from gatekey.core.secrets import Keyring, new_secret
from gatekey.core.specs import AccessMode, KeyKind
from gatekey.wire.specs import read_spec

from tests.support.server import PRODUCTS
from tests.support.table import OWN_TENANT, Case, Holder, State, Table, load

TABLE = load()
NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
GROUP = {"group": "g", "about": "A group.", "key": "k", "rows": [["forms", "read", "ALLOWED"]]}
KEYRING = Keyring({1: b"0" * 32})


@pytest.mark.parametrize("case", TABLE.cases, ids=[case.id for case in TABLE.cases])
def test_case(case: Case) -> None:
    """The answer is the table's, and names what is missing."""
    snapshot = _found(case)
    if case.refused:
        with pytest.raises(InvalidRequest) as refusal:
            _parse(case)
        assert refusal.value.reason == case.expected
        return
    decision = decide(snapshot, _parse(case), NOW)
    assert decision.reason.name == case.expected
    assert decision.allowed == (case.expected == "ALLOWED")
    missing = [(decision.missing.resource, decision.missing.action)] if decision.missing else []
    assert missing == case.missing


@pytest.mark.parametrize("action", sorted({c.action for c in TABLE.cases if c.expected == "ACTION_INVALID"}))
def test_action_that_was_not_parsed_is_not_allowed(action: str) -> None:
    """Should an action such as `*` ever get past the edge, then the key that may do everything may not do it."""
    everything = Holder("depot-everything", frozenset())
    decision = decide(_snapshot(everything), Request(("links",), action), NOW)
    assert decision.reason is Reason.ACTION_UNKNOWN


def test_table_is_whole() -> None:
    """No reason, product, mode or kind of owner has dropped out of the table."""
    assert {case.expected for case in TABLE.cases} >= set(Reason.__members__)
    used = [TABLE.keys[case.key] for case in TABLE.cases]
    assert {key.spec for key in used} >= set(PRODUCTS)
    assert {_mode(case.key) for case in TABLE.cases} == {*AccessMode, None}
    assert {(key.kind, key.machine, key.tenant) for key in used} == {
        ("SECRET", False, False),
        ("SECRET", True, False),
        ("SECRET", False, True),
        ("PUBLISHABLE", False, False),
    }
    assert {state for case in TABLE.cases for state in case.holder.state} == set(State)


@pytest.mark.parametrize(
    "name", sorted({name for key in TABLE.keys.values() for name in (key.spec, key.later) if name})
)
def test_specs_are_valid(name: str) -> None:
    """A decision is only as good as its spec."""
    violations: list[Violation] = []
    specs.validate(read_spec(TABLE.spec(name), violations), violations)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"more": {}},
        {"keys": {"k": {"spec": "tally", "role": "admin", "rol": "admin"}}},
        {"keys": {"k": {"spec": "tally"}}},
        {"keys": {"k": {"spec": "tally", "role": "admin", "machine": True}}},
        {"keys": {"k": {"spec": "tally", "role": "admin", "tenant": True}}},
        {"keys": {"k": {"spec": "tally", "role": "admin"}, "unused": {"spec": "tally", "role": "admin"}}},
        {"keys": {"other": {"spec": "tally", "role": "admin"}}},
        {"specs": {"unused": {"replaces": "tally"}}},
        {"groups": [GROUP | {"columns": ["resource", "action", "exspected"]}]},
        {"groups": [GROUP | {"rows": [["forms", "read"]]}]},
        {"groups": [GROUP | {"rows": []}]},
        {"groups": [GROUP | {"rows": [["forms", "read", "PERMITTED"]]}]},
        {"groups": [GROUP | {"rows": [["forms", "read", "ALLOWED"]] * 2}]},
        {"groups": [GROUP | {"action": "read"}]},
        {"groups": [GROUP | {"state": "expelled"}]},
        {"groups": [GROUP | {"state": "revoked + revoked"}]},
        {"groups": [GROUP, GROUP]},
    ],
    ids=str,
)
def test_table_that_is_not_understood_is_refused(spoilt: dict[str, Any]) -> None:
    """No typing error makes a case that tests nothing."""
    document = {"specs": {}, "keys": {"k": {"spec": "tally", "role": "admin"}}, "groups": [GROUP]}
    assert len(Table.model_validate(document).cases) == 1
    with pytest.raises(ValueError, match="validation error"):
        Table.model_validate(document | spoilt)


def _found(case: Case) -> KeySnapshot | None:
    """The snapshot that is found by what was presented, for this caller."""
    secret = new_secret("prefix_")
    stored = {KEYRING.seal(secret).digest: _snapshot(case.holder)}
    presented = KEYRING.digests(case.secret.of(secret))
    return next((stored.get(digest) for digest in presented), None) if case.caller.may_check else None


def _snapshot(holder: Holder) -> KeySnapshot | None:
    if holder.state & {State.KEY_DELETED, State.OWNER_REMOVED}:
        return None
    key = TABLE.keys[holder.key]
    expiries = {State.EXPIRED: NOW, State.EXPIRES_LATER: LATER}
    expiries |= {State.SECRET_EXPIRED: NOW, State.SECRET_EXPIRES_LATER: LATER}
    return KeySnapshot(
        compiled=_compile(key.later or key.spec),
        tenant=OWN_TENANT,
        tenant_suspended=State.SUSPENDED in holder.state,
        tenant_deleted=State.TENANT_DELETED in holder.state,
        key_id="key_00000000000000000000000000",
        kind=KeyKind[key.kind],
        mode=_mode(holder.key),
        grants=GrantSet.of(Grant(resource, tuple(actions)) for resource, actions in key.grants.items()),
        owner=_owner(holder.key),
        key_revoked=State.REVOKED in holder.state,
        key_disabled=State.DISABLED in holder.state,
        expire_time=min((expiries[state] for state in holder.state if state in expiries), default=None),
    )


def _mode(name: str) -> AccessMode | None:
    key = TABLE.keys[name]
    if key.kind == "PUBLISHABLE":
        return None
    made_under = _compile(key.spec).spec.secret_keys
    assert made_under is not None
    return AccessMode[key.mode] if key.mode else made_under.default_mode


def _owner(name: str) -> Owner | None:
    key = TABLE.keys[name]
    if key.kind == "PUBLISHABLE" or key.tenant:
        return None
    kind = PrincipalKind.MACHINE_USER if key.machine else PrincipalKind.MEMBER
    return Owner(kind, "somebody", key.role_now)


def _parse(case: Case) -> Request:
    tenant = parse_id(case.tenant, "tenant") if case.tenant is not None else None
    return Request(parse_path(case.resource, "resource"), parse_action(case.action, "action"), tenant)


@cache
def _compile(name: str) -> CompiledSpec:
    return CompiledSpec(read_spec(TABLE.spec(name), []))
