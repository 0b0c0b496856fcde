"""Memory keeps what was used last, within its bound."""

from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Metadata, Reference
from sidecar.contract.words import ContentType
from sidecar.memory import Memory, size_of


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
