"""Catalogs and catalog queries in the registry: made, found, changed, removed, and every change kept in the history.

Queries are shared by hash. A body that names a known query uuid changes that query in place for all of its catalogs;
one that names an unknown uuid and a known filter gives that query the uuid and title; one that names none finds the
query by hash or makes it. A changed query keeps `serving` its old hash until a pull of the new one passes.
"""

import json
import math
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.registry import Transaction
from indexer.registry.schema import catalog, catalog_history, catalog_query, result
from sidecar.contract.words import PullState, canonical_uuid, query_hash
from sidecar.errors import CatalogError

DEFAULT_COURSE_MODES: Final = ("verified", "professional", "no-id-professional", "audit", "honor")
MAX_TEXT: Final = 255
MAX_FILTER_DEPTH: Final = 100
MAX_FILTER_BYTES: Final = 1024 * 1024


class BadCatalog(CatalogError):
    """Raised when the body of a catalog cannot be taken; names every field that is wrong, and the remedy."""

    status = 400


class QueryClash(CatalogError):
    """Raised when a query's new filter or title belongs to another query already."""

    status = 400


class CatalogExists(CatalogError):
    """Raised when a catalog with the uuid exists and says something else."""

    status = 409


class NoSuchCatalog(CatalogError):
    """Raised when the registry has no catalog of the uuid."""

    status = 404


@dataclass(frozen=True, slots=True)
class CatalogBody:
    """A catalog as somebody asks for it."""

    uuid: str | None
    title: str
    customer: str
    customer_name: str
    course_modes: tuple[str, ...]
    audit_urls: bool
    content_filter: object
    query_uuid: str | None
    query_title: str | None


@dataclass(frozen=True, slots=True)
class RegisteredCatalog:
    """A catalog and its query, as the registry has them."""

    number: int
    uuid: str
    title: str
    customer: str
    customer_name: str
    course_modes: tuple[str, ...]
    audit_urls: bool
    query_id: int
    query_uuid: str
    query_title: str | None
    content_filter: str
    wanted: str
    serving: str | None
    created_ms: int
    modified_ms: int


def read_body(body: object) -> CatalogBody:
    """The body of a create request, in the field names of enterprise-catalog's API. Raises BadCatalog."""
    if not isinstance(body, Mapping):
        raise BadCatalog(f"a catalog is a JSON object, and not {body!r:.80}")
    problems: list[str] = []

    def text(name: str, *, required: bool = True) -> str:
        value = body.get(name)
        if value is None and not required:
            return ""
        if not _is_text(value) or not (value or not required) or len(value) > MAX_TEXT:
            problems.append(f"{name} is {value!r:.80}; give a text of 1 to {MAX_TEXT} characters")
            return ""
        return value

    def uuid(name: str, *, required: bool) -> str | None:
        value = body.get(name)
        if value is None and not required:
            return None
        found = canonical_uuid(value) if isinstance(value, str) else None
        if found is None:
            problems.append(f"{name} is {value!r:.80}; give a uuid")
        return found

    modes = body.get("enabled_course_modes", list(DEFAULT_COURSE_MODES))
    if not isinstance(modes, list) or not all(_is_text(mode) for mode in modes):
        problems.append(f"enabled_course_modes is {modes!r:.80}; give a list of texts")
        modes = []
    audit_urls = body.get("publish_audit_enrollment_urls", False)
    if isinstance(audit_urls, str) and audit_urls.lower() in ("true", "false"):
        audit_urls = audit_urls.lower() == "true"
    if not isinstance(audit_urls, bool):
        problems.append(f"publish_audit_enrollment_urls is {audit_urls!r:.80}; give true or false")
        audit_urls = False
    if "content_filter" not in body:
        problems.append("content_filter is missing; give the filter as a JSON object")
    elif problem := _filter_problem(body["content_filter"]):
        problems.append(f"content_filter {problem}")
    read = CatalogBody(
        uuid=uuid("uuid", required=False),
        title=text("title"),
        customer=uuid("enterprise_customer", required=True) or "",
        customer_name=text("enterprise_customer_name"),
        course_modes=tuple(modes),
        audit_urls=audit_urls,
        content_filter=body.get("content_filter"),
        query_uuid=uuid("catalog_query_uuid", required=False),
        query_title=text("query_title", required=False) or None,
    )
    if problems:
        raise BadCatalog("; ".join(problems))
    return read


