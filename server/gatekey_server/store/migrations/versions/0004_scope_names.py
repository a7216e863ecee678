"""A key for the names by which clients know tenants, principals and keys when they follow changes.

All servers name them alike, and nobody else can tell what a name stands for.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("alter table revision add column if not exists scope_key uuid not null default gen_random_uuid()")
    op.execute("comment on column revision.scope_key is 'Makes the names by which clients know scopes'")
