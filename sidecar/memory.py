"""The first tier: opened objects in memory, least recently used out first, bounded in bytes. No I/O lives here.

What the index holds is not kept here a second time. Sizes are those of Python's objects, not of the stored bytes.
"""

import sys
from collections import OrderedDict
from dataclasses import fields, is_dataclass

from sidecar.contract.records import Record, Reference


class Memory:
    """An LRU of records. `bytes` and `evictions` may be read at any time."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self.evictions = 0
        self._records: OrderedDict[Reference, tuple[Record, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, reference: Reference) -> Record | None:
        held = self._records.get(reference)
        if held is None:
            return None
        self._records.move_to_end(reference)
        return held[0]

    def put(self, reference: Reference, record: Record) -> None:
        """Keeps the record, unless it alone is over the limit, and drops what is over it from the other end."""
        size = size_of(record)
        if reference in self._records or size > self.limit_bytes:
            return
        self._records[reference] = (record, size)
        self.bytes += size
        while self.bytes > self.limit_bytes:
            _, (_, dropped) = self._records.popitem(last=False)
            self.bytes -= dropped
            self.evictions += 1


def size_of(value: object) -> int:
    """The bytes that a record and what it refers to occupy; what records share is counted each time."""
    size = sys.getsizeof(value)
    if isinstance(value, (tuple, list)):
        size += sum(map(size_of, value))
    elif is_dataclass(value):
        size += sum(size_of(getattr(value, field.name)) for field in fields(value))
    return size
