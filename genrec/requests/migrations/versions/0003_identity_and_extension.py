"""Who checked a requester's identity and how, and the one extension of a due date."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COLUMNS = {
    "verified_by": sa.Text(), "verified_how": sa.Text(), "extended_at": sa.DateTime(timezone=True),
    "extension_reason": sa.Text(),
}  # fmt: skip


def upgrade() -> None:
    for name, kind in COLUMNS.items():
        op.add_column("requests", sa.Column(name, kind))


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_column("requests", name)
