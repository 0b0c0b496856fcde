"""The registry in memory, as far as a generation shows it: kept up to date by asking for what has a newer clock.

The one door from SQL to the compiler. A mirror belongs to one publisher; it is read by pure code between refreshes.
"""

from array import array
from dataclasses import dataclass, field
from itertools import chain
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.ingest import SHOWN
from indexer.registry import generations
from indexer.registry.schema import catalog, catalog_history, catalog_query, content, customer, document, result
from sidecar.contract.words import ContentType, PullState

NOTHING: Final = BitMap()


@dataclass(frozen=True, slots=True)
class QueryRow:
    """A catalog query: what its catalogs want, and what they serve."""

    id: int
    uuid: bytes
    title: str | None
    content_filter: str
    hash: bytes
    serving: bytes | None


@dataclass(frozen=True, slots=True)
class ResultRow:
    """What the last passed pull of a filter found; `members` is None until one passes."""

    hash: bytes
    content_filter: str
    state: PullState
    members: BitMap | None
    restricted_members: BitMap | None
    forced: BitMap
    pulled_at_ms: int | None
    task: bytes | None


@dataclass(frozen=True, slots=True)
class CatalogRow:
    """A catalog."""

    number: int
    uuid: bytes
    title: str
    customer: bytes
    customer_name: str
    course_modes: str
    audit_urls: bool
    query_id: int
    before: bytes | None
    created_ms: int
    modified_ms: int


@dataclass(frozen=True, slots=True)
class CustomerRow:
    """A customer that the LMS knows."""

    uuid: bytes
    slug: str
    portal: bool
    name: str
    modified_ms: int


@dataclass(slots=True)
class Changes:
    """What a refresh brought. `content`: what has changed, and the courses that changed runs have now or had before.

    `facts`: those of them whose type, parent, restriction or activity has changed, which sets are worked out from.
    """

    content: BitMap = field(default_factory=BitMap)
    facts: BitMap = field(default_factory=BitMap)
    hashes: set[bytes] = field(default_factory=set)
    catalogs: set[bytes] = field(default_factory=set)
    customers: set[bytes] = field(default_factory=set)


