"""Any object of a store as readable data: what a person looks at when an answer surprises."""

import dataclasses
import json
import string
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any
from uuid import UUID

from pyroaring import BitMap

from sidecar.contract.objects import HEADER, ObjectType
from sidecar.contract.records import (
    BRANCH_CHILDREN,
    Branch,
    Marketing,
    Metadata,
    Modified,
    Part,
    Record,
    Root,
    customer_shard,
    open_record,
)
from sidecar.contract.words import canonical_uuid
from sidecar.errors import NotAnObject, ObjectMissing
from sidecar.store import Store


async def find(store: Store, what: str) -> tuple[str, Record]:
    """The object that `what` names, and its digest: `root`, a digest, or a beginning of one that the root refers to.

    Raises ObjectMissing if the store has none such, and a ContractError if its bytes are not sound.
    """
    pointer = await store.pointer()
    if pointer is None:
        raise ObjectMissing("the store has no root pointer: nothing was ever published here")
    if what == "root":
        return pointer.digest.hex(), await _open(store, pointer.digest)
    what = what.lower()
    if not set(what) <= set(string.hexdigits):
        raise ObjectMissing(f"{what!r} is neither 'root' nor a digest nor the beginning of one, in hexadecimal")
    if len(what) == 64:
        return what, await _open(store, bytes.fromhex(what))
    root = await _open(store, pointer.digest)
    assert isinstance(root, Root)
    layer = [digest for _, digest in root.references()]
    for branch in [digest for kind, digest in root.references() if kind is ObjectType.BRANCH]:
        layer += (digest for _, digest in (await _open(store, branch)).references())
    matching = sorted({d for d in layer if d.hex().startswith(what)})
    if len(matching) != 1:
        raise ObjectMissing(f"{len(matching)} objects below the root have a digest that begins with {what!r}")
    return matching[0].hex(), await _open(store, matching[0])


async def find_record(store: Store, uuid_or_hash: str) -> list[dict[str, Any]]:
    """The catalog, customer, query and freshness records of a uuid or query hash in the published generation.

    Raises ObjectMissing if there are none.
    """
    pointer = await store.pointer()
    if pointer is None:
        raise ObjectMissing("the store has no root pointer: nothing was ever published here")
    root = await _open(store, pointer.digest)
    assert isinstance(root, Root)
    name = canonical_uuid(uuid_or_hash)
    if name is None:
        raise ObjectMissing(f"{uuid_or_hash!r} is neither a uuid nor a query hash")
    wanted = UUID(name).bytes
    # Queries lie by their hashes: one that is asked for by its uuid may be in any shard.
    places = [
        ("query", shard) for branch in root.queries.values() for shard in (await _children(store, branch)).values()
    ]
    number, place = divmod(wanted[0], BRANCH_CHILDREN)
    for kind, branches in (("catalog", root.catalogs), ("freshness", root.freshness)):
        if number in branches and (shard := (await _children(store, branches[number])).get(place)) is not None:
            places.append((kind, shard))
    if (customers := root.customers.get(customer_shard(wanted))) is not None:
        places.append(("customer", customers))
    found = []
    for kind, digest in places:
        records: Iterable[Any] = getattr(await _open(store, digest), "records", ())
        found += [
            {"record": kind, **_readable(r)}
            for r in records
            if wanted in (getattr(r, "hash", None), getattr(r, "uuid", None))
        ]
    if not found:
        raise ObjectMissing(f"generation {pointer.generation} has no record of {uuid_or_hash}")
    return found


def readable(record: Record) -> Any:
    """A record as plain data: digests, hashes and uuids as text, bitmaps as their ordinals, documents as JSON.

    A document is shown as no catalog has it, with null for the time that lies elsewhere, and its places after it.
    """
    if not isinstance(record, Metadata):
        return _readable(record)
    places = [
        {"place": type(p).__name__, **{name: _text(value) for name, value in p._asdict().items()}}
        for p in record.parts
        if not isinstance(p, bytes)
    ]
    document = json.loads(b"".join(map(_bare, record.parts)))
    return {"key": record.key, "type": record.type.name, "document": document, "places": places}


async def _children(store: Store, digest: bytes) -> Mapping[int, bytes]:
    branch = await _open(store, digest)
    assert isinstance(branch, Branch)
    return branch.children


async def _open(store: Store, digest: bytes) -> Record:
    data = (await store.get([digest])).get(digest)
    if data is None:
        raise ObjectMissing(f"object {digest.hex()} is not in the store")
    if len(data) < HEADER.size:
        raise NotAnObject(f"object {digest.hex()}: {len(data)} bytes, less than a header")
    kind = HEADER.unpack_from(data)[2]
    if kind not in set(ObjectType):
        raise NotAnObject(f"object {digest.hex()}: unknown type {kind}")
    return open_record(digest, data, ObjectType(kind))


def _readable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _readable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _readable(item) for key, item in value.items()}
    if isinstance(value, BitMap | tuple | list):
        return [_readable(item) for item in value]
    if isinstance(value, IntEnum):
        return value.name
    return _bytes(value) if isinstance(value, bytes) else value


def _bare(part: Part) -> bytes:
    match part:
        case bytes():
            return part
        case Modified():
            return b"null"
        case Marketing():
            return b'"%b"' % part.plain
    return b""


def _text(value: bytes | bool | None) -> Any:
    """A field of a place, whose bytes are text within a JSON string."""
    return json.loads(b'"%b"' % value) if isinstance(value, bytes) else value


def _bytes(value: bytes) -> str:
    return value.hex()
