"""The opened records of one generation, by digest, shared with those of the generation before. Pure, never changed.

What a generation holds is counted reference by reference, as files are linked in a directory tree: `after` looks at
what is new and at what nothing refers to any more, and at nothing else. So the work is that of the change, and what is
found missing is found before anything is joined.
"""

from collections.abc import Iterator, Mapping, Set
from typing import Final

from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Record, Reference
from sidecar.errors import Malformed

IN_INDEX: Final = frozenset(ObjectType) - {ObjectType.CONTENT, ObjectType.METADATA}


def index_references(record: Record) -> Iterator[Reference]:
    """The references of a record that an index needs opened: everything but documents."""
    return (reference for reference in record.references() if reference[0] in IN_INDEX)


class Held(Mapping[bytes, Record]):
    """All records that an index is made of. `came` and `gone`: what is not in the one before, and what was only there.

    Buckets by the first byte of the digest: a change copies the few that it touches.
    """

    __slots__ = ("_buckets", "_counts", "_kinds", "_root", "came", "gone")

    def __init__(self, kinds: Set[ObjectType] = IN_INDEX) -> None:
        """Nothing at all; see `after`. `kinds`: what is held; references to anything else are not followed."""
        self._kinds = kinds
        self._buckets: list[dict[bytes, Record]] = [{} for _ in range(256)]
        # Of those that more than one reference leads to: how many. All others have one.
        self._counts: dict[bytes, int] = {}
        self._root: bytes | None = None
        self.came: Mapping[bytes, Record] = {}
        self.gone: frozenset[bytes] = frozenset()

    def __getitem__(self, digest: bytes) -> Record:
        return self._buckets[digest[0]][digest]

    def __iter__(self) -> Iterator[bytes]:
        return (digest for bucket in self._buckets for digest in bucket)

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def without(self, other: "Held") -> list[bytes]:
        """The digests that another one does not hold; buckets that both share are not looked at."""
        pairs = zip(self._buckets, other._buckets, strict=True)
        return [digest for mine, theirs in pairs if mine is not theirs for digest in mine if digest not in theirs]

    def after(self, root: bytes, opened: Mapping[bytes, Record]) -> "Held":
        """What the generation of this root holds: of this one what is in both, of the opened ones what is not.

        Raises Malformed if any record is in neither, or is of another type than a reference says.
        """
        links: dict[bytes, int] = {root: 1}
        came = self._follow((ObjectType.ROOT, root), opened, links)
        gone = self._release(links)
        held = Held.__new__(Held)
        held._buckets = self._buckets.copy()
        held._kinds, held._root, held.came, held.gone = self._kinds, root, came, frozenset(gone)
        copied: set[int] = set()
        for digest in (*came, *gone):
            if digest[0] not in copied:
                copied.add(digest[0])
                held._buckets[digest[0]] = self._buckets[digest[0]].copy()
        for digest in gone:
            del held._buckets[digest[0]][digest]
        for digest, record in came.items():
            held._buckets[digest[0]][digest] = record
        held._counts = self._counted(links)
        return held

    def _follow(self, first: Reference, opened: Mapping[bytes, Record], links: dict[bytes, int]) -> dict[bytes, Record]:
        """The records that are new, by walking from the first; counts in `links` what these refer to."""
        came: dict[bytes, Record] = {}
        walk = [first]
        while walk:
            kind, digest = walk.pop()
            if digest in came:
                continue
            known = self.get(digest)
            record = opened.get(digest) if known is None else known
            if record is None or kind != record.TYPE:
                raise Malformed(f"no {kind.name.lower()} {digest.hex()} among the records")
            if known is not None:
                continue
            came[digest] = record
            for reference in self._followed(record):
                links[reference[1]] = links.get(reference[1], 0) + 1
                walk.append(reference)
        return came

    def _release(self, links: dict[bytes, int]) -> list[bytes]:
        """What nothing leads to any more once this root is no longer there; takes off `links` what these led to."""
        gone: list[bytes] = []
        walk = [] if self._root is None else [self._root]
        while walk:
            digest = walk.pop()
            links[digest] = links.get(digest, 0) - 1
            if self._counts.get(digest, 1) + links[digest] == 0:
                gone.append(digest)
                walk += (reference[1] for reference in self._followed(self[digest]))
        return gone

    def _followed(self, record: Record) -> Iterator[Reference]:
        return (reference for reference in record.references() if reference[0] in self._kinds)

    def _counted(self, links: Mapping[bytes, int]) -> dict[bytes, int]:
        counts = self._counts.copy()
        for digest, change in links.items():
            if change:
                count = self._counts.get(digest, int(digest in self)) + change
                if count > 1:
                    counts[digest] = count
                else:
                    counts.pop(digest, None)
        return counts
