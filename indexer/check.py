"""Verifying a whole object tree: every object, every reference, and what the objects say together. Read-only.

Problems are collected, not raised: a check that stops at the first one hides the second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.contract.index import IN_INDEX, Content, Index, check_content
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import ContentShard, Metadata, QueryShard, Record, Reference, Root, open_record
from sidecar.contract.words import ContentType
from sidecar.errors import ContractError, Malformed
from sidecar.store import Pointer, Store

BATCH: Final = 256


@dataclass(slots=True)
class Report:
    """What a check has found. `objects` counts by type what was opened."""

    pointer: Pointer | None = None
    problems: list[str] = field(default_factory=list)
    objects: dict[ObjectType, int] = field(default_factory=dict)
    bytes: int = 0


async def check(store: Store, pointer: Pointer | None = None) -> Report:
    """Verifies the generation that a pointer names, the store's own by default, down to the last document."""
    report = Report(pointer=pointer or await store.pointer())
    if report.pointer is None:
        report.problems.append("the store has no root pointer: nothing was ever published here")
        return report
    records: dict[bytes, Record] = {}
    shards: dict[bytes, ContentShard] = {}
    documents: dict[bytes, set[tuple[str, ContentType]]] = {}
    layer: list[Reference] = [(ObjectType.ROOT, report.pointer.digest)]
    seen = set(layer)
    while layer:
        inner: list[Reference] = []
        for first in range(0, len(layer), BATCH):
            for digest, record in await _open(store, layer[first : first + BATCH], report):
                if record.TYPE in IN_INDEX:
                    records[digest] = record
                elif isinstance(record, ContentShard):
                    shards[digest] = record
                elif isinstance(record, Metadata):
                    documents.setdefault(digest, set()).add((record.key, record.type))
                for reference in record.references():
                    if reference not in seen:
                        seen.add(reference)
                        inner.append(reference)
        layer = inner
    report.problems += _joined(report.pointer, records, shards, documents)
    return report


async def _open(store: Store, references: Sequence[Reference], report: Report) -> list[tuple[bytes, Record]]:
    objects = await store.get({digest for _, digest in references})
    opened = []
    for kind, digest in references:
        data = objects.get(digest)
        if data is None:
            report.problems.append(f"{kind.name.lower()} {digest.hex()} is missing")
            continue
        try:
            opened.append((digest, open_record(digest, data, kind)))
        except ContractError as error:
            report.problems.append(str(error))
            continue
        report.objects[kind] = report.objects.get(kind, 0) + 1
        report.bytes += len(data)
    return opened


def _joined(
    pointer: Pointer,
    records: dict[bytes, Record],
    shards: dict[bytes, ContentShard],
    documents: dict[bytes, set[tuple[str, ContentType]]],
) -> Iterator[str]:
    root = records.get(pointer.digest)
    if isinstance(root, Root) and (root.epoch, root.generation) != pointer[:2]:
        yield (
            f"the pointer says epoch {pointer.epoch}, generation {pointer.generation}; its root says "
            f"epoch {root.epoch}, generation {root.generation}"
        )
    try:
        index = Index.assemble(pointer.digest, records)
    except Malformed as error:
        yield str(error)
        return
    yield from _content(index, shards, documents)
    for query in index.queries.values():
        for version, content in (("v1", query.v1), ("v2", query.v2)):
            if content is not None:
                yield from _sets(index, content, f"query {query.hash.hex()}, {version}")
    for record in records.values():
        if isinstance(record, QueryShard):
            for query_record in record.records:
                for ordinal, digest in query_record.overrides_v1 + query_record.overrides_v2:
                    yield from _document(index, ordinal, digest, documents)


def _content(
    index: Index, shards: dict[bytes, ContentShard], documents: dict[bytes, set[tuple[str, ContentType]]]
) -> Iterator[str]:
    for number, digest in enumerate(index.content):
        shard = shards.get(digest)
        if shard is None:
            continue
        try:
            check_content(index, number, shard)
        except Malformed as error:
            yield str(error)
            continue
        for ordinal, document in enumerate(shard.metadata, start=shard.first):
            if document is not None:
                yield from _document(index, ordinal, document, documents)


def _document(
    index: Index, ordinal: int, digest: bytes, documents: dict[bytes, set[tuple[str, ContentType]]]
) -> Iterator[str]:
    wanted = index.dictionary.keys[ordinal], ContentType(index.dictionary.types[ordinal])
    have = documents.get(digest)
    if have is not None and wanted not in have:
        yield f"metadata {digest.hex()} is the document of {have}, and stands where {wanted} should"


def _sets(index: Index, content: Content, where: str) -> Iterator[str]:
    dictionary = index.dictionary
    if not content.unlisted <= content.members:
        yield f"{where}: leaves out of pages {len(content.unlisted - content.members)} items that are no members"
    if not content.members <= content.contained:
        yield f"{where}: {len(content.members - content.contained)} members are not contained"
    courses_of_members = {dictionary.parents[member] for member in content.members}
    for course in courses_of_members:
        if course is not None and course not in content.contained:
            yield f"{where}: {dictionary.keys[course]!r}, the course of a member run, is not contained"
    for ordinal in content.contained - content.members:
        course = dictionary.parents[ordinal]
        if ordinal not in courses_of_members and (course is None or course not in content.members):
            yield f"{where}: {dictionary.keys[ordinal]!r} is contained; neither it, its course nor a run is a member"
