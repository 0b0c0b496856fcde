"""The registry's tables. What they mean is written here; how they are made is in `indexer/migrations`.

Nothing here is understood by one database alone: SQLite, PostgreSQL and MySQL/MariaDB get the same tables. All text
is Unicode and compared byte by byte, trailing spaces included; MySQL and MariaDB, whose defaults are none of this, are
told so for every column. Times are milliseconds since 1970.

Every row that a generation shows carries `clock`: the value of the registry's clock at its last change, so that a
reader asks for what is newer than it has.
"""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects.mysql import LONGBLOB, LONGTEXT, VARBINARY, VARCHAR
from sqlalchemy.dialects.mysql.base import MySQLDialect
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

CHARSET: Final = "utf8mb4"

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Exact(TypeDecorator[str]):
    """Text of at most so many characters, compared byte by byte."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if isinstance(dialect, MySQLDialect):
            return VARCHAR(self.length, charset=CHARSET, collation=_collation(dialect))
        return String(self.length)


class LongText(TypeDecorator[str]):
    """Text of any length."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if isinstance(dialect, MySQLDialect):
            return LONGTEXT(charset=CHARSET, collation=_collation(dialect))
        return Text()


def _collation(dialect: MySQLDialect) -> str:
    """The one that pads nothing, which the two call differently: to utf8mb4_bin, 'a' and 'a ' are the same."""
    return "utf8mb4_nopad_bin" if dialect.is_mariadb else "utf8mb4_0900_bin"


def _number() -> BigInteger:
    return BigInteger().with_variant(Integer, "sqlite")


UUID: Final = Exact(36)
HASH: Final = Exact(32)
DIGEST: Final = LargeBinary(32).with_variant(VARBINARY(32), "mysql", "mariadb")
LONG_TEXT: Final = LongText()
LONG_BYTES: Final = LargeBinary().with_variant(LONGBLOB, "mysql", "mariadb")

# One row: the clock, who leads, with which build documents were rendered, and the generation whose tree readers are to
# see, if somebody has pinned one.
state: Final = Table(
    "state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("clock", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("holder", Exact(255)),
    Column("lease_ms", BigInteger, nullable=False),
    Column("renderer", Exact(128), nullable=False),
    Column("pinned", BigInteger),
)

