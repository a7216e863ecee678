"""Products that are deleted at once with everything in them, and whose rows are purged in steps afterwards.

The previous release knows no `delete_time`. The spec that a deleted product is left with declares nothing, so that it
denies every check of its keys.
"""

from alembic import op

revision = "0010"
down_revision = "0009"

STATEMENTS = (
    "alter table product add column if not exists delete_time timestamptz",
    "comment on column product.delete_time is 'Since when nothing of it counts any more; its rows are being purged'",
    "drop index concurrently if exists product_by_delete_time",
    """
    create index concurrently if not exists product_by_delete_time
        on product (delete_time) where delete_time is not null
    """,
    # As for what is below tenants in 0006: the tenants of a deleted product decide nothing.
    """
    create or replace trigger record_delete after delete on tenant referencing old table as old_rows
    for each statement when (current_setting('gatekey.purges_removed', true) is distinct from 'on')
    execute function record_tenant_change()
    """,
)


def upgrade() -> None:
    # Each by itself, as in 0002.
    with op.get_context().autocommit_block():
        for statement in STATEMENTS:
            op.execute(statement)
