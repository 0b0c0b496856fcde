"""Walking the object tree in a store: which objects a generation needs. Every object on the way is verified."""

import asyncio
from collections.abc import Mapping, Set
from itertools import islice
from typing import Final

from sidecar.contract.objects import ObjectType, digest_of
from sidecar.contract.records import open_record
from sidecar.errors import ObjectMissing
from sidecar.store import Store

LEAVES = frozenset({ObjectType.BITMAP, ObjectType.METADATA, ObjectType.SEGMENT, ObjectType.CUSTOMERS})
"""Types that refer to nothing, or whose objects need not be opened to know what they refer to."""
BATCH: Final = 256


async def references(store: Store, root: bytes, known: Set[bytes] = frozenset()) -> set[bytes]:
    """The digests of everything that a root needs, itself included, but for what lies below digests that are known.

    Leaves are named and not looked at; `intact` does that. Raises ObjectMissing or a ContractError if anything above
    them is not whole.
    """
    found: set[bytes] = set()
    layer = [(ObjectType.ROOT, root)]
    while layer:
        found.update(digest for _, digest in layer)
        inner = {digest: kind for kind, digest in layer if kind not in LEAVES}
        objects = await store.get(inner)
        layer = []
        for digest, kind in inner.items():
            if digest not in objects:
                raise ObjectMissing(f"{kind.name.lower()} {digest.hex()} is not in the store")
            layer += open_record(digest, objects[digest], kind).references()
        layer = [r for r in dict.fromkeys(layer) if r[1] not in found and r[1] not in known]
    return found


async def intact(store: Store, digests: Set[bytes]) -> set[bytes]:
    """Those of the objects that the store has, with bytes that hash to their digests."""
    found: set[bytes] = set()
    remaining = iter(digests)
    while batch := list(islice(remaining, BATCH)):
        found |= await asyncio.to_thread(_matching, await store.get(batch))
    return found


def _matching(objects: Mapping[bytes, bytes]) -> set[bytes]:
    return {digest for digest, data in objects.items() if digest_of(data) == digest}
