"""Any object of a store as readable data: what a person looks at when an answer surprises."""

import dataclasses
import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any
from uuid import UUID

from pyroaring import BitMap

from sidecar.contract.objects import HEADER, ObjectType
from sidecar.contract.records import Metadata, Record, Root, open_record
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
    if len(what) == 64:
        return what, await _open(store, bytes.fromhex(what))
    root = await _open(store, pointer.digest)
    assert isinstance(root, Root)
    layer = [digest for _, digest in root.references()]
    matching = sorted({d for d in layer if d.hex().startswith(what)})
    if len(matching) != 1:
        raise ObjectMissing(f"{len(matching)} objects below the root have a digest that begins with {what!r}")
    return matching[0].hex(), await _open(store, matching[0])


async def find_record(store: Store, uuid_or_hash: str) -> list[dict[str, Any]]:
    """The catalog, customer, query and freshness records of a uuid or query hash in the published generation."""
    pointer = await store.pointer()
    if pointer is None:
        raise ObjectMissing("the store has no root pointer: nothing was ever published here")
    root = await _open(store, pointer.digest)
    assert isinstance(root, Root)
    wanted = UUID(canonical_uuid(uuid_or_hash) or uuid_or_hash).bytes
    found = []
    for kind, shards in (("catalog", root.catalogs), ("query", root.queries), ("freshness", root.freshness)):
        if wanted[0] in shards:
            records = _records(await _open(store, shards[wanted[0]]))
            found += [
                {"record": kind, **_readable(r)} for r in records if wanted in (_name(r), getattr(r, "uuid", None))
            ]
    if wanted[0] & 0xF0 in root.customers:
        records = _records(await _open(store, root.customers[wanted[0] & 0xF0]))
        found += [{"record": "customer", **_readable(r)} for r in records if _name(r) == wanted]
    return found


def readable(record: Record) -> Any:
    """A record as plain data: digests, hashes and uuids as text, bitmaps as their ordinals, documents as JSON."""
    if isinstance(record, Metadata):
        return {"key": record.key, "type": record.type.name, "document": json.loads(b"".join(record.parts))}
    return _readable(record)


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


def _records(record: Record) -> tuple[Any, ...]:
    records: tuple[Any, ...] = getattr(record, "records", ())
    return records


def _name(record: Any) -> bytes:
    name: bytes = record.hash if hasattr(record, "hash") else record.uuid
    return name


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


def _bytes(value: bytes) -> str:
    return value.hex()
