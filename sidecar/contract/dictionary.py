"""Content keys and their ordinals: the dictionary of a generation. Pure.

Ordinals are given once, and most generations only append to them. So the columns and tables of a dictionary are shared
with the one before, and grow behind its back: what is longer than a dictionary belongs to later ones. Nothing of an
earlier generation leads there, and an ordinal from there is in none of its sets; `find` leaves it out. What a
generation says otherwise of an ordinal that was there before is copied, and of keys that are not those of before
everything is made from nothing.
"""

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from typing import Final
from uuid import UUID

from sidecar.contract.records import Segment, segment_starts
from sidecar.contract.words import ContentType, fold
from sidecar.errors import Malformed

# From so many changed uuids on, sorting all of them is faster.
MANY: Final = 10_000


class Dictionary:
    """Content keys and their ordinals, both ways, exact and folded; and the ordinals of uuids.

    `keys`, `types`, `parents`, `uuids` by ordinal; `ordinals` by key. They may hold more than `len` says: see above.
    """

    __slots__ = ("_by_uuid", "_count", "_folded", "_segments", "keys", "ordinals", "parents", "types", "uuids")

    def __init__(self) -> None:
        """An empty one; see `after`."""
        self.keys: list[str] = []
        self.types = bytearray()
        self.parents: list[int | None] = []
        self.uuids: list[bytes | None] = []
        self.ordinals: dict[str, int] = {}
        self._folded: dict[str, int | tuple[int, ...]] = {}
        # A twentieth of what a dict would take, for a lookup that is rarely made.
        self._by_uuid = array("I")
        self._segments: Sequence[Segment] = ()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, key: str) -> tuple[int, ...]:
        """The ordinals that a caller's key means: its own if it is known exactly, else those of its folded form."""
        ordinal = self.ordinals.get(key)
        if ordinal is not None and ordinal < self._count:
            return (ordinal,)
        found = self._folded.get(fold(key), ())
        return tuple(o for o in ((found,) if isinstance(found, int) else found) if o < self._count)

    def knows(self, key: str) -> bool:
        """Whether a key is known exactly; what it means is then the same in every later generation."""
        ordinal = self.ordinals.get(key)
        return ordinal is not None and ordinal < self._count

    def of_uuid(self, uuid: str) -> int | None:
        """The first ordinal whose content has this uuid."""
        wanted = UUID(uuid).bytes
        place = bisect_left(self._by_uuid, wanted, key=self._uuid)
        if place == len(self._by_uuid) or self._uuid(self._by_uuid[place]) != wanted:
            return None
        return self._by_uuid[place]

    def after(self, segments: Sequence[Segment], ordinals: int) -> "Dictionary":
        """The dictionary of these segments, as many as so many ordinals have. It shares with this one what it can.

        Raises Malformed if the segments do not fit together.
        """
        for (first, count), segment in zip(segment_starts(ordinals), segments, strict=True):
            if (segment.first, len(segment.keys)) != (first, count):
                covered = f"{len(segment.keys)} ordinals from {segment.first}"
                raise Malformed(f"dictionary: a segment of {covered} where there are {count} from {first}")
        known = set(map(id, self._segments))
        new = [segment for segment in segments if id(segment) not in known]
        if ordinals == self._count and not new:
            return self
        if ordinals < self._count or any(self._says_otherwise(segment) for segment in new):
            return Dictionary()._grown(segments, segments, ordinals)
        return self._grown(segments, new, ordinals)

    def _says_otherwise(self, segment: Segment) -> bool:
        """Whether a segment has other keys for ordinals that are there: this dictionary's, or later ones'."""
        there = self.keys[segment.first : segment.first + len(segment.keys)]
        return tuple(there) != segment.keys[: len(there)]

    def _grown(self, segments: Sequence[Segment], new: Sequence[Segment], ordinals: int) -> "Dictionary":
        for segment in new:
            self._append(segment)
        grown = Dictionary.__new__(Dictionary)
        grown.keys, grown.ordinals, grown._folded = self.keys, self.ordinals, self._folded
        grown._segments, grown._count = segments, ordinals
        grown.types, grown.parents, grown.uuids = self.types, self.parents, self.uuids
        moved = [
            ordinal
            for segment in new
            for ordinal, uuid in enumerate(segment.uuids, segment.first)
            if ordinal >= self._count or uuid != self.uuids[ordinal]
        ]
        retyped = False
        for segment in new:
            end = segment.first + len(segment.keys)
            if grown.types[segment.first : end] != segment.types:
                grown.types = self.types.copy() if grown.types is self.types else grown.types
                grown.types[segment.first : end] = segment.types
                retyped = True
            if tuple(grown.parents[segment.first : end]) != segment.parents:
                grown.parents = self.parents.copy() if grown.parents is self.parents else grown.parents
                grown.parents[segment.first : end] = segment.parents
            if tuple(grown.uuids[segment.first : end]) != segment.uuids:
                grown.uuids = self.uuids.copy() if grown.uuids is self.uuids else grown.uuids
                grown.uuids[segment.first : end] = segment.uuids
        grown._check_parents(segments if retyped else new)
        grown._by_uuid = self._sorted_with(moved, grown)
        return grown

    def _append(self, segment: Segment) -> None:
        """Takes over what is beyond everything that is there. Keys come last: what they lead to is there by then."""
        place = max(0, len(self.keys) - segment.first)
        keys, first = segment.keys[place:], segment.first + place
        if not self.ordinals.keys().isdisjoint(keys):
            raise Malformed("dictionary: a content key has two ordinals")
        self.types += segment.types[place:]
        self.parents += segment.parents[place:]
        self.uuids += segment.uuids[place:]
        self.keys += keys
        for ordinal, key in enumerate(keys, first):
            folded = fold(key)
            have = self._folded.get(folded)
            if have is None:
                self._folded[folded] = ordinal
            else:
                self._folded[folded] = (*((have,) if isinstance(have, int) else have), ordinal)
        self.ordinals.update(zip(keys, range(first, first + len(keys)), strict=True))

    def _check_parents(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            for ordinal, parent in enumerate(segment.parents, segment.first):
                if parent is None:
                    continue
                if parent >= self._count or self.types[parent] != ContentType.COURSE:
                    raise Malformed(f"dictionary: the parent of ordinal {ordinal} is {parent}, which is no course")
                if self.types[ordinal] != ContentType.COURSE_RUN:
                    raise Malformed(f"dictionary: ordinal {ordinal} has a parent and is no course run")

    def _sorted_with(self, moved: Collection[int], grown: "Dictionary") -> "array[int]":
        """The ordinals by uuid of the grown dictionary, of which these have another uuid than here, or are new."""
        if not self._by_uuid or len(moved) > MANY:
            have = (ordinal for ordinal in range(grown._count) if grown.uuids[ordinal] is not None)
            return array("I", sorted(have, key=grown._uuid))
        if not moved:
            return self._by_uuid
        gone = {ordinal for ordinal in moved if ordinal < self._count and self.uuids[ordinal] is not None}
        by_uuid = self._by_uuid[:] if not gone else array("I", (o for o in self._by_uuid if o not in gone))
        for ordinal in moved:
            uuid = grown.uuids[ordinal]
            if uuid is not None:
                place = bisect_left(by_uuid, (uuid, ordinal), key=lambda o: (grown._uuid(o), o))
                by_uuid.insert(place, ordinal)
        return by_uuid

    def _uuid(self, ordinal: int) -> bytes:
        return self.uuids[ordinal] or b""
