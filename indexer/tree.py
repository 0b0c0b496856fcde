"""Walking the object tree in a store: which objects a generation needs, and which of them are damaged."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from sidecar.contract.objects import ObjectType, digest_of
from sidecar.contract.records import Reference, open_record
from sidecar.errors import CatalogError, ContractError, ObjectMissing
from sidecar.store import Store

LEAVES = frozenset({ObjectType.BITMAP, ObjectType.METADATA, ObjectType.SEGMENT, ObjectType.CUSTOMERS})
"""Types that refer to nothing, or whose objects need not be opened to know what they refer to."""
BATCH: Final = 256


@dataclass(slots=True)
class Damage:
    """Digests of objects that a store has not, or has with other bytes."""

    missing: set[bytes] = field(default_factory=set)
    corrupt: set[bytes] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.missing or self.corrupt)

    def __len__(self) -> int:
        return len(self.missing) + len(self.corrupt)

    def all(self) -> set[bytes]:
        """Both kinds."""
        return self.missing | self.corrupt

    def add(self, other: "Damage") -> None:
        """Takes another's digests over."""
        self.missing |= other.missing
        self.corrupt |= other.corrupt


@dataclass(slots=True)
class Walk:
    """What trees need, as far as their objects tell: every digest, and why those above the leaves that are not whole
    could not be opened. What lies below such a one is not known.
    """

    found: set[bytes] = field(default_factory=set)
    opened: set[bytes] = field(default_factory=set)
    broken: dict[bytes, CatalogError] = field(default_factory=dict)


async def walk(store: Store, roots: Iterable[bytes], known: Set[bytes] = frozenset()) -> Walk:
    """Walks from these roots, all layers of them at once; nothing at or below digests that are known is looked at."""
    walked = Walk()
    layer: list[Reference] = [(ObjectType.ROOT, root) for root in dict.fromkeys(roots) if root not in known]
    while layer:
        walked.found.update(digest for _, digest in layer)
        inner = {digest: kind for kind, digest in layer if kind not in LEAVES}
        objects = await store.get(inner)
        below: dict[Reference, None] = {}
        for digest, kind in inner.items():
            try:
                if digest not in objects:
                    raise ObjectMissing(f"{kind.name.lower()} {digest.hex()} is not in the store")
                below.update(dict.fromkeys(open_record(digest, objects[digest], kind).references()))
            except (ContractError, ObjectMissing) as error:
                walked.broken[digest] = error
            else:
                walked.opened.add(digest)
        layer = [r for r in below if r[1] not in walked.found and r[1] not in known]
    return walked


async def references(store: Store, root: bytes, known: Set[bytes] = frozenset()) -> set[bytes]:
    """The digests of everything that a root needs, itself included, but for what lies below digests that are known.

    Leaves are named and not looked at; `intact` does that. Raises ObjectMissing or a ContractError if anything above
    them is not whole.
    """
    walked = await walk(store, [root], known)
    for error in walked.broken.values():
        raise error
    return walked.found


async def survey(store: Store, roots: Iterable[bytes], trusted: Set[bytes] = frozenset()) -> tuple[set[bytes], Damage]:
    """All that these roots need, as far as that can be known, and what of it is damaged.

    Leaves that are trusted are not read; everything above the leaves is.
    """
    walked = await walk(store, roots)
    damage = await look(store, (walked.found - walked.opened - trusted) | walked.broken.keys())
    for digest, error in walked.broken.items():
        # Bytes that hash to their digest and still are no object of their kind are no less damaged.
        if digest not in damage.missing and not isinstance(error, ObjectMissing):
            damage.corrupt.add(digest)
    return walked.found, damage


async def look(store: Store, digests: Collection[bytes]) -> Damage:
    """Reads objects, and says which of them are damaged."""
    damage = Damage()
    remaining = iter(digests)
    while batch := list(islice(remaining, BATCH)):
        objects = await store.get(batch)
        sound = await asyncio.to_thread(_matching, objects)
        damage.missing.update(digest for digest in batch if digest not in objects)
        damage.corrupt.update(objects.keys() - sound)
    return damage


async def intact(store: Store, digests: Set[bytes]) -> set[bytes]:
    """Those of the objects that the store has, with bytes that hash to their digests."""
    return set(digests) - (await look(store, digests)).all()


def _matching(objects: Mapping[bytes, bytes]) -> set[bytes]:
    return {digest for digest, data in objects.items() if digest_of(data) == digest}
