"""The ledger: requests, batches, deny list, audit chain, leases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
OPEN = sa.text("state NOT IN ('fulfilled', 'rejected', 'cancelled')")


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("claimed_at", TIME, nullable=False),
        sa.Column("stage", sa.String(64), nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("closed_at", TIME),
        sa.Column("data_version", sa.Text),
        sa.Column("model_version", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("item_id", sa.Text),
        sa.Column("concept", sa.Text),
        sa.Column("idempotency", sa.String(64)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("verified_at", TIME),
        sa.Column("suppressed_at", TIME),
        sa.Column("unlearned_at", TIME),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("method", sa.String(64)),
        sa.Column("batch_id", sa.String(32)),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name="fk_requests_batch_id"),
        sa.UniqueConstraint("idempotency", name="uq_requests_idempotency"),
    )
    op.create_index(
        "uq_requests_open_digest", "requests", ["digest"], unique=True, sqlite_where=OPEN, postgresql_where=OPEN
    )
    for column in ("digest", "state", "due_at", "batch_id"):
        op.create_index(f"ix_requests_{column}", "requests", [column])
    op.create_table(
        "deny_items",
        sa.Column("request_id", sa.String(32), nullable=False),
        sa.Column("item_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("request_id", "item_id", name="pk_deny_items"),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name="fk_deny_items_request_id"),
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )
    op.create_index("ix_audit_subject", "audit", ["subject"])
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("acquired_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )


def downgrade() -> None:
    for table in ("leases", "audit", "deny_items", "requests", "batches"):
        op.drop_table(table)
