"""The field's words as functions: content types, query hash, folding, uuids, times. Pure; the same on both sides."""

import hashlib
import json
import os
import re
import unicodedata
import uuid
from datetime import UTC, datetime, timedelta
from enum import IntEnum

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-?)[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{12}")


class ContentType(IntEnum):
    """What a content key names; the value is the byte in a dictionary segment."""

    COURSE = 1
    COURSE_RUN = 2
    PROGRAM = 3
    PATHWAY = 4


class PullState(IntEnum):
    """How the last pull of a query ended; the value is the byte in a freshness shard."""

    DUE = 0
    FRESH = 1
    FAILING = 2
    UNPULLABLE = 3
    QUARANTINED = 4


def query_hash(content_filter: object) -> bytes:
    """The 16 bytes of md5 over `json.dumps(content_filter, sort_keys=True)`, as enterprise-catalog computes it."""
    text = json.dumps(content_filter, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


def task_id(query_hash: bytes, requested_ms: int) -> uuid.UUID:
    """The id of a pull: a uuid of version 8 that tells when it was asked for, and by 62 bits of a hash of which query.

    A query has one pull at a time, so that a later id of the same query says that this pull has ended: a reader who
    never saw the generation that its end was published in can tell all the same.

        48 bits  requested_ms       4 bits  8        12 bits  chance
                                    2 bits  0b10     62 bits  the first bits of the query hash
    """
    number = requested_ms % 2**48 << 80 | 8 << 76 | int.from_bytes(os.urandom(2)) % 2**12 << 64
    return uuid.UUID(int=number | 0b10 << 62 | int.from_bytes(query_hash[:8]) >> 2)


def pull_of(task: uuid.UUID) -> int:
    """What of a task id tells of which query it is: the same for all of one query."""
    return task.int % 2**62


def requested_ms(task: uuid.UUID) -> int:
    """When it was asked for."""
    return task.int >> 80


def has_ended(task: uuid.UUID, last: uuid.UUID) -> bool:
    """Whether a pull has ended, by the id of the last one of the same query that has."""
    return task == last or (task.version == last.version == 8 and requested_ms(task) < requested_ms(last))


def fold(key: str) -> str:
    """A content key without case and accents, as the collation of today's database compares them."""
    if key.isascii():
        return key.lower()
    decomposed = unicodedata.normalize("NFKD", key)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def slugify(name: str) -> str:
    """A name as it stands in links, by Django's slugify: ASCII letters, digits and underscores, in lower case, with
    single dashes between.
    """
    ascii_ = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_.lower())).strip("-_")


def canonical_uuid(text: str) -> str | None:
    """The dashed lower-case form of a uuid that was written with or without dashes, in any case; None if it is none."""
    if _UUID.fullmatch(text) is None:
        return None
    return str(uuid.UUID(hex=text))


def iso_time(ms: int) -> str:
    """A time as the API writes it: ISO 8601 in UTC, with six digits of a fraction, or none where it is zero."""
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat().removesuffix("+00:00") + "Z"


def age_s(then_ms: int, now_ms: int) -> int:
    """Whole seconds since then; 0 if then is still to come, by another machine's clock."""
    return max(0, now_ms - then_ms) // 1000