class Mirror:
    """Content by ordinal in columns, all else by its identifier. `clock` is the registry's, as of the refresh."""

    def __init__(self) -> None:
        self.clock = 0
        self.keys: list[str] = []
        self.types = bytearray()
        self.parents: list[int | None] = []
        self.uuids: list[bytes | None] = []
        self.metadata: list[bytes | None] = []
        self.modified_ms: list[int] = []
        self.ordinals: dict[str, int] = {}
        self.courses = BitMap()
        self.runs = BitMap()
        self.restricted = BitMap()
        self.active = BitMap()
        self.runs_of: dict[int, set[int]] = {}
        self.queries: dict[int, QueryRow] = {}
        self.results: dict[bytes, ResultRow] = {}
        self.catalogs: dict[bytes, CatalogRow] = {}
        self.customers: dict[bytes, CustomerRow] = {}
        self.users: dict[int, set[bytes]] = {}
        self.moved: dict[bytes, CatalogRow] = {}
        self._open: BitMap | None = None

    async def refresh(self, connection: AsyncConnection) -> Changes:
        """Takes over everything that is newer, from one state of the registry."""
        since, changes = self.clock, Changes()
        clock = await generations.clock(connection)
        if clock == since:
            return changes
        await self._content(connection, since, changes)
        await self._queries(connection, since, changes)
        await self._catalogs(connection, since, changes)
        await self._customers(connection, since, changes)
        self.clock = clock  # Last: whoever fails on the way begins again from where this mirror was whole.
        return changes

    def everything(self) -> Changes:
        """All there is, as if it had just changed."""
        return Changes(
            content=BitMap(range(len(self.keys))),
            facts=BitMap(range(len(self.keys))),
            hashes=self.served_before()
            | {h for q in self.queries.values() for h in (q.hash, q.serving) if h is not None},
            catalogs=set(self.catalogs),
            customers=set(self.customers),
        )

    def used(self) -> set[bytes]:
        """The hashes that some catalog wants or serves; only these have content in a generation."""
        rows = (self.queries[query_id] for query_id, users in self.users.items() if users)
        return {h for q in rows for h in (q.hash, q.serving) if h is not None} | self.served_before()

    def served_before(self) -> set[bytes]:
        """The hashes that catalogs go on serving until their query serves something."""
        return {row.before for row in self.moved.values() if row.before and self.queries[row.query_id].serving is None}

    def serving(self, row: CatalogRow) -> bytes | None:
        """The hash that a catalog serves."""
        return self.queries[row.query_id].serving or row.before

    def courses_of(self, runs: BitMap) -> BitMap:
        """The courses of these course runs."""
        # Mapped and not written as a loop, here and below: millions of ordinals pass through.
        courses = set(map(self.parents.__getitem__, runs))
        courses.discard(None)
        return BitMap(array("I", courses))  # type: ignore[arg-type]

    def runs_of_courses(self, courses: BitMap) -> BitMap:
        """The course runs of these courses."""
        return BitMap(array("I", chain.from_iterable(filter(None, map(self.runs_of.get, courses)))))

    def open_courses(self) -> BitMap:
        """The courses that have an active run which is not restricted; worked out again once any run has changed."""
        if self._open is None:
            self._open = self.courses_of(self.active - self.restricted)
        return self._open

    def last_modified_ms(self, ordinals: BitMap) -> int | None:
        """When the content of these changed last; None of nothing."""
        return max(map(self.modified_ms.__getitem__, ordinals), default=None)

    async def _content(self, connection: AsyncConnection, since: int, changes: Changes) -> None:
        newer = sa.select(content).where(content.c.clock > since).order_by(content.c.ordinal)
        for r in await connection.execute(newer):
            if r.ordinal == len(self.keys):
                self._append(r)
            touched = [o for o in (r.ordinal, r.parent, self.parents[r.ordinal]) if o is not None]
            changes.content.update(touched)
            before = self._facts(r.ordinal)
            self._learn(r)
            if self._facts(r.ordinal) != before:
                changes.facts.update(touched)
        shown = sa.select(document.c.ordinal).where(document.c.clock > since, document.c.variant == SHOWN)
        changes.content.update(r.ordinal for r in await connection.execute(shown))

    def _append(self, r: sa.Row[tuple[object, ...]]) -> None:
        self.keys.append(r.content_key)
        self.ordinals[r.content_key] = r.ordinal
        self.types.append(r.type)
        self.parents.append(None)
        self.uuids.append(None)
        self.metadata.append(None)
        self.modified_ms.append(0)

    def _facts(self, ordinal: int) -> tuple[int, int | None, bool, bool]:
        return self.types[ordinal], self.parents[ordinal], ordinal in self.restricted, ordinal in self.active

    def _learn(self, r: sa.Row[tuple[object, ...]]) -> None:
        ordinal: int = r.ordinal
        self._open = None
        self.types[ordinal] = r.type
        if (old := self.parents[ordinal]) is not None and old != r.parent:
            self.runs_of[old].discard(ordinal)
        self.parents[ordinal] = r.parent
        if r.parent is not None:
            self.runs_of.setdefault(r.parent, set()).add(ordinal)
        self.uuids[ordinal] = None if r.uuid is None else UUID(r.uuid).bytes
        self.metadata[ordinal] = None if r.metadata is None else bytes(r.metadata)
        self.modified_ms[ordinal] = r.modified_ms
        for members, belongs in (
            (self.courses, r.type == ContentType.COURSE),
            (self.runs, r.type == ContentType.COURSE_RUN),
            (self.restricted, r.restricted),
            (self.active, r.active),
        ):
            (members.add if belongs else members.discard)(ordinal)

    async def _queries(self, connection: AsyncConnection, since: int, changes: Changes) -> None:
        for r in await connection.execute(sa.select(catalog_query).where(catalog_query.c.clock > since)):
            old = self.queries.get(r.id)
            new = QueryRow(
                id=r.id,
                uuid=UUID(r.uuid).bytes,
                title=r.title,
                content_filter=r.content_filter,
                hash=bytes.fromhex(r.hash),
                serving=None if r.serving is None else bytes.fromhex(r.serving),
            )
            self.queries[r.id] = new
            for row in (old, new):
                if row is not None:
                    changes.hashes.update(h for h in (row.hash, row.serving) if h is not None)
            users = self.users.get(r.id, set())
            changes.catalogs |= users
            changes.hashes.update(h for uuid in users & self.moved.keys() if (h := self.moved[uuid].before) is not None)
        for r in await connection.execute(sa.select(result).where(result.c.clock > since)):
            hash_ = bytes.fromhex(r.hash)
            changes.hashes.add(hash_)
            self.results[hash_] = ResultRow(
                hash=hash_,
                content_filter=r.content_filter,
                state=PullState(r.state),
                members=_bitmap(r.members),
                restricted_members=_bitmap(r.restricted_members),
                forced=_bitmap(r.forced) or NOTHING,
                pulled_at_ms=r.pulled_at_ms,
                task=None if r.task is None else UUID(r.task).bytes,
            )

    async def _catalogs(self, connection: AsyncConnection, since: int, changes: Changes) -> None:
        # Removals first: a catalog may have been removed and made again since.
        gone = sa.select(catalog_history.c.catalog).where(
            catalog_history.c.clock > since, catalog_history.c.action == "removed"
        )
        for r in await connection.execute(gone):
            uuid = UUID(r.catalog).bytes
            changes.catalogs.add(uuid)
            if (removed := self.catalogs.pop(uuid, None)) is not None:
                self._use(removed, changes).discard(uuid)
                self.moved.pop(uuid, None)
        for r in await connection.execute(sa.select(catalog).where(catalog.c.clock > since)):
            new = CatalogRow(
                number=r.number,
                uuid=UUID(r.uuid).bytes,
                title=r.title,
                customer=UUID(r.customer).bytes,
                customer_name=r.customer_name,
                course_modes=r.course_modes,
                audit_urls=r.audit_urls,
                query_id=r.query_id,
                before=None if r.before is None else bytes.fromhex(r.before),
                created_ms=r.created_ms,
                modified_ms=r.modified_ms,
            )
            if (old := self.catalogs.get(new.uuid)) is not None:
                self._use(old, changes).discard(new.uuid)
            self.catalogs[new.uuid] = new
            self._use(new, changes).add(new.uuid)
            self.moved.pop(new.uuid, None)
            if new.before is not None:
                self.moved[new.uuid] = new
            changes.catalogs.add(new.uuid)

    def _use(self, row: CatalogRow, changes: Changes) -> set[bytes]:
        query = self.queries[row.query_id]
        changes.hashes.update(h for h in (query.hash, query.serving, row.before) if h is not None)
        return self.users.setdefault(row.query_id, set())

    async def _customers(self, connection: AsyncConnection, since: int, changes: Changes) -> None:
        for r in await connection.execute(sa.select(customer).where(customer.c.clock > since)):
            uuid = UUID(r.uuid).bytes
            changes.customers.add(uuid)
            if r.slug is None:
                self.customers.pop(uuid, None)
            else:
                self.customers[uuid] = CustomerRow(uuid, r.slug, r.portal, r.name, r.modified_ms)


def _bitmap(data: bytes | None) -> BitMap | None:
    return None if data is None else BitMap.deserialize(bytes(data))
