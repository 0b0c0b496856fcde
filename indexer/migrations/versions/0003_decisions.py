"""Results that are held back, which generation is pinned, and what people decided about both."""

import sqlalchemy as sa
from alembic import op

from indexer.registry.schema import DIGEST, LONG_BYTES, Exact, LongText

revision = "0003"
down_revision = "0002"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("state", sa.Column("pinned", sa.BigInteger(), nullable=True))
    op.add_column("generation", sa.Column("shows", sa.BigInteger(), nullable=True))
    op.create_table(
        "quarantine",
        sa.Column("hash", Exact(32), nullable=False),
        sa.Column("state", Exact(16), nullable=False),
        sa.Column("task", Exact(36), nullable=False),
        sa.Column("verdict", LongText(), nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("found", LONG_BYTES, nullable=False),
        sa.Column("first_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_ms", sa.BigInteger(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_quarantine"),
    )
    op.create_table(
        "query_limits",
        sa.Column("query_id", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("lost", sa.Double(), nullable=True),
        sa.Column("gained", sa.Double(), nullable=True),
        sa.Column("floor", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["query_id"], ["catalog_query.id"], name="fk_query_limits_query_id"),
        sa.PrimaryKeyConstraint("query_id", name="pk_query_limits"),
    )
    op.create_table(
        "decision",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("action", Exact(16), nullable=False),
        sa.Column("subject", Exact(255), nullable=False),
        sa.Column("who", Exact(255), nullable=False),
        sa.Column("why", LongText(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_decision"),
        sqlite_autoincrement=True,
    )
