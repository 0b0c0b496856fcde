"""The registry's first tables. What they mean is written in `indexer.registry.schema`."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from indexer.registry.schema import Exact, LongText

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_DIGEST = sa.LargeBinary(32).with_variant(mysql.VARBINARY(32), "mysql", "mariadb")
_LONG_BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "catalog_history",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("catalog", Exact(36), nullable=False),
        sa.Column("action", Exact(16), nullable=False),
        sa.Column("who", Exact(255), nullable=False),
        sa.Column("record", LongText(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_catalog_history"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_catalog_history_catalog", "catalog_history", ["catalog"])
    op.create_index("ix_catalog_history_clock", "catalog_history", ["clock"])

    op.create_table(
        "catalog_query",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("uuid", Exact(36), nullable=False),
        sa.Column("title", Exact(255), nullable=True),
        sa.Column("content_filter", LongText(), nullable=False),
        sa.Column("hash", Exact(32), nullable=False),
        sa.Column("serving", Exact(32), nullable=True),
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
        sa.Column("content_key", Exact(255), nullable=False),
        sa.Column("type", sa.SmallInteger(), nullable=False),
        sa.Column("parent", sa.BigInteger(), nullable=True),
        sa.Column("uuid", Exact(36), nullable=True),
        sa.Column("restricted", sa.Boolean(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("metadata", _DIGEST, nullable=True),
        sa.Column("modified_ms", sa.BigInteger(), nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name="pk_content"),
        sa.UniqueConstraint("content_key", name="uq_content_content_key"),
    )
    op.create_index("ix_content_clock", "content", ["clock"])
    op.create_index("ix_content_parent", "content", ["parent"])

    op.create_table(
        "customer",
        sa.Column("uuid", Exact(36), nullable=False),
        sa.Column("slug", Exact(255), nullable=True),
        sa.Column("portal", sa.Boolean(), nullable=False),
        sa.Column("name", Exact(255), nullable=False),
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
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("body", _LONG_BYTES, nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", "variant", name="pk_document"),
    )
    op.create_index("ix_document_clock", "document", ["clock"])

    op.create_table(
        "generation",
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("parent", _DIGEST, nullable=True),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.Column("published_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("objects", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("producer", Exact(64), nullable=False),
        sa.Column("moved", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("generation", name="pk_generation"),
    )
    op.create_table(
        "pull",
        sa.Column("task", Exact(36), nullable=False),
        sa.Column("hash", Exact(32), nullable=False),
        sa.Column("reason", Exact(16), nullable=False),
        sa.Column("state", Exact(16), nullable=False),
        sa.Column("requested_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_ms", sa.BigInteger(), nullable=True),
        sa.Column("members", sa.Integer(), nullable=True),
        sa.Column("changed", sa.Integer(), nullable=True),
        sa.Column("error", LongText(), nullable=True),
        sa.PrimaryKeyConstraint("task", name="pk_pull"),
    )
    op.create_index("ix_pull_hash", "pull", ["hash"])
    op.create_index("ix_pull_state", "pull", ["state"])

    op.create_table(
        "result",
        sa.Column("hash", Exact(32), nullable=False),
        sa.Column("content_filter", LongText(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("members", _LONG_BYTES, nullable=True),
        sa.Column("restricted_members", _LONG_BYTES, nullable=True),
        sa.Column("forced", _LONG_BYTES, nullable=True),
        sa.Column("pulled_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("tried_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("task", Exact(36), nullable=True),
        sa.Column("error", LongText(), nullable=True),
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
        sa.Column("holder", Exact(255), nullable=True),
        sa.Column("lease_ms", sa.BigInteger(), nullable=False),
        sa.Column("renderer", Exact(128), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_state"),
    )
    op.create_table(
        "catalog",
        sa.Column("number", _NUMBER, nullable=False),
        sa.Column("uuid", Exact(36), nullable=False),
        sa.Column("title", Exact(255), nullable=False),
        sa.Column("customer", Exact(36), nullable=False),
        sa.Column("customer_name", Exact(255), nullable=False),
        sa.Column("course_modes", LongText(), nullable=False),
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
