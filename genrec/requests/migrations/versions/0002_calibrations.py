"""Calibrations of the approximate methods, and the router's reason in each request."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "calibrations",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("method", sa.String(64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("split_half", sa.Float),
        sa.Column("wall_s", sa.Float, nullable=False),
        sa.Column("gold_s", sa.Float, nullable=False),
        sa.Column("backbone_hash", sa.String(64), nullable=False),
        sa.Column("params_hash", sa.String(64), nullable=False),
        sa.Column("champion", sa.Text, nullable=False),
        sa.Column("gates", sa.JSON, nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_calibrations"),
    )
    op.create_index("ix_calibrations_at", "calibrations", ["at"])
    op.add_column("requests", sa.Column("plan", sa.Text))


def downgrade() -> None:
    op.drop_column("requests", "plan")
    op.drop_table("calibrations")
