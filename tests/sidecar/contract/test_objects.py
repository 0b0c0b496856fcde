"""Headers, digests and frames: every way in which an object can be wrong, each with its own error, in order."""

import hashlib
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sidecar.contract.objects import (
    COMPRESS_FROM_BYTES,
    FLAG_ZSTD,
    HEADER,
    MAX_PAYLOAD_BYTES,
    ObjectType,
    digest_of,
    seal,
    unseal,
)
from sidecar.errors import ContractError, Malformed, NotAnObject, UnknownFormat, WrongDigest, WrongType

COMPRESSED_TYPES = [kind for kind in ObjectType if kind is not ObjectType.BITMAP]
TEXT = b"A course about courses. " * 40
SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"


def obj(
    payload: bytes,
    *,
    magic: bytes = b"ECAT",
    version: int = 1,
    kind: int = ObjectType.METADATA,
    flags: int = 0,
    length: int | None = None,
) -> bytes:
    return struct.pack("<4sBBHI", magic, version, kind, flags, len(payload) if length is None else length) + payload


def refused(data: bytes, kind: ObjectType = ObjectType.METADATA) -> type[ContractError]:
    """The exact error with which these bytes are refused under their right digest."""
    with pytest.raises(ContractError) as caught:
        unseal(digest_of(data), data, kind)
    return caught.type


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(data)


@given(st.sampled_from(ObjectType), st.binary(max_size=2000))
def test_what_was_sealed_is_unsealed(kind: ObjectType, payload: bytes) -> None:
    sealed = seal(kind, payload)
    assert sealed.digest == hashlib.blake2b(sealed.data, digest_size=32).digest()
    assert unseal(sealed.digest, sealed.data, kind) == payload
    assert seal(kind, payload) == sealed


@pytest.mark.parametrize("kind", COMPRESSED_TYPES)
def test_a_payload_is_compressed_from_256_bytes_on(kind: ObjectType) -> None:
    below, at = (seal(kind, b"a" * size) for size in (COMPRESS_FROM_BYTES - 1, COMPRESS_FROM_BYTES))
    assert HEADER.unpack_from(below.data) == (b"ECAT", 1, kind, 0, COMPRESS_FROM_BYTES - 1)
    assert HEADER.unpack_from(at.data) == (b"ECAT", 1, kind, FLAG_ZSTD, len(at.data) - 12)
    assert zstandard.frame_content_size(at.data[12:]) == COMPRESS_FROM_BYTES


def test_what_compression_would_not_shrink_stays_as_it_is() -> None:
    payload = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(64))
    assert seal(ObjectType.METADATA, payload).data == obj(payload)


def test_a_bitmap_is_never_compressed() -> None:
    assert seal(ObjectType.BITMAP, b"a" * 5000).data == obj(b"a" * 5000, kind=8)


def test_a_payload_over_the_limit_is_not_sealed() -> None:
    with pytest.raises(Malformed):
        seal(ObjectType.METADATA, bytes(MAX_PAYLOAD_BYTES + 1))


def test_a_payload_of_the_limit_is_sealed_and_unsealed() -> None:
    sealed = seal(ObjectType.METADATA, bytes(MAX_PAYLOAD_BYTES))
    assert len(sealed.data) < 1 << 20
    assert len(unseal(sealed.digest, sealed.data, ObjectType.METADATA)) == MAX_PAYLOAD_BYTES


def test_bytes_under_another_digest_are_refused() -> None:
    data = obj(b"payload")
    for digest in (bytes(32), b"", digest_of(data)[:-1], digest_of(data + b"\0"), hashlib.sha256(data).digest()):
        with pytest.raises(WrongDigest):
            unseal(digest, data, ObjectType.METADATA)


def test_no_bytes_at_all_under_a_digest_are_refused() -> None:
    with pytest.raises(WrongDigest):
        unseal(digest_of(obj(b"payload")), b"", ObjectType.METADATA)


@pytest.mark.parametrize("length", range(12))
def test_less_than_a_header_is_not_an_object(length: int) -> None:
    assert refused(obj(b"")[:length]) is NotAnObject


@pytest.mark.parametrize("magic", [b"ECAU", b"ecat", b"\0\0\0\0", b"TACE", b"\x28\xb5\x2f\xfd"])
def test_another_magic_is_not_an_object(magic: bytes) -> None:
    assert refused(obj(b"payload", magic=magic)) is NotAnObject


@pytest.mark.parametrize("version", [0, 2, 3, 255])
def test_another_version_is_an_unknown_format(version: int) -> None:
    assert refused(obj(b"payload", version=version)) is UnknownFormat


def test_every_other_type_than_the_expected_one_is_a_wrong_type() -> None:
    for expected in ObjectType:
        for kind in range(256):
            if kind != expected:
                assert refused(obj(b"payload", kind=kind), expected) is WrongType


