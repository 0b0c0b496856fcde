"""An index that holds everything but bitmaps, and each of these once it was asked for. No I/O: what fetches is given.

It is `sidecar.contract.index.Index`, joined and checked by the same code. Ordinals, catalogs and queries take some
megabytes for thousands of courses; the bitmaps of all queries would take most of the memory, and one worker asks about
few of them.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Final
from uuid import UUID

from pyroaring import BitMap

from sidecar.contract.index import IN_INDEX, Content, Index, check_bitmap, check_root
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Bitmap, ContentSet, Record, Reference, Root
from sidecar.errors import Malformed
from sidecar.store import Pointer

# Opens the object of a reference. Raises StoreError or ContractError.
Fetch = Callable[[Reference], Record]
Probes = dict[str | UUID, Callable[[int], bool]]


class LazyContent(Content):
    """Content whose bitmaps are fetched when they are first looked at, and are plain attributes from then on.

    It knows no index: a later one goes on using it for a query that did not change.
    """

    __slots__ = ("_digests", "_fetch", "_ordinals")
    _digests: ContentSet
    _fetch: Fetch
    _ordinals: int

    def __init__(self, digests: ContentSet, fetch: Fetch, ordinals: int) -> None:
        object.__setattr__(self, "_digests", digests)
        object.__setattr__(self, "_fetch", fetch)
        object.__setattr__(self, "_ordinals", ordinals)

    def __getattr__(self, name: str) -> BitMap:
        # Reached only while there is no such attribute.
        digest = getattr(self._digests, name)
        record = self._fetch((ObjectType.BITMAP, digest))
        if not isinstance(record, Bitmap):
            raise Malformed(f"object {digest.hex()} is no bitmap")
        bitmap = check_bitmap(digest, record.ordinals, self._ordinals)
        object.__setattr__(self, name, bitmap)
        return bitmap


class LazyIndex(Index):
    """The generation of a pointer. `probes` has `ordinal in contained` of the catalogs that were asked about, by their
    uuids: without restricted runs, and with them.
    """

    HELD: ClassVar = IN_INDEX - {ObjectType.BITMAP}
    __slots__ = ("_fetch", "pointer", "probes")

    def __init__(
        self, pointer: Pointer, records: Mapping[bytes, Record], before: "LazyIndex | None", fetch: Fetch
    ) -> None:
        self.pointer: Final = pointer
        self.probes: Final[tuple[Probes, Probes]] = ({}, {})
        self._fetch = fetch
        super().__init__(pointer.digest, records, before)

    @classmethod
    def load(cls, pointer: Pointer, read: Fetch, before: "LazyIndex | None", fetch: Fetch) -> "LazyIndex":
        """The generation of a pointer, which `read` reads now, but for the bitmaps, which are left for `fetch`. What
        `before` has is not read again. Raises what `read` does, and Malformed if the records do not fit together.
        """
        known: Mapping[bytes, Record] = {} if before is None else before.records
        records: dict[bytes, Record] = {}
        walk: list[Reference] = [(ObjectType.ROOT, pointer.digest)]
        while walk:
            reference = walk.pop()
            if reference[1] not in known and reference[1] not in records:
                record = records[reference[1]] = read(reference)
                if isinstance(record, Root):
                    check_root(record, pointer.epoch, pointer.generation)
                walk += (below for below in record.references() if below[0] in cls.HELD)
        return cls(pointer, records, before, fetch)

    def keep(self, uuid: str | UUID, *, restricted: bool) -> None:
        """Has `probes` answer for a catalog from now on, under the uuid as it is given."""
        query = self.catalogs[str(uuid)].serving
        content = None if query is None else query.v2 if restricted else query.v1
        if content is not None:
            self.probes[restricted][uuid] = content.contained.__contains__

    def _content(self, digests: ContentSet | None) -> Content | None:
        return None if digests is None else LazyContent(digests, self._fetch, len(self.dictionary))
