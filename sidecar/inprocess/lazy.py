"""An index that holds everything but bitmaps, and each of these once it was asked for. No I/O: what fetches is given.

It is `sidecar.contract.index.Index`, joined and checked by the same code. Ordinals, catalogs and queries take some
megabytes for thousands of courses; the bitmaps of all queries would take most of the memory, and one worker asks about
few of them.
"""

from collections.abc import Callable, Mapping
from typing import Final
from uuid import UUID

from pyroaring import BitMap

from sidecar.contract.index import Content, Index, check_bitmap, check_root, index_references
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Bitmap, ContentSet, Record, Reference, Root
from sidecar.errors import Malformed
from sidecar.store import Pointer

# Opens the object of a reference. Raises StoreError or ContractError.
Fetch = Callable[[Reference], Record]
Probes = dict[str | UUID, Callable[[int], bool]]


class Bitmaps:
    """The bitmaps of a generation, by digest, among its records. Knows nothing of the index, so that an index which is
    replaced is gone at once, and not when Python looks for cycles next: some workers never do.
    """

    __slots__ = ("_fetch", "_ordinals", "_records")

    def __init__(self, records: dict[bytes, Record], ordinals: int, fetch: Fetch) -> None:
        self._records = records
        self._ordinals = ordinals
        self._fetch = fetch

    def get(self, digest: bytes) -> BitMap:
        """A bitmap, which is kept. Raises what the fetching does, and Malformed."""
        record = self._records.get(digest)
        if record is None:
            record = self._records[digest] = self._fetch((ObjectType.BITMAP, digest))
        if not isinstance(record, Bitmap):
            raise Malformed(f"object {digest.hex()} is no bitmap")
        return check_bitmap(digest, record.ordinals, self._ordinals)


class LazyContent(Content):
    """Content whose bitmaps are fetched when they are first looked at, and are plain attributes from then on."""

    __slots__ = ("_bitmaps", "_digests")
    _bitmaps: Bitmaps
    _digests: ContentSet

    def __init__(self, digests: ContentSet, bitmaps: Bitmaps) -> None:
        object.__setattr__(self, "_digests", digests)
        object.__setattr__(self, "_bitmaps", bitmaps)

    def __getattr__(self, name: str) -> BitMap:
        # Reached only while there is no such attribute.
        bitmap = self._bitmaps.get(getattr(self._digests, name))
        object.__setattr__(self, name, bitmap)
        return bitmap


class LazyIndex(Index):
    """The generation of a pointer. `probes` has `ordinal in contained` of the catalogs that were asked about, by their
    uuids: without restricted runs, and with them.
    """

    __slots__ = ("_bitmaps", "pointer", "probes")

    def __init__(
        self, pointer: Pointer, root: Root, records: dict[bytes, Record], before: "LazyIndex | None", fetch: Fetch
    ) -> None:
        self.pointer: Final = pointer
        self.probes: Final[tuple[Probes, Probes]] = ({}, {})
        self._bitmaps = Bitmaps(records, root.ordinals, fetch)
        super().__init__(pointer.digest, root, records, before)

    @classmethod
    def load(cls, pointer: Pointer, read: Fetch, before: "LazyIndex | None", fetch: Fetch) -> "LazyIndex":
        """The generation of a pointer, which `read` reads now, but for the bitmaps, which are left for `fetch`. What
        `before` has is not read again. Raises what `read` does, and Malformed if the records do not fit together.
        """
        known: Mapping[bytes, Record] = {} if before is None else before.records
        root = read((ObjectType.ROOT, pointer.digest))
        if not isinstance(root, Root):
            raise Malformed(f"object {pointer.digest.hex()} is no root")
        check_root(root, pointer.epoch, pointer.generation)
        records: dict[bytes, Record] = {pointer.digest: root}
        for reference in index_references(root):
            digest = reference[1]
            shard = known.get(digest) or read(reference)
            records[digest] = shard
            records.update({below: known[below] for _, below in index_references(shard) if below in known})
        return cls(pointer, root, records, before, fetch)

    def keep(self, uuid: str | UUID, *, restricted: bool) -> None:
        """Has `probes` answer for a catalog from now on, under the uuid as it is given."""
        query = self.catalogs[str(uuid)].serving
        content = None if query is None else query.v2 if restricted else query.v1
        if content is not None:
            self.probes[bool(restricted)][uuid] = content.contained.__contains__

    def _content(self, digests: ContentSet | None) -> Content | None:
        return None if digests is None else LazyContent(digests, self._bitmaps)
