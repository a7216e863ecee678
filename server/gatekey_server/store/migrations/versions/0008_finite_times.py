"""Times that callers can set are finite, and of years that every driver can read.

The previous release took the last microsecond of the year 9999, of which its driver makes infinity. Such rows
become ones that end in the year 9000; the triggers tell it to all processes.
"""

from alembic import op
from sqlalchemy import text

revision = "0008"
down_revision = "0007"

COLUMNS = (
    ("api_key", "expire_time"),
    ("secret", "expire_time"),
    ("tenant", "purge_time"),
    ("key_usage", "last_use_time"),
)

# Wider than what this release takes: the previous one may still be running.
_EARLIEST, _LATEST = "'0001-01-02 00:00:00+00'", "'9999-12-30 00:00:00+00'"
_REPAIRED = "'1970-01-01 00:00:00+00'", "'9000-01-01 00:00:00+00'"
_BATCH = 1000


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table, column in COLUMNS:
            name = f"{table}_{column}_is_finite"
            # From here on nobody adds such a row: the previous release fails before its commit, and not after it.
            op.execute(
                f"alter table {table} drop constraint if exists {name}, add constraint {name}"
                f" check ({column} > {_EARLIEST} and {column} < {_LATEST}) not valid"
            )
            for condition, value in zip((f"<= {_EARLIEST}", f">= {_LATEST}"), _REPAIRED, strict=True):
                while op.get_bind().execute(text(_repair(table, column, condition, value))).rowcount == _BATCH:
                    pass
            op.execute(f"alter table {table} validate constraint {name}")


def _repair(table: str, column: str, condition: str, value: str) -> str:
    return (
        f"update {table} set {column} = {value} where ctid = any(array("
        f"select ctid from {table} where {column} {condition} limit {_BATCH} for update))"
    )
