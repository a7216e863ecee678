"""Secret keys that belong to the tenant itself, and so to no principal."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    # The new one allows all that the old one did; the previous release denies such keys everything.
    op.execute(
        """
        alter table api_key
            drop constraint if exists api_key_check,
            drop constraint if exists api_key_owner,
            add constraint api_key_owner check (kind = 'SECRET' or principal_uid is null) not valid
        """
    )
    with op.get_context().autocommit_block():
        op.execute("alter table api_key validate constraint api_key_owner")
