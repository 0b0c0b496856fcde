"""What a generation weighs at the design point, what the change of one query moves, and how long opening it takes.

    python -m benchmarks.design_point [--queries 10000] [--keys 100000]

The tree is made of random members, so that nothing compresses that would not in reality: each query has 2,000 courses
and contains their 8,000 courses and runs. Nothing is stored; the objects are counted and opened in memory.
"""

import argparse
import platform
import random
import resource
import time

from sidecar.contract.index import IN_INDEX, Index
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import (
    CONTENT_SHARD_ORDINALS,
    Bitmap,
    CatalogRecord,
    CatalogShard,
    ContentSet,
    ContentShard,
    Freshness,
    FreshnessShard,
    QueryRecord,
    QueryShard,
    Record,
    Root,
    Segment,
    open_record,
    seal_record,
    segment_starts,
)
from sidecar.contract.words import PullState

RUNS_OF_A_COURSE = 3
COURSES_OF_A_QUERY = 2000


class Tree:
    """A generation in a dict."""

    def __init__(self, queries: int, keys: int) -> None:
        self.objects: dict[bytes, tuple[ObjectType, bytes]] = {}
        self._rnd = random.Random("design point")
        group = RUNS_OF_A_COURSE + 1
        courses = range(0, keys, group)
        hashes = sorted(self._rnd.randbytes(16) for _ in range(queries))
        records = [self._query(n, h, courses) for n, h in enumerate(hashes)]
        self.one = records[0]
        shards: dict[int, list[QueryRecord]] = {}
        for record in records:
            shards.setdefault(record.hash[0], []).append(record)
        fresh = {
            b: FreshnessShard(tuple(Freshness(r.hash, 0, PullState.FRESH, self._rnd.randbytes(16), 0) for r in them))
            for b, them in shards.items()
        }
        self.root = Root(
            epoch=1,
            generation=1,
            published_at_ms=0,
            clock=1,
            parent=None,
            dictionary=tuple((count, self.put(self._segment(first, count))) for first, count in segment_starts(keys)),
            content=tuple(self.put(self._content(first, keys)) for first in range(0, keys, CONTENT_SHARD_ORDINALS)),
            queries={b: self.put(QueryShard(tuple(them))) for b, them in shards.items()},
            freshness={b: self.put(shard) for b, shard in fresh.items()},
            catalogs={b: self.put(shard) for b, shard in self._catalogs(hashes).items()},
            customers={},
            counts={"queries": queries, "content": keys},
            producer="benchmark",
        )
        self.digest = self.put(self.root)

    def put(self, record: Record) -> bytes:
        """Keeps an object; its digest."""
        sealed = seal_record(record)
        self.objects[sealed.digest] = record.TYPE, sealed.data
        return sealed.digest

    def size(self, digest: bytes) -> int:
        """How many bytes an object has."""
        return len(self.objects[digest][1])

    def _query(self, number: int, hash_: bytes, courses: range) -> QueryRecord:
        members = self._rnd.sample(courses, min(COURSES_OF_A_QUERY, len(courses)))
        contained = [course + run for course in members for run in range(RUNS_OF_A_COURSE + 1)]
        v1 = ContentSet(
            members=self.put(Bitmap.of(members)),
            contained=self.put(Bitmap.of(contained)),
            listed=self.put(Bitmap.of(members[: len(members) * 9 // 10])),
        )
        content_filter = '{"content_type": "course", "org": ["edX", "MITx"], "level_type": "Introductory"}'
        return QueryRecord(hash_, number + 1, self._rnd.randbytes(16), f"query {number}", content_filter, v1, None)

    def _segment(self, first: int, count: int) -> Segment:
        group = RUNS_OF_A_COURSE + 1
        ordinals = range(first, first + count)
        return Segment(
            first=first,
            types=bytes(2 if o % group else 1 for o in ordinals),
            keys=tuple(f"course-v1:edX+C{o // group}+{o % group}T2026" if o % group else f"edX+C{o}" for o in ordinals),
            parents=tuple(o - o % group if o % group else None for o in ordinals),
            uuids=tuple(self._rnd.randbytes(16) for _ in ordinals),
        )

    def _content(self, first: int, keys: int) -> ContentShard:
        count = min(CONTENT_SHARD_ORDINALS, keys - first)
        return ContentShard(first, tuple(self._rnd.randbytes(32) for _ in range(count)), (0,) * count)

    def _catalogs(self, hashes: list[bytes]) -> dict[int, CatalogShard]:
        shards: dict[int, list[CatalogRecord]] = {}
        for number in range(2 * len(hashes)):
            uuid, hash_, customer = self._rnd.randbytes(16), self._rnd.choice(hashes), self._rnd.randbytes(16)
            record = CatalogRecord(uuid, number, hash_, hash_, customer, "Acme", "A title", '["verified"]', False, 0, 0)
            shards.setdefault(uuid[0], []).append(record)
        return {b: CatalogShard(tuple(sorted(them, key=lambda r: r.uuid))) for b, them in shards.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=100_000)
    arguments = parser.parse_args()
    tree = Tree(arguments.queries, arguments.keys)
    print(f"{platform.platform()}, Python {platform.python_version()}\n\n| what | figure |\n|---|---|")
    one, v1 = tree.one, tree.one.v1
    assert v1 is not None
    shard = one.hash[0]
    sizes = {
        "root": tree.size(tree.digest),
        "query shard": tree.size(tree.root.queries[shard]),
        "freshness shard": tree.size(tree.root.freshness[shard]),
        "members": tree.size(v1.members),
        "contained": tree.size(v1.contained),
        "listed": tree.size(v1.listed),
    }
    for what, size in sizes.items():
        print(f"| {what}, bytes | {size:,} |")
    print(f"| the change of one query moves, bytes | {sum(sizes.values()):,} |")
    indexed = {d: (kind, data) for d, (kind, data) in tree.objects.items() if kind in IN_INDEX}
    print(f"| objects of the index | {len(indexed):,} of {sum(len(data) for _, data in indexed.values()):,} bytes |")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    records = {digest: open_record(digest, data, kind) for digest, (kind, data) in indexed.items()}
    opened = time.perf_counter()
    Index.assemble(tree.digest, records)
    print(f"| verifying and opening all of them, s | {opened - began:.2f} |")
    print(f"| joining them to an index, s | {time.perf_counter() - opened:.2f} |")
    print(
        f"| memory that this took, MiB | {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} |"
    )


if __name__ == "__main__":
    main()
