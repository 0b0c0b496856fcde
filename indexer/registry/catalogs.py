"""Catalogs and catalog queries in the registry: made, found, changed, removed, and every change kept in the history.

Queries are shared by hash. A body that names a known query uuid changes that query in place for all of its catalogs;
one that names an unknown uuid and a known filter gives that query the uuid and title; one that names none finds the
query by hash or makes it. A changed query keeps `serving` its old hash until a pull of the new one passes.
"""

import json
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.catalog_body import CatalogBody
from indexer.registry import Transaction
from indexer.registry.schema import catalog, catalog_history, catalog_query, result
from sidecar.contract.words import PullState, query_hash
from sidecar.errors import CatalogError

MAX_WHO: Final = 255


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
class RegisteredCatalog:
    """A catalog and its query, as the registry has them.

    `course_modes` and `content_filter` are JSON texts; `serving` is the hash whose content the catalog shows, None
    until a first pull passes.
    """

    number: int
    uuid: str
    title: str
    customer: str
    customer_name: str
    course_modes: str
    audit_urls: bool
    query_id: int
    query_uuid: str
    query_title: str | None
    content_filter: str
    wanted: str
    serving: str | None
    created_ms: int
    modified_ms: int


async def create(
    tx: Transaction, body: CatalogBody, who: str, created_ms: int | None = None
) -> tuple[RegisteredCatalog, bool]:
    """The catalog of this body, and whether it was made by this call; the same body again changes nothing.

    Raises CatalogExists if its uuid belongs to a catalog of another body, and QueryClash.
    """
    at_ms = tx.now_ms if created_ms is None else created_ms
    if body.uuid and (existing := await find(tx.connection, body.uuid)):
        if not differing(existing, body):
            return existing, False
        raise CatalogExists(f"catalog {body.uuid} exists with another body; remove it first, or take another uuid")
    uuid = body.uuid or str(uuids.uuid4())
    values = {
        "uuid": uuid,
        "title": body.title,
        "customer": body.customer,
        "customer_name": body.customer_name,
        "course_modes": body.course_modes,
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


async def change(tx: Transaction, uuid: str, fields: Mapping[str, Any], who: str) -> RegisteredCatalog:
    """Gives a catalog other values, by attribute of CatalogBody; what is not named stays.

    Without another query uuid, another filter or query title is its query's, and so that of all who share it. A catalog
    that moves to a query which was never pulled goes on serving what it has, until that pull passes.
    Raises NoSuchCatalog and QueryClash.
    """
    row = await find(tx.connection, uuid)
    if row is None:
        raise NoSuchCatalog(f"no catalog {uuid}")
    body = replace(_as_wanted(row), **{**fields, "uuid": uuid})
    values = {
        "title": body.title,
        "customer": body.customer,
        "customer_name": body.customer_name,
        "course_modes": body.course_modes,
        "audit_urls": body.audit_urls,
        "query_id": await _query(tx, body, tx.now_ms),
        "before": row.serving,
        "modified_ms": tx.now_ms,
        "clock": tx.clock,
    }
    await tx.connection.execute(sa.update(catalog).where(catalog.c.uuid == uuid).values(values))
    changed = await find(tx.connection, uuid)
    assert changed is not None
    await _note(tx, changed, "changed", who)
    return changed


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


async def count(connection: AsyncConnection, *conditions: sa.ColumnElement[bool]) -> int:
    """How many catalogs meet all conditions."""
    return int(await connection.scalar(sa.select(sa.func.count()).select_from(catalog).where(*conditions)) or 0)


async def select(
    connection: AsyncConnection, *conditions: sa.ColumnElement[bool], first: int = 0, most: int | None = None
) -> list[RegisteredCatalog]:
    """The catalogs that meet all conditions, in order of creation: all, or so many from that place on."""
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
        .offset(first)
        .limit(most)
    )
    return [
        RegisteredCatalog(
            number=r.number,
            uuid=r.uuid,
            title=r.title,
            customer=r.customer,
            customer_name=r.customer_name,
            course_modes=r.course_modes,
            audit_urls=r.audit_urls,
            query_id=r.query_id,
            query_uuid=r.query_uuid,
            query_title=r.query_title,
            content_filter=r.content_filter,
            wanted=r.wanted,
            serving=r.before if r.serving is None else r.serving,
            created_ms=r.created_ms,
            modified_ms=r.modified_ms,
        )
        for r in rows
    ]


def as_body(row: RegisteredCatalog) -> dict[str, object]:
    """A catalog in the field names of enterprise-catalog's API, as a create takes it."""
    return {
        "uuid": row.uuid,
        "title": row.title,
        "enterprise_customer": row.customer,
        "enterprise_customer_name": row.customer_name,
        "enabled_course_modes": json.loads(row.course_modes),
        "publish_audit_enrollment_urls": row.audit_urls,
        "content_filter": json.loads(row.content_filter),
        "catalog_query_uuid": row.query_uuid,
        "query_title": row.query_title,
    }


def _as_wanted(row: RegisteredCatalog) -> CatalogBody:
    return CatalogBody(
        uuid=row.uuid,
        title=row.title,
        customer=row.customer,
        customer_name=row.customer_name,
        course_modes=row.course_modes,
        audit_urls=row.audit_urls,
        content_filter=json.loads(row.content_filter),
        query_uuid=row.query_uuid,
        query_title=row.query_title,
    )


def differing(row: RegisteredCatalog, body: CatalogBody) -> list[str]:
    """The fields, as the API names them, in which a body says something else than a catalog that exists."""
    wanted_hash = query_hash(body.content_filter).hex()
    pairs = {
        "title": (row.title, body.title),
        "enterprise_customer": (row.customer, body.customer),
        "enterprise_customer_name": (row.customer_name, body.customer_name),
        "enabled_course_modes": (row.course_modes, body.course_modes),
        "publish_audit_enrollment_urls": (row.audit_urls, body.audit_urls),
        "content_filter": (row.wanted, wanted_hash),
        "catalog_query_uuid": (row.query_uuid, body.query_uuid or row.query_uuid),
        # A title counts beside a query uuid alone: without one, a query that exists keeps the title that it has.
        "query_title": (row.query_title, (body.query_title if body.query_uuid else None) or row.query_title),
    }
    return [name for name, (have, want) in pairs.items() if have != want]


async def query_changed_by(tx: Transaction, body: CatalogBody) -> str | None:
    """The uuid of a query that exists and that a create of this body would change, for all of its catalogs."""
    if body.query_uuid is None:
        return None
    hash_ = query_hash(body.content_filter).hex()
    row = await _query_where(tx, catalog_query.c.uuid == body.query_uuid)
    row = row or await _query_where(tx, catalog_query.c.hash == hash_)
    if row is None:
        return None
    same = (row.uuid, row.hash, row.title) == (body.query_uuid, hash_, body.query_title or row.title)
    return None if same else str(row.uuid)


async def _query(tx: Transaction, body: CatalogBody, at_ms: int) -> int:
    hash_ = query_hash(body.content_filter).hex()
    same_filter = await _query_where(tx, catalog_query.c.hash == hash_)
    named = await _query_where(tx, catalog_query.c.uuid == body.query_uuid) if body.query_uuid else None
    if named is not None:
        await _free_title(tx, body.query_title, named.id)
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
    values = {"clock": tx.clock, "at_ms": tx.now_ms, "catalog": row.uuid, "action": action, "who": who[:MAX_WHO]}
    await tx.connection.execute(sa.insert(catalog_history).values(record=json.dumps(as_body(row)), **values))