# A saved content filter. `hash` is what its catalogs want; `serving` what they serve until the first pull passes.
catalog_query: Final = Table(
    "catalog_query",
    metadata,
    Column("id", _number(), primary_key=True),
    Column("uuid", UUID, nullable=False, unique=True),
    Column("title", Exact(255), unique=True),
    Column("content_filter", LONG_TEXT, nullable=False),
    Column("hash", HASH, nullable=False, unique=True),
    Column("serving", HASH),
    Column("created_ms", BigInteger, nullable=False),
    Column("modified_ms", BigInteger, nullable=False),
    Column("clock", BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
)

# An enterprise catalog; `number` is the order of creation. `before` is the hash that it served when it was last changed
# and goes on serving while its query serves nothing.
catalog: Final = Table(
    "catalog",
    metadata,
    Column("number", _number(), primary_key=True),
    Column("uuid", UUID, nullable=False, unique=True),
    Column("title", Exact(255), nullable=False),
    Column("customer", UUID, nullable=False, index=True),
    Column("customer_name", Exact(255), nullable=False),
    Column("course_modes", LONG_TEXT, nullable=False),
    Column("audit_urls", Boolean, nullable=False),
    Column("query_id", _number(), ForeignKey("catalog_query.id"), nullable=False, index=True),
    Column("before", HASH),
    Column("created_ms", BigInteger, nullable=False),
    Column("modified_ms", BigInteger, nullable=False),
    Column("clock", BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
)

# Every change of a catalog, deletions included, with the whole record as JSON and who changed it.
catalog_history: Final = Table(
    "catalog_history",
    metadata,
    Column("id", _number(), primary_key=True),
    Column("clock", BigInteger, nullable=False, index=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("catalog", UUID, nullable=False, index=True),
    Column("action", Exact(16), nullable=False),
    Column("who", Exact(255), nullable=False),
    Column("record", LONG_TEXT, nullable=False),
    sqlite_autoincrement=True,
)

# An enterprise customer as the LMS describes it; `slug` is null while the LMS does not know it.
customer: Final = Table(
    "customer",
    metadata,
    Column("uuid", UUID, primary_key=True),
    Column("slug", Exact(255)),
    Column("portal", Boolean, nullable=False),
    Column("name", Exact(255), nullable=False),
    Column("modified_ms", BigInteger, nullable=False),
    Column("pulled_at_ms", BigInteger, nullable=False),
    Column("clock", BigInteger, nullable=False, index=True),
)

# A content key and its ordinal, forever, with the facts that containment needs. `metadata` is the digest of its
# rendered document, null for a key that is known by name alone; `modified_ms` when that digest last changed.
content: Final = Table(
    "content",
    metadata,
    Column("ordinal", BigInteger, primary_key=True, autoincrement=False),
    Column("content_key", Exact(255), nullable=False, unique=True),
    Column("type", SmallInteger, nullable=False),
    Column("parent", BigInteger, index=True),
    Column("uuid", UUID),
    Column("restricted", Boolean, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("metadata", DIGEST),
    Column("modified_ms", BigInteger, nullable=False),
    Column("clock", BigInteger, nullable=False, index=True),
)

# The merged document of a content key: variant 0 without restricted runs; variant 1 with them, where that differs.
document: Final = Table(
    "document",
    metadata,
    Column("ordinal", BigInteger, primary_key=True, autoincrement=False),
    Column("variant", SmallInteger, primary_key=True, autoincrement=False),
    Column("digest", DIGEST, nullable=False),
    Column("body", LONG_BYTES, nullable=False),
    Column("clock", BigInteger, nullable=False, index=True),
)

# What the last passed pull of a filter found, as roaring bitmaps of ordinals; null until one passes. `requests` is how
# many requests the source was sent for it.
result: Final = Table(
    "result",
    metadata,
    Column("hash", HASH, primary_key=True),
    Column("content_filter", LONG_TEXT, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("members", LONG_BYTES),
    Column("restricted_members", LONG_BYTES),
    Column("forced", LONG_BYTES),
    Column("requests", Integer, nullable=False, server_default="0"),
    Column("pulled_at_ms", BigInteger),
    Column("tried_at_ms", BigInteger),
    Column("failures", Integer, nullable=False),
    Column("task", UUID),
    Column("error", LONG_TEXT),
    Column("clock", BigInteger, nullable=False, index=True),
)

# One pull: why it was asked for, how it went. States: requested, running, passed, failed, quarantined, abandoned.
pull: Final = Table(
    "pull",
    metadata,
    Column("task", UUID, primary_key=True),
    Column("hash", HASH, nullable=False, index=True),
    Column("reason", Exact(16), nullable=False),
    Column("state", Exact(16), nullable=False, index=True),
    Column("requested_ms", BigInteger, nullable=False),
    Column("finished_ms", BigInteger),
    Column("members", Integer),
    Column("changed", Integer),
    Column("error", LONG_TEXT),
)

# A generation that this registry named; written before the store's pointer moves. `shows`: the earlier generation whose
# tree it shows again, if it is a rollback.
generation: Final = Table(
    "generation",
    metadata,
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("parent", DIGEST),
    Column("clock", BigInteger, nullable=False),
    Column("published_at_ms", BigInteger, nullable=False),
    Column("objects", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("producer", Exact(64), nullable=False),
    Column("moved", Boolean, nullable=False),
    Column("shows", BigInteger),
)

# The last result of a filter that validators refused. `found`: the content keys of its sets, as JSON compressed with
# zstd; `digest` is that of the JSON. `verdict`: what was wrong with it, as JSON. States: held, approved, rejected.
quarantine: Final = Table(
    "quarantine",
    metadata,
    Column("hash", HASH, primary_key=True),
    Column("state", Exact(16), nullable=False),
    Column("task", UUID, nullable=False),
    Column("verdict", LONG_TEXT, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("found", LONG_BYTES, nullable=False),
    Column("first_ms", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
    Column("times", Integer, nullable=False),
)

# How far the results of one query may differ from the ones before; what is null is as the settings say.
query_limits: Final = Table(
    "query_limits",
    metadata,
    Column("query_id", _number(), ForeignKey("catalog_query.id"), primary_key=True, autoincrement=False),
    Column("lost", Double()),
    Column("gained", Double()),
    Column("floor", Integer),
)

# What people decided about what readers see: the action, of which generation or filter, who, and why.
decision: Final = Table(
    "decision",
    metadata,
    Column("id", _number(), primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("action", Exact(16), nullable=False),
    Column("subject", Exact(255), nullable=False),
    Column("who", Exact(255), nullable=False),
    Column("why", LONG_TEXT, nullable=False),
    sqlite_autoincrement=True,
)