@pytest.mark.parametrize("flags", [2, 3, 4, 128, 256, 257, 0x8000, 0xFFFF])
def test_unknown_flags_are_not_an_object(flags: int) -> None:
    for kind in ObjectType:
        assert refused(obj(frame(TEXT), kind=kind, flags=flags), kind) is NotAnObject


def test_a_compressed_bitmap_is_not_an_object() -> None:
    assert refused(obj(frame(TEXT), kind=ObjectType.BITMAP, flags=FLAG_ZSTD), ObjectType.BITMAP) is NotAnObject


@pytest.mark.parametrize("length", [0, 6, 8, 7 + 12, 255, 0xFFFF_FFFF])
def test_a_length_that_is_not_that_of_the_payload_is_not_an_object(length: int) -> None:
    assert refused(obj(b"payload", length=length)) is NotAnObject


def test_trailing_bytes_are_not_an_object() -> None:
    assert refused(obj(b"payload") + b"\0") is NotAnObject
    assert refused(seal(ObjectType.METADATA, TEXT).data + b"\0") is NotAnObject


def test_the_checks_come_in_the_order_of_the_specification() -> None:
    everything_wrong = {"magic": b"NOPE", "version": 9, "kind": 200, "flags": 4, "length": 1}
    errors = []
    for repaired in ("", "magic", "version", "kind", "flags", "length"):
        everything_wrong.pop(repaired, None)
        errors.append(refused(obj(b"junk", **everything_wrong)) if everything_wrong else None)  # type: ignore[arg-type]
    assert errors == [NotAnObject, UnknownFormat, WrongType, NotAnObject, NotAnObject, None]
    with pytest.raises(WrongDigest):
        unseal(bytes(32), obj(b"junk", magic=b"NOPE", version=9), ObjectType.METADATA)


def _without_size() -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)


def _bomb(size: int) -> bytes:
    """A frame header that claims this size (single segment, eight bytes of it) and an empty last block."""
    return struct.pack("<IB", 0xFD2FB528, 0xE0) + struct.pack("<Q", size) + b"\x01\x00\x00"


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"not zstd at all", id="garbage"),
        pytest.param(TEXT, id="not compressed, and yet flagged"),
        pytest.param(frame(TEXT)[:4], id="magic alone"),
        pytest.param(frame(TEXT)[:-1], id="cut"),
        pytest.param(_without_size(), id="no content size"),
        pytest.param(frame(TEXT) + b"\0", id="a byte after the frame"),
        pytest.param(frame(TEXT) + frame(TEXT), id="a second frame"),
        pytest.param(frame(TEXT) + SKIPPABLE, id="a skippable frame after the frame"),
        pytest.param(SKIPPABLE, id="a skippable frame"),
        pytest.param(SKIPPABLE + frame(TEXT), id="a skippable frame before the frame"),
        pytest.param(frame(b""), id="a frame of nothing"),
        pytest.param(frame(b"") + b"junk", id="a frame of nothing, and junk"),
        pytest.param(frame(b"") + frame(TEXT), id="a frame of nothing, and another frame"),
        pytest.param(_bomb(0), id="claims nothing"),
        pytest.param(_bomb(1), id="claims a byte"),
        pytest.param(_bomb(MAX_PAYLOAD_BYTES), id="claims the limit"),
        pytest.param(_bomb(MAX_PAYLOAD_BYTES + 1), id="claims more than the limit"),
        pytest.param(_bomb(1 << 40), id="claims a terabyte"),
        pytest.param(_bomb((1 << 64) - 1), id="claims what stands for unknown"),
        pytest.param(_bomb((1 << 64) - 2), id="claims what stands for an error"),
        pytest.param(frame(bytes(MAX_PAYLOAD_BYTES + 1)), id="holds more than the limit"),
    ],
)
def test_a_frame_that_is_not_exactly_one_of_a_known_size_is_malformed(payload: bytes) -> None:
    assert refused(obj(payload, flags=FLAG_ZSTD)) is Malformed


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_with_an_error_of_the_contract(data: bytes) -> None:
    for candidate in (data, b"ECAT" + data, obj(data, flags=FLAG_ZSTD), obj(frame(b"")[:5] + data, flags=FLAG_ZSTD)):
        assert issubclass(refused(candidate, ObjectType.ROOT), ContractError)


def test_a_corrupted_frame_with_a_checksum_is_malformed() -> None:
    good = bytearray(zstandard.ZstdCompressor(level=3, write_checksum=True).compress(TEXT))
    good[-1] ^= 1
    assert refused(obj(bytes(good), flags=FLAG_ZSTD)) is Malformed
