"""Which account submitted a request: it may not verify its own, and sees no other's."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("requests", sa.Column("requested_by", sa.Text()))
    op.create_index("ix_requests_requested_by", "requests", ["requested_by"])


def downgrade() -> None:
    op.drop_index("ix_requests_requested_by", "requests")
    op.drop_column("requests", "requested_by")
