"""What a changed catalog served before, and what a pull has cost."""

import sqlalchemy as sa
from alembic import op

from indexer.registry.schema import Exact

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("catalog", sa.Column("before", Exact(32), nullable=True))
    op.add_column("result", sa.Column("requests", sa.Integer(), nullable=False, server_default="0"))
