"""Sealing and opening objects: header, digest, compression (section 2 of the contract). No payload is understood here.

zstandard's exceptions stop in this file.
"""

import hashlib
import struct
import threading
from enum import IntEnum
from typing import NamedTuple

import zstandard

from sidecar.errors import Malformed, NotAnObject, UnknownFormat, WrongDigest, WrongType

MAGIC = b"ECAT"
FORMAT_VERSION = 1
HEADER = struct.Struct("<4sBBHI")
DIGEST_BYTES = 32
FLAG_ZSTD = 1
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
COMPRESS_FROM_BYTES = 256
ZSTD_LEVEL = 3


class _Decompressors(threading.local):
    """One for each thread: no two may use one, and to make one takes longer than most objects take to inflate."""

    def __init__(self) -> None:
        self.mine = zstandard.ZstdDecompressor()


_decompressors = _Decompressors()


class ObjectType(IntEnum):
    """The type byte of a header."""

    ROOT = 1
    SEGMENT = 2
    QUERIES = 3
    FRESHNESS = 4
    CATALOGS = 5
    CUSTOMERS = 6
    CONTENT = 7
    BITMAP = 8
    METADATA = 9
    BRANCH = 10


class Sealed(NamedTuple):
    """An object ready to be stored: its address and all of its bytes."""

    digest: bytes
    data: bytes


def digest_of(data: bytes) -> bytes:
    """The address of an object: blake2b-256 over all of its bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def seal(kind: ObjectType, payload: bytes) -> Sealed:
    """The object of this type and payload. Raises Malformed if the payload is over the limit of 64 MiB."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise Malformed(f"a {kind.name} payload of {len(payload)} bytes; the limit is {MAX_PAYLOAD_BYTES}")
    flags = 0
    if kind is not ObjectType.BITMAP and len(payload) >= COMPRESS_FROM_BYTES:
        frame = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(payload)
        if len(frame) < len(payload):
            payload, flags = frame, FLAG_ZSTD
    data = HEADER.pack(MAGIC, FORMAT_VERSION, kind, flags, len(payload)) + payload
    return Sealed(digest_of(data), data)


def unseal(digest: bytes, data: bytes, expected: ObjectType) -> bytes:
    """The payload, decompressed, of the object that a reference calls `digest` and `expected`.

    Raises WrongDigest, NotAnObject, UnknownFormat, WrongType or Malformed, in the order in which they are checked.
    """
    if digest_of(data) != digest:
        raise WrongDigest(f"object {digest.hex()}: its {len(data)} bytes hash to {digest_of(data).hex()}")
    if len(data) < HEADER.size:
        raise NotAnObject(f"object {digest.hex()}: {len(data)} bytes, less than a header")
    magic, version, kind, flags, length = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise NotAnObject(f"object {digest.hex()}: magic {magic!r} instead of {MAGIC!r}")
    if version != FORMAT_VERSION:
        raise UnknownFormat(f"object {digest.hex()}: format version {version}; this build reads {FORMAT_VERSION}")
    if kind != expected:
        raise WrongType(f"object {digest.hex()}: type {kind} where {expected.name} ({expected:d}) is referenced")
    if flags not in (0, FLAG_ZSTD) or (flags and expected is ObjectType.BITMAP):
        raise NotAnObject(f"object {digest.hex()}: flags {flags:#06x}")
    if length != len(data) - HEADER.size:
        raise NotAnObject(f"object {digest.hex()}: header says {length} bytes, {len(data) - HEADER.size} follow")
    payload = data[HEADER.size :]
    return _inflate(digest, payload) if flags else payload


def _inflate(digest: bytes, frame: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= MAX_PAYLOAD_BYTES:
            raise Malformed(f"object {digest.hex()}: a zstd frame of {size} bytes; the limit is {MAX_PAYLOAD_BYTES}")
        if size == 0:  # zstandard returns at once here and never looks at what follows the frame
            raise Malformed(f"object {digest.hex()}: a zstd frame of nothing")
        return _decompressors.mine.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Malformed(f"object {digest.hex()}: {error}") from error
