"""Walking the object tree in a store: which objects a generation needs. Every object on the way is verified."""

from collections.abc import Iterable

from sidecar.contract.objects import ObjectType
from sidecar.contract.records import open_record
from sidecar.errors import ObjectMissing
from sidecar.store import Store

LEAVES = frozenset({ObjectType.BITMAP, ObjectType.METADATA, ObjectType.SEGMENT, ObjectType.CUSTOMERS})
"""Types that refer to nothing, or whose objects need not be opened to know what they refer to."""


async def references(store: Store, roots: Iterable[bytes]) -> set[bytes]:
    """The digests of everything that these roots need, themselves included; what they share is walked once.

    Raises ObjectMissing or a ContractError if a tree is not whole down to its leaves, which are not opened.
    """
    found: set[bytes] = set()
    layer = [(ObjectType.ROOT, digest) for digest in roots]
    while layer:
        found.update(digest for _, digest in layer)
        inner = {digest: kind for kind, digest in layer if kind not in LEAVES}
        objects = await store.get(inner)
        layer = []
        for digest, kind in inner.items():
            if digest not in objects:
                raise ObjectMissing(f"{kind.name.lower()} {digest.hex()} is not in the store")
            layer += [r for r in open_record(digest, objects[digest], kind).references() if r[1] not in found]
        layer = list(dict.fromkeys(layer))
    return found
