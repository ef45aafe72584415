"""Encoding and decoding objects; foreign and damaged ones are errors that name the object."""

from __future__ import annotations

import errno
import json
import struct
import zlib
from array import array
from typing import Any

import pytest
import zstandard

from aiovblk.errors import StorageError
from aiovblk.storage.objects import ObjectStoreDevice, create
from aiovblk.storage.objects.codec import ObjectCodec
from aiovblk.storage.objects.keys import MAX_CHUNKS
from aiovblk.storage.objects.state import DiskState, read_state

from ....support.object_store import Bucket

DISK = bytes(16)
KEY = bytes(range(32))


def sealed(payload: bytes, length: int, codec: int = 1) -> bytes:
    """Encode an object as an attacker who can write to the store might."""
    check = zlib.crc32(payload, zlib.crc32(DISK + b"name"))
    return struct.pack("<4sBBHII", b"avb1", codec, 0, 0, length, check) + payload


@pytest.mark.parametrize("options", [{}, {"compress": True}, {"key": KEY}])
def test_object_is_opened_under_its_name_by_its_disk_only(options: dict[str, Any]) -> None:
    data = ObjectCodec(DISK, **options).seal("name", b"contents" * 100)
    key = options.get("key")
    assert bytes(ObjectCodec(DISK, key=key).open("name", data)) == b"contents" * 100
    for disk, name in ((DISK, "other"), (bytes([1]) * 16, "name")):
        with pytest.raises(StorageError, match="is damaged"):
            ObjectCodec(disk, key=key).open(name, data)


def test_no_two_objects_are_encrypted_alike() -> None:
    codec = ObjectCodec(DISK, key=KEY)
    assert len({codec.seal("name", b"contents")[16:] for _ in range(10)}) == 10


def test_object_that_is_not_encrypted_is_refused_by_a_disk_that_is() -> None:
    data = ObjectCodec(DISK).seal("name", b"contents")
    with pytest.raises(StorageError, match="it is not encrypted, but the disk is"):
        ObjectCodec(DISK, key=KEY).open("name", data)


def test_every_bit_of_an_object_counts() -> None:
    for key in (None, KEY):
        codec = ObjectCodec(DISK, compress=True, key=key)
        data = codec.seal("name", b"contents" * 100)
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(StorageError):
                codec.open("name", bytes(changed))


@pytest.mark.parametrize("claimed", [10, 1 << 20])
def test_object_that_grows_when_it_is_decompressed_is_refused(claimed: int) -> None:
    small = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    huge = bytearray(small)  # a frame that claims to have 2**62 bytes
    at = huge.index((64 << 20).to_bytes(4, "little"))
    huge = huge[:4] + bytes([huge[4] | 0xC0]) + huge[5:at] + struct.pack("<Q", 1 << 62)
    for payload in (small, bytes(huge + small[at + 4 :])):
        with pytest.raises(StorageError, match="is damaged"):
            ObjectCodec(DISK).open("name", sealed(payload, claimed))


def test_contents_longer_than_they_may_be_are_not_decompressed() -> None:
    data = ObjectCodec(DISK, compress=True).seal("name", bytes(1 << 20))
    assert len(ObjectCodec(DISK).open("name", data, longest=1 << 20)) == 1 << 20
    with pytest.raises(StorageError, match="it has 1048576 bytes"):
        ObjectCodec(DISK).open("name", data, longest=1 << 19)


@pytest.mark.parametrize("chunks", [MAX_CHUNKS, MAX_CHUNKS + 1])
def test_map_has_at_most_as_many_chunks_as_a_disk(chunks: int) -> None:
    data = DiskState(1 << 40, array("Q", bytes(8 * chunks))).encode(4096)
    if chunks == MAX_CHUNKS:
        assert len(read_state(memoryview(data), "map", 4096).chunks) == chunks
    else:
        with pytest.raises(StorageError, match="map is damaged"):
            read_state(memoryview(data), "map", 4096)


@pytest.mark.parametrize(
    "change",
    [
        {"origins": None},
        {"origins": [{"path": "a"}]},
        {"size": "large"},
        {"size": 4095},
        {"chunk_size": 0},
        {"chunk_size": 1 << 40},
        {"disk": "no digits"},
        {"disk": "00"},
        {"block_size": None},
        {"colour": "red"},
        {"key_check": "no digits"},
        {"key_check": 7},
    ],
)
async def test_manifest_that_is_damaged_is_refused(change: dict[str, Any]) -> None:
    bucket = Bucket()
    await create(bucket.client(), "disk", size=1 << 20, key=KEY)
    fields = json.loads(bucket.objects["disk/disk.json"]) | change
    bucket.objects["disk/disk.json"] = json.dumps(fields).encode()
    with pytest.raises(StorageError) as caught:
        await ObjectStoreDevice.open(bucket.client(), "disk", key=KEY)
    assert caught.value.errno in (errno.EIO, errno.EACCES)


@pytest.mark.parametrize("missing", ["origins", "size", "disk"])
async def test_manifest_in_which_something_is_missing_is_refused(missing: str) -> None:
    bucket = Bucket()
    await create(bucket.client(), "disk", size=1 << 20)
    fields = json.loads(bucket.objects["disk/disk.json"])
    del fields[missing]
    bucket.objects["disk/disk.json"] = json.dumps(fields).encode()
    with pytest.raises(StorageError, match=r"disk\.json is damaged"):
        await ObjectStoreDevice.open(bucket.client(), "disk")


# Sessions: keys that are used for a bounded number of objects


def salt_of(data: bytes) -> bytes:
    return data[16:32]


def test_each_codec_encrypts_under_a_key_of_its_own() -> None:
    first, second = ObjectCodec(DISK, key=KEY), ObjectCodec(DISK, key=KEY)
    sealed_by_first, sealed_by_second = first.seal("name", b"a"), second.seal("name", b"b")
    assert salt_of(sealed_by_first) != salt_of(sealed_by_second)
    assert bytes(first.open("name", sealed_by_second)) == b"b"
    assert bytes(second.open("name", sealed_by_first)) == b"a"


def test_key_is_replaced_after_a_number_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovblk.storage.objects.codec.SESSION_OBJECTS", 3)
    codec = ObjectCodec(DISK, key=KEY)
    objects = [codec.seal("name", bytes([number])) for number in range(10)]
    salts = [salt_of(each) for each in objects]
    assert [salts.count(salt) for salt in dict.fromkeys(salts)] == [3, 3, 3, 1]
    other = ObjectCodec(DISK, key=KEY)
    assert [bytes(other.open("name", each)) for each in objects] == [bytes([n]) for n in range(10)]


def test_keys_of_many_sessions_are_not_all_kept() -> None:
    codec = ObjectCodec(DISK, key=KEY)
    objects = [ObjectCodec(DISK, key=KEY).seal("name", bytes([number])) for number in range(100)]
    for _ in range(2):
        assert [bytes(codec.open("name", each)) for each in objects] == [
            bytes([number]) for number in range(100)
        ]
    assert len(codec._known) == 64


def test_object_of_an_earlier_version_is_under_the_key_of_the_disk() -> None:
    data = ObjectCodec(DISK, key=KEY, sessions=False).seal("name", b"contents")
    assert len(data) == 16 + 12 + 8 + 16
    assert bytes(ObjectCodec(DISK, key=KEY).open("name", data)) == b"contents"
    with pytest.raises(StorageError, match="cannot be decrypted"):
        ObjectCodec(DISK, key=bytes(32)).open("name", data)
