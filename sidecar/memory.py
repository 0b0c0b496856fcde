"""The first tier: opened objects in memory, least recently used out first, bounded in bytes. No I/O lives here.

What the index holds is not kept here a second time. Sizes are those of Python's objects, not of the stored bytes.

A document is held together with what catalogs have made of it: buffers that are sent as they are, the long ones of them
the record's own. They come and go with it, so that what they share is counted once and never outlives its count; and
there are never more of them than the document itself is large, so that many catalogs make no document dear.
"""

import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from sidecar.contract.records import Metadata, Record, Reference

# When the content changed that the buffers show, how long they are together, and the buffers. A plain tuple, into which
# the garbage collector need not look: there may be many thousands of them.
Filled = tuple[int, int, tuple[bytes, ...]]
EMPTY_BYTES: Final = sys.getsizeof(b"")


class _Held:
    """A record, its size, and what it was filled to, by whose values those are; the oldest first."""

    __slots__ = ("filled", "filled_bytes", "record", "size")

    def __init__(self, record: Record, size: int) -> None:
        self.record = record
        self.size = size
        self.filled: dict[bytes, tuple[Filled, int]] = {}
        self.filled_bytes = 0


class Memory:
    """An LRU of records. `bytes` and `evictions` may be read at any time.

    `spare` is for what others have not asked for and are not likely to: it takes free room alone, pushes nothing out,
    does not count as a use, and goes first.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self.evictions = 0
        self._held: OrderedDict[bytes, _Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, reference: Reference, *, spare: bool = False) -> Record | None:
        kind, digest = reference
        held = self._held.get(digest)
        if held is None or kind != held.record.TYPE:
            return None
        if not spare:
            self._held.move_to_end(digest)
        return held.record

    def put(self, reference: Reference, record: Record, *, spare: bool = False) -> None:
        """Keeps the record, unless it alone is over the limit, and drops what is over it from the other end."""
        digest = reference[1]
        if digest in self._held:
            return
        size = size_of(record)
        if size + (self.bytes if spare else 0) > self.limit_bytes:
            return
        self._held[digest] = _Held(record, size)
        if spare:
            self._held.move_to_end(digest, last=False)
        self.bytes += size
        self._shrink()

    def filled(
        self, digests: Sequence[bytes], modified_ms: Sequence[int], key: bytes, *, spare: bool = False
    ) -> list[Filled | None]:
        """What these documents, as they changed at these times, were filled to by the values of this key."""
        held_of, used = self._held, self._held.move_to_end
        found: list[Filled | None] = []
        for digest, ms in zip(digests, modified_ms, strict=True):
            held = held_of.get(digest)
            sized = None if held is None else held.filled.get(key)
            if sized is None or sized[0][0] != ms:
                found.append(None)
                continue
            found.append(sized[0])
            if not spare:
                used(digest)
        return found

    def fill(self, digest: bytes, key: bytes, filled: Filled, *, spare: bool = False) -> None:
        """Keeps what a document was filled to, if the document is held; the oldest of them make room for it."""
        held = self._held.get(digest)
        if held is None or not isinstance(held.record, Metadata):
            return
        size = _own_size(held.record, filled)
        if size + (self.bytes if spare else held.size) > self.limit_bytes:
            return
        before = held.filled_bytes
        self._drop(held, key)
        held.filled[key] = filled, size
        held.filled_bytes += size
        while held.filled_bytes > held.size and len(held.filled) > 1:
            self._drop(held, next(iter(held.filled)))
        self.bytes += held.filled_bytes - before
        self._shrink()

    @staticmethod
    def _drop(held: _Held, key: bytes) -> None:
        sized = held.filled.pop(key, None)
        if sized is not None:
            held.filled_bytes -= sized[1]

    def _shrink(self) -> None:
        while self.bytes > self.limit_bytes:
            _, dropped = self._held.popitem(last=False)
            self.bytes -= dropped.size + dropped.filled_bytes
            self.evictions += 1


def size_of(value: object) -> int:
    """The bytes that a record and what it refers to occupy; what records share is counted each time."""
    if type(value) is bytes:
        # Most of them are; to ask for the size of each is what takes the time.
        return EMPTY_BYTES + len(value)
    size = sys.getsizeof(value)
    if isinstance(value, (tuple, list)):
        size += sum(map(size_of, value))
    else:
        # Records are dataclasses with slots.
        size += sum(size_of(getattr(value, name)) for name in getattr(value, "__slots__", ()))
    return size


def _own_size(record: Metadata, filled: Filled) -> int:
    """The bytes of what a document was filled to, without the buffers that are its own."""
    own = set(map(id, record.parts))
    _, _, buffers = filled
    new = sum(EMPTY_BYTES + len(buffer) for buffer in buffers if id(buffer) not in own)
    return new + sum(map(sys.getsizeof, (filled, *filled)))
