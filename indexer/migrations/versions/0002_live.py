"""What a changed catalog served before, and what a pull has cost."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"

_HASH = sa.String(32).with_variant(
    mysql.VARCHAR(32, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)


def upgrade() -> None:
    op.add_column("catalog", sa.Column("before", _HASH, nullable=True))
    op.add_column("result", sa.Column("requests", sa.Integer(), nullable=False, server_default="0"))
