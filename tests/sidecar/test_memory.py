"""Memory keeps what was used last, within its bound."""

import gc
from functools import cache

from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Metadata, Reference
from sidecar.contract.words import ContentType
from sidecar.memory import Filled, Memory, size_of


def document(n: int) -> Metadata:
    return Metadata(f"k{n}", ContentType.COURSE, (bytes(1000),))


def reference(n: int) -> Reference:
    return ObjectType.METADATA, bytes([n])


SIZE = size_of(document(0))


def test_the_least_recently_used_goes_first() -> None:
    memory = Memory(2 * SIZE)
    memory.put(reference(1), document(1))
    memory.put(reference(2), document(2))
    assert memory.get(reference(1)) == document(1)
    memory.put(reference(3), document(3))
    assert memory.get(reference(2)) is None
    assert memory.get(reference(1)) == document(1)
    assert (memory.bytes, memory.evictions, len(memory)) == (2 * SIZE, 1, 2)


def test_what_is_over_the_bound_alone_is_not_kept() -> None:
    memory = Memory(SIZE - 1)
    memory.put(reference(1), document(1))
    assert (memory.bytes, memory.evictions, len(memory)) == (0, 0, 0)


def test_the_same_object_counts_once() -> None:
    memory = Memory(10 * SIZE)
    memory.put(reference(1), document(1))
    memory.put(reference(1), document(1))
    assert (memory.bytes, len(memory)) == (SIZE, 1)


def test_sizes_include_what_a_record_holds() -> None:
    assert 1000 < SIZE < 2000


def filled(n: int, *own: bytes, ms: int = 7) -> Filled:
    """What a document was filled to: its own buffer, and these."""
    buffers = (*own, *(part for part in document_of(n).parts if isinstance(part, bytes)))
    return ms, sum(map(len, buffers)), buffers


@cache
def document_of(n: int) -> Metadata:
    return document(n)


def held(memory: Memory, n: int, key: bytes = b"key", ms: int = 7) -> Filled | None:
    return memory.filled([bytes([n])], [ms], key)[0]


def memory_of(limit_bytes: int, *numbers: int) -> Memory:
    memory = Memory(limit_bytes)
    for n in numbers:
        memory.put(reference(n), document_of(n))
    return memory


def test_what_a_document_was_filled_to_is_found_by_whose_values_and_when() -> None:
    memory = memory_of(10 * SIZE, 1, 2)
    memory.fill(bytes([1]), b"key", filled(1, b"own"))
    assert held(memory, 1) == filled(1, b"own")
    assert [held(memory, 2), held(memory, 1, b"other"), held(memory, 1, ms=8), held(memory, 3)] == [None] * 4
    memory.fill(bytes([1]), b"key", filled(1, b"later", ms=8))
    assert (held(memory, 1), held(memory, 1, ms=8)) == (None, filled(1, b"later", ms=8))


def test_only_what_is_not_the_documents_own_counts() -> None:
    memory = memory_of(10 * SIZE, 1)
    memory.fill(bytes([1]), b"key", filled(1, b"x" * 100))
    before = memory.bytes
    assert SIZE + 100 < before < SIZE + 500
    memory.fill(bytes([1]), b"key", filled(1, b"y" * 100))
    assert memory.bytes == before


def test_many_catalogs_make_a_document_at_most_twice_as_large() -> None:
    memory = memory_of(100 * SIZE, 1)
    for n in range(100):
        memory.fill(bytes([1]), b"%d" % n, filled(1, b"x" * 100))
        assert memory.bytes <= 2 * SIZE
    assert held(memory, 1, b"99") is not None
    assert held(memory, 1, b"0") is None
    memory.fill(bytes([1]), b"large", filled(1, b"x" * 10_000))
    assert (held(memory, 1, b"99"), held(memory, 1, b"large") is None) == (None, False)


def test_what_a_document_was_filled_to_goes_with_it_and_with_its_size() -> None:
    memory = memory_of(2 * SIZE + 500, 1, 2)
    memory.fill(bytes([1]), b"key", filled(1, b"x" * 100))
    memory.put(reference(3), document_of(3))
    assert (held(memory, 1), memory.get(reference(1)), memory.bytes) == (None, None, 2 * SIZE)
    memory.fill(bytes([1]), b"key", filled(1, b"x" * 100))
    assert (held(memory, 1), memory.bytes) == (None, 2 * SIZE)
    memory.fill(bytes([3]), b"key", filled(3, b"x" * 9000))
    assert (held(memory, 3), len(memory), memory.evictions) == (None, 2, 1)
    memory.fill(bytes([3]), b"key", filled(3, b"x" * 1000))
    assert (held(memory, 3) is None, len(memory), memory.evictions) == (False, 1, 2)
    assert memory.get(reference(2)) is None
    memory.put(reference(4), document_of(4))
    memory.put(reference(5), document_of(5))
    assert memory.bytes == 2 * SIZE


def test_to_be_shown_is_a_use() -> None:
    memory = memory_of(3 * SIZE, 1, 2)
    memory.fill(bytes([1]), b"key", filled(1))
    assert held(memory, 1) is not None
    memory.put(reference(3), document_of(3))
    assert (held(memory, 1) is None, memory.get(reference(2))) == (False, None)


def test_what_is_spare_takes_free_room_alone_and_goes_first() -> None:
    memory = memory_of(3 * SIZE, 1, 2)
    memory.put(reference(3), document_of(3), spare=True)
    memory.put(reference(4), document_of(4), spare=True)
    memory.fill(bytes([1]), b"key", filled(1, b"x" * 2000), spare=True)
    assert (held(memory, 1), memory.get(reference(4)), memory.evictions) == (None, None, 0)
    assert memory.get(reference(3), spare=True) == document_of(3)
    memory.put(reference(4), document_of(4))
    assert (memory.get(reference(3)), memory.evictions) == (None, 1)


def test_a_record_is_none_of_another_type() -> None:
    memory = memory_of(3 * SIZE, 1)
    assert memory.get((ObjectType.CONTENT, bytes([1]))) is None


def test_what_documents_were_filled_to_is_nothing_that_the_garbage_collector_follows() -> None:
    one = filled(1, b"own")
    # The inner tuple first, and then the one around it.
    gc.collect()
    gc.collect()
    assert not gc.is_tracked(one)