async def create(
    tx: Transaction, body: CatalogBody, who: str, created_ms: int | None = None
) -> tuple[RegisteredCatalog, bool]:
    """The catalog of this body, and whether it was made by this call; the same body again changes nothing.

    Raises CatalogExists if its uuid belongs to a catalog of another body, and QueryClash.
    """
    at_ms = tx.now_ms if created_ms is None else created_ms
    if body.uuid and (existing := await find(tx.connection, body.uuid)):
        if _says_the_same(existing, body):
            return existing, False
        raise CatalogExists(f"catalog {body.uuid} exists with another body; remove it first, or take another uuid")
    uuid = body.uuid or str(uuids.uuid4())
    values = {
        "uuid": uuid,
        "title": body.title,
        "customer": body.customer,
        "customer_name": body.customer_name,
        "course_modes": json.dumps(body.course_modes),
        "audit_urls": body.audit_urls,
        "query_id": await _query(tx, body, at_ms),
        "created_ms": at_ms,
        "modified_ms": at_ms,
        "clock": tx.clock,
    }
    await tx.connection.execute(sa.insert(catalog).values(values))
    row = await find(tx.connection, uuid)
    assert row is not None
    await _note(tx, row, "created", who)
    return row, True


async def remove(tx: Transaction, uuid: str, who: str) -> None:
    """Takes a catalog away; its query stays. Raises NoSuchCatalog."""
    row = await find(tx.connection, uuid)
    if row is None:
        raise NoSuchCatalog(f"no catalog {uuid}")
    await tx.connection.execute(sa.delete(catalog).where(catalog.c.uuid == uuid))
    await _note(tx, row, "removed", who)


async def find(connection: AsyncConnection, uuid: str) -> RegisteredCatalog | None:
    """The catalog of a uuid."""
    rows = await select(connection, catalog.c.uuid == uuid)
    return rows[0] if rows else None


async def select(connection: AsyncConnection, *conditions: sa.ColumnElement[bool]) -> list[RegisteredCatalog]:
    """The catalogs that meet all conditions, in order of creation."""
    q = catalog_query.c
    rows = await connection.execute(
        sa.select(
            catalog,
            q.uuid.label("query_uuid"),
            q.title.label("query_title"),
            q.content_filter,
            q.hash.label("wanted"),
            q.serving,
        )
        .join(catalog_query, q.id == catalog.c.query_id)
        .where(*conditions)
        .order_by(catalog.c.number)
    )
    return [
        RegisteredCatalog(
            number=r.number,
            uuid=r.uuid,
            title=r.title,
            customer=r.customer,
            customer_name=r.customer_name,
            course_modes=tuple(json.loads(r.course_modes)),
            audit_urls=r.audit_urls,
            query_id=r.query_id,
            query_uuid=r.query_uuid,
            query_title=r.query_title,
            content_filter=r.content_filter,
            wanted=r.wanted,
            serving=r.serving,
            created_ms=r.created_ms,
            modified_ms=r.modified_ms,
        )
        for r in rows
    ]


def as_body(row: RegisteredCatalog) -> dict[str, object]:
    """A catalog in the field names of enterprise-catalog's API, as `read_body` takes it."""
    return {
        "uuid": row.uuid,
        "title": row.title,
        "enterprise_customer": row.customer,
        "enterprise_customer_name": row.customer_name,
        "enabled_course_modes": list(row.course_modes),
        "publish_audit_enrollment_urls": row.audit_urls,
        "content_filter": json.loads(row.content_filter),
        "catalog_query_uuid": row.query_uuid,
        "query_title": row.query_title,
    }


def _filter_problem(content_filter: object) -> str | None:
    """What keeps a filter from being stored, hashed and read again by everybody, however little stack they have."""
    layer, depth = [content_filter], 0
    while layer:
        depth += 1
        if depth > MAX_FILTER_DEPTH:
            return f"is nested more than {MAX_FILTER_DEPTH} levels deep"
        inner: list[object] = []
        for value in layer:
            if isinstance(value, float) and not math.isfinite(value):
                return f"has the number {value}, which JSON does not know"
            if isinstance(value, dict | list):
                inner += value.values() if isinstance(value, dict) else value
        layer = inner
    size = len(json.dumps(content_filter))
    return f"is {size} bytes of JSON; the limit is {MAX_FILTER_BYTES}" if size > MAX_FILTER_BYTES else None


