"""No statement's work grows with the data without a bound: each has a limit, or a bound that is told here."""

import re

import pytest
from gatekey_server.store.queries import queries

NAMES = [name for name in queries.available_queries if not name.endswith("_cursor")]

_ROW = "one row by its key"
_ARRAY = "one row for each of the values that are given, whose number is bounded by whoever gives them"
_SECRETS = "the secrets of one key, of which there are at most two"
_PROCESSES = "one row for each process"
_PLACES = "as many as there are between two places, or in tenants with few: found by `_scan_end` and `_with_many`"
_EMPTY = "a row with nothing below it any more: purges come first, and foreign keys refuse or find little"

# By name, for statements without a limit.
BOUNDS = {
    "audit_insert": _ROW,
    "bootstrap_lock": "no table",
    "digests_by_key": _SECRETS,
    "snapshots_by_digest": _ARRAY,
    "key_delete": f"{_ROW}, and {_SECRETS}",
    "key_disable": _ROW,
    "key_display_name": _ROW,
    "key_enable": _ROW,
    "key_get": f"{_ROW}, and {_SECRETS}",
    "key_groups": _PLACES,
    "key_insert": _ROW,
    "key_revoke": _ROW,
    "key_touch": _ROW,
    "key_update": _ROW,
    "member_exists": "the first member of a tenant",
    "pepper_insert": _ROW,
    "pepper_list": "one row for each pepper",
    "ping": "no table",
    "prefix_delete_by_product": "two rows of a product",
    "prefix_insert": _ROW,
    "prefix_list_of_others": _ARRAY,
    "principal_delete_if_keyless": f"{_ROW}, which has no keys",
    "principal_get": _ROW,
    "principal_groups": _PLACES,
    "principal_insert": _ROW,
    "principal_purge": _EMPTY,
    "principal_remove": f"{_ROW}: what is below it is purged in steps",
    "principal_update": _ROW,
    "process_list": _PROCESSES,
    "process_register": _ROW,
    "process_remove": _ROW,
    "process_unregister": _ROW,
    "product_by_digest": _ROW,
    "product_delete": "one row by its key, and its prefixes: it fails where there are tenants",
    "product_get": _ROW,
    "product_insert": _ROW,
    "product_lock": _ROW,
    "product_lock_shared": _ROW,
    "product_mark_deleted": _ROW,
    "product_purge": _EMPTY,
    "product_update_spec": _ROW,
    "purge_begin": "no table",
    "receipts_insert": _ARRAY,
    "request_begin": _ROW,
    "request_finish": _ROW,
    "request_lock": _ROW,
    "secret_delete": _ROW,
    "secret_exists": _ARRAY,
    "secret_insert": _ROW,
    "secret_retire": _ROW,
    "secret_slots": _SECRETS,
    "tenant_get": _ROW,
    "tenant_insert": _ROW,
    "tenant_lock": _ROW,
    "tenant_mark_deleted": f"{_ROW}: what is below it is purged in steps",
    "tenant_purge": _EMPTY,
    "tenant_resume": _ROW,
    "tenant_suspend": f"{_ROW}: nothing below it is touched",
    "tenant_undelete": _ROW,
    "tenant_update": _ROW,
    "usage_find": _ARRAY,
    "usage_insert": _ARRAY,
    "usage_update": _ARRAY,
}

# Of a single row, or of the changes of one transaction.
_FRESHNESS = re.compile(r"position|revision")


@pytest.mark.parametrize("name", NAMES)
def test_every_statement_has_a_bound(name: str) -> None:
    has_limit = re.search(r"\blimit\b", getattr(queries, name).sql) is not None
    assert has_limit or name in BOUNDS or _FRESHNESS.search(name), "tell in BOUNDS which bound its work has"


def test_no_bound_is_told_of_what_is_not_there() -> None:
    assert set(BOUNDS) <= set(NAMES)
