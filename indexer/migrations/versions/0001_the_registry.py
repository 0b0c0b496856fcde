"""The registry's first tables. What they mean is written in `indexer.registry.schema`."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_LONG_BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def _exact(length: int) -> sa.String:
    exact = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(exact, "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "catalog_history",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("catalog", _exact(36), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("who", sa.String(length=255), nullable=False),
        sa.Column("record", _LONG_TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_catalog_history"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_catalog_history_catalog", "catalog_history", ["catalog"])
    op.create_index("ix_catalog_history_clock", "catalog_history", ["clock"])

    op.create_table(
        "catalog_query",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("uuid", _exact(36), nullable=False),
        sa.Column("title", sa.String(length=255), nullable=True),
        sa.Column("content_filter", _LONG_TEXT, nullable=False),
        sa.Column("hash", _exact(32), nullable=False),
        sa.Column("serving", _exact(32), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("modified_ms", sa.BigInteger(), nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_catalog_query"),
        sa.UniqueConstraint("hash", name="uq_catalog_query_hash"),
        sa.UniqueConstraint("title", name="uq_catalog_query_title"),
        sa.UniqueConstraint("uuid", name="uq_catalog_query_uuid"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_catalog_query_clock", "catalog_query", ["clock"])

    op.create_table(
        "content",
        sa.Column("ordinal", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("content_key", _exact(255), nullable=False),
        sa.Column("type", sa.SmallInteger(), nullable=False),
        sa.Column("parent", sa.BigInteger(), nullable=True),
        sa.Column("uuid", _exact(36), nullable=True),
        sa.Column("restricted", sa.Boolean(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(length=32), nullable=True),
        sa.Column("modified_ms", sa.BigInteger(), nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name="pk_content"),
        sa.UniqueConstraint("content_key", name="uq_content_content_key"),
    )
    op.create_index("ix_content_clock", "content", ["clock"])
    op.create_index("ix_content_parent", "content", ["parent"])

    op.create_table(
        "customer",
        sa.Column("uuid", _exact(36), nullable=False),
        sa.Column("slug", sa.String(length=255), nullable=True),
        sa.Column("portal", sa.Boolean(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("modified_ms", sa.BigInteger(), nullable=False),
        sa.Column("pulled_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name="pk_customer"),
    )
    op.create_index("ix_customer_clock", "customer", ["clock"])

    op.create_table(
        "document",
        sa.Column("ordinal", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("variant", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("body", _LONG_BYTES, nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", "variant", name="pk_document"),
    )
    op.create_index("ix_document_clock", "document", ["clock"])

    op.create_table(
        "generation",
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("parent", sa.LargeBinary(length=32), nullable=True),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.Column("published_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("objects", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("producer", sa.String(length=64), nullable=False),
        sa.Column("moved", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("generation", name="pk_generation"),
    )
    op.create_table(
        "pull",
        sa.Column("task", _exact(36), nullable=False),
        sa.Column("hash", _exact(32), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("requested_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_ms", sa.BigInteger(), nullable=True),
        sa.Column("members", sa.Integer(), nullable=True),
        sa.Column("changed", sa.Integer(), nullable=True),
        sa.Column("error", _LONG_TEXT, nullable=True),
        sa.PrimaryKeyConstraint("task", name="pk_pull"),
    )
    op.create_index("ix_pull_hash", "pull", ["hash"])
    op.create_index("ix_pull_state", "pull", ["state"])

    op.create_table(
        "result",
        sa.Column("hash", _exact(32), nullable=False),
        sa.Column("content_filter", _LONG_TEXT, nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("members", _LONG_BYTES, nullable=True),
        sa.Column("restricted_members", _LONG_BYTES, nullable=True),
        sa.Column("forced", _LONG_BYTES, nullable=True),
        sa.Column("pulled_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("tried_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("task", _exact(36), nullable=True),
        sa.Column("error", _LONG_TEXT, nullable=True),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_result"),
    )
    op.create_index("ix_result_clock", "result", ["clock"])

    state = op.create_table(
        "state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(length=255), nullable=True),
        sa.Column("lease_ms", sa.BigInteger(), nullable=False),
        sa.Column("renderer", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_state"),
    )
    op.create_table(
        "catalog",
        sa.Column("number", _NUMBER, nullable=False),
        sa.Column("uuid", _exact(36), nullable=False),
        sa.Column("title", sa.String(length=255), nullable=False),
        sa.Column("customer", _exact(36), nullable=False),
        sa.Column("customer_name", sa.String(length=255), nullable=False),
        sa.Column("course_modes", _LONG_TEXT, nullable=False),
        sa.Column("audit_urls", sa.Boolean(), nullable=False),
        sa.Column("query_id", _NUMBER, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("modified_ms", sa.BigInteger(), nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["query_id"], ["catalog_query.id"], name="fk_catalog_query_id"),
        sa.PrimaryKeyConstraint("number", name="pk_catalog"),
        sa.UniqueConstraint("uuid", name="uq_catalog_uuid"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_catalog_clock", "catalog", ["clock"])
    op.create_index("ix_catalog_customer", "catalog", ["customer"])
    op.create_index("ix_catalog_query_id", "catalog", ["query_id"])
    op.bulk_insert(state, [{"id": 1, "clock": 0, "epoch": 0, "beat": 0, "holder": None, "lease_ms": 0, "renderer": ""}])