def _is_text(value: object) -> TypeGuard[str]:
    """Whether every database and UTF-8 can hold it: JSON can spell NUL and half of a surrogate pair."""
    return isinstance(value, str) and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)


def _says_the_same(row: RegisteredCatalog, body: CatalogBody) -> bool:
    have = (row.title, row.customer, row.customer_name, row.course_modes, row.audit_urls, row.wanted)
    wanted_hash = query_hash(body.content_filter).hex()
    want = (body.title, body.customer, body.customer_name, body.course_modes, body.audit_urls, wanted_hash)
    # A title counts beside a query uuid alone: without one, a query that exists keeps the title that it has.
    same_query = body.query_uuid is None or (
        body.query_uuid == row.query_uuid and body.query_title in (None, row.query_title)
    )
    return have == want and same_query


async def _query(tx: Transaction, body: CatalogBody, at_ms: int) -> int:
    hash_ = query_hash(body.content_filter).hex()
    same_filter = await _query_where(tx, catalog_query.c.hash == hash_)
    named = await _query_where(tx, catalog_query.c.uuid == body.query_uuid) if body.query_uuid else None
    if named is not None:
        if same_filter is not None and same_filter.id != named.id:
            raise QueryClash("content_filter is not unique")
        return await _change_query(tx, named, body, hash_, at_ms)
    if same_filter is not None:
        return await _change_query(tx, same_filter, body, hash_, at_ms) if body.query_uuid else int(same_filter.id)
    await _free_title(tx, body.query_title, None)
    text = json.dumps(body.content_filter)
    values = {
        "uuid": body.query_uuid or str(uuids.uuid4()),
        "title": body.query_title,
        "content_filter": text,
        "hash": hash_,
        "created_ms": at_ms,
        "modified_ms": at_ms,
        "clock": tx.clock,
    }
    inserted = await tx.connection.execute(sa.insert(catalog_query).values(values))
    await _want(tx, hash_, text)
    assert inserted.inserted_primary_key is not None
    return int(inserted.inserted_primary_key.id)


async def _change_query(tx: Transaction, row: sa.Row[Any], body: CatalogBody, hash_: str, at_ms: int) -> int:
    values: dict[str, Any] = {"uuid": body.query_uuid or row.uuid}
    if body.query_title is not None:
        await _free_title(tx, body.query_title, row.id)
        values["title"] = body.query_title
    if row.hash != hash_:
        values |= {"hash": hash_, "content_filter": json.dumps(body.content_filter)}
    if any(getattr(row, name) != value for name, value in values.items()):
        values |= {"modified_ms": at_ms, "clock": tx.clock}
        await tx.connection.execute(sa.update(catalog_query).where(catalog_query.c.id == row.id).values(values))
    if row.hash != hash_ and row.serving != hash_:
        await _want(tx, hash_, json.dumps(body.content_filter))
    return int(row.id)


async def _want(tx: Transaction, hash_: str, content_filter: str) -> None:
    """Makes the content of a filter due. What an earlier life of the same filter has left may still be served."""
    due = {"state": PullState.DUE.value, "failures": 0, "error": None, "clock": tx.clock}
    changed = await tx.connection.execute(sa.update(result).where(result.c.hash == hash_).values(due))
    if not changed.rowcount:
        await tx.connection.execute(sa.insert(result).values(hash=hash_, content_filter=content_filter, **due))


async def _free_title(tx: Transaction, title: str | None, owner: int | None) -> None:
    if title is None:
        return
    row = await _query_where(tx, catalog_query.c.title == title)
    if row is not None and row.id != owner:
        raise QueryClash("title is not unique")


async def _query_where(tx: Transaction, condition: sa.ColumnElement[bool]) -> sa.Row[Any] | None:
    return (await tx.connection.execute(sa.select(catalog_query).where(condition))).one_or_none()


async def _note(tx: Transaction, row: RegisteredCatalog, action: str, who: str) -> None:
    values = {"clock": tx.clock, "at_ms": tx.now_ms, "catalog": row.uuid, "action": action, "who": who[:MAX_TEXT]}
    await tx.connection.execute(sa.insert(catalog_history).values(record=json.dumps(as_body(row)), **values))
