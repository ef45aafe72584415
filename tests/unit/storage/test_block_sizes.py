"""Block sizes of devices, those announced to clients, and the BlockSize layer."""

from __future__ import annotations

import asyncio
import os
import random
from functools import partial
from pathlib import Path

import pytest

from aiovblk import BlockDevice, Export, Extent, connect
from aiovblk.device import missing_operations
from aiovblk.protocol import MAX_PAYLOAD, Info, Option, TransmissionFlag
from aiovblk.protocol.options import INFO_BLOCK_SIZE, serialize_info_request
from aiovblk.server.exports import OpenDevice, open_device, open_shared
from aiovblk.storage import BlockSize, FileDevice, MemoryDevice

from ...support.network_client import connected, serve
from ...support.recording_device import Recorder

MIB = 1 << 20
MULTI_CONN = TransmissionFlag.CAN_MULTI_CONN


class OneDisk(MemoryDevice):
    """A disk of which all instances are the same disk (multi_conn)."""

    multi_conn = True


async def opened(export: Export) -> OpenDevice:
    if isinstance(export.device, BlockDevice):
        return open_shared({"": export})[""]
    return await open_device("", export)


# Block sizes that are announced to clients


@pytest.mark.parametrize("block_size", [1, 512, 4096, 65536])
async def test_minimum_of_a_device_that_all_share_is_a_byte_and_preferred_its_block(
    block_size: int,
) -> None:
    info = (await opened(Export(MemoryDevice(MIB, block_size=block_size)))).info
    assert (info.minimum_block, info.preferred_block) == (1, max(block_size, 4096))
    assert MULTI_CONN in info.flags


@pytest.mark.parametrize("block_size", [1, 512, 4096])
async def test_minimum_of_a_device_for_each_client_is_a_byte_without_multi_conn(
    block_size: int,
) -> None:
    info = (await opened(Export(lambda: MemoryDevice(MIB, block_size=block_size)))).info
    assert (info.minimum_block, MULTI_CONN in info.flags) == (1, False)


@pytest.mark.parametrize(
    ("block_size", "minimum", "multi_conn"), [(1, 1, True), (512, 512, True), (4096, 4096, False)]
)
async def test_minimum_is_a_block_where_others_change_parts_of_it(
    block_size: int, minimum: int, multi_conn: bool
) -> None:
    info = (await opened(Export(lambda: OneDisk(MIB, block_size=block_size)))).info
    assert (info.minimum_block, MULTI_CONN in info.flags) == (minimum, multi_conn)


async def test_minimum_is_a_byte_for_a_read_only_device() -> None:
    own = Export(lambda: OneDisk(MIB, block_size=512), read_only=True)
    assert (await opened(own)).info.minimum_block == 1


async def test_device_of_several_servers_and_of_a_function_keeps_its_clients_apart() -> None:
    device = MemoryDevice(MIB, block_size=512)
    shared = [open_shared(exports) for exports in ({"": Export(device)}, {"x": Export(device)})]
    ways = {shared[0][""].adapter, shared[1]["x"].adapter}
    ways |= {(await opened(Export(lambda: device))).adapter for _ in range(2)}
    assert len(ways) == 1  # one adapter locks the parts of blocks for all clients


async def test_block_sizes_are_sent_to_a_client_that_requests_them(path: Path) -> None:
    async with serve(MemoryDevice(MIB), unix=path), connected(path) as client:
        await client.greet()
        request = serialize_info_request("", [Info.BLOCK_SIZE])
        replies = [data for _, data in await client.ask(Option.GO, request)]
        assert INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, 4096, MAX_PAYLOAD) in replies


async def test_each_byte_of_a_large_block_can_be_written_by_its_own_request(path: Path) -> None:
    device = MemoryDevice(64 * 1024, block_size=65536)
    async with serve(device, unix=path) as server, connect(server.uris[0]) as remote:
        assert remote.info.minimum_block == 1
        places = list(range(0, 2048, 7))
        await asyncio.gather(*(remote.write(at, bytes([at % 251])) for at in places))
        data = bytes(await remote.read(0, 2048))
        assert [data[at] for at in places] == [at % 251 for at in places]
        assert sum(map(bool, data)) == sum(bool(at % 251) for at in places)


# Block sizes of existing data


async def test_export_of_another_server_has_sectors_of_512_bytes(path: Path) -> None:
    async with serve(MemoryDevice(MIB), unix=path) as server, connect(server.uris[0]) as remote:
        assert remote.block_size == 512


async def test_export_has_the_larger_blocks_that_its_server_announces(path: Path) -> None:
    served = Export(partial(OneDisk, MIB))
    async with serve(served, unix=path) as server, connect(server.uris[0]) as remote:
        assert remote.block_size == 4096


@pytest.mark.parametrize("length", [MIB, MIB + 512, MIB + 4096])
async def test_file_has_sectors_of_512_bytes_whatever_its_length(
    tmp_path: Path, length: int
) -> None:
    device = FileDevice.create(tmp_path / "image", length)
    assert (device.block_size, device.size) == (512, length)
    await device.unmount()


# The layer BlockSize


async def noise(size: int, block_size: int) -> MemoryDevice:
    device = MemoryDevice(size, block_size=block_size)
    await device.write(0, memoryview(os.urandom(size)))
    return device


async def test_larger_blocks_forward_requests_unchanged() -> None:
    inner = Recorder()
    inner.block_size, inner.blocks = 512, 128
    device = BlockSize(inner, 4096)
    assert (device.block_size, device.blocks, device.size) == (4096, 16, inner.size)
    assert device.multi_conn == inner.multi_conn
    await device.read(4096, 8192)
    await device.write(0, memoryview(bytes(4096)))
    await device.trim(4096, 4096)
    await device.write_zeroes(8192, 4096, may_trim=True)
    await device.cache(0, 4096)
    await device.flush()
    assert inner.calls == [
        ("read", 4096, 8192),
        ("write", 0, bytes(4096)),
        ("trim", 4096, 4096),
        ("write_zeroes", 8192, 4096, True),
        ("cache", 0, 4096),
        ("flush",),
    ]


@pytest.mark.parametrize(
    ("found", "rounded"),
    [
        ([Extent(8192)], [Extent(8192)]),
        ([Extent(8192, zero=True)], [Extent(8192, zero=True)]),
        ([Extent(512, zero=True)] * 16, [Extent(8192)]),
        ([Extent(512), Extent(7680, hole=True)], [Extent(4096), Extent(4096, hole=True)]),
        ([Extent(4608, True, True), Extent(3584)], [Extent(4096, True, True), Extent(4096)]),
        ([Extent(512), Extent(512, True)], [Extent(4096)]),  # a partial answer
        ([Extent(4096, True), Extent(512, True)], [Extent(4096, True)]),
        ([Extent(20480, zero=True)], [Extent(20480, zero=True)]),
    ],
)
async def test_larger_block_that_is_zero_only_in_part_is_data(
    found: list[Extent], rounded: list[Extent]
) -> None:
    class Patchwork(MemoryDevice):
        async def extents(self, offset: int, length: int) -> list[Extent]:
            return found

    assert await BlockSize(Patchwork(1 << 20, block_size=512), 4096).extents(4096, 8192) == rounded


async def test_smaller_blocks_behave_as_those_of_a_device_that_has_them() -> None:
    inner, model = await noise(64 * 1024, 4096), bytearray(64 * 1024)
    model[:] = await inner.read(0, inner.size)
    device = BlockSize(inner, 512)
    assert (device.block_size, device.blocks) == (512, 128)
    at_random = random.Random(5)
    for number in range(300):
        offset = at_random.randrange(128) * 512
        length = min(at_random.randrange(1, 20) * 512, device.size - offset)
        match number % 3:
            case 0:
                data = at_random.randbytes(length)
                await device.write(offset, memoryview(data))
                model[offset : offset + length] = data
            case 1:
                await device.write_zeroes(offset, length, may_trim=True)
                model[offset : offset + length] = bytes(length)
            case _:
                assert bytes(await device.read(offset, length)) == model[offset : offset + length]
    assert bytes(await inner.read(0, inner.size)) == model


async def test_writes_to_parts_of_one_block_do_not_undo_each_other() -> None:
    class Slow(MemoryDevice):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            data = bytes(await super().read(offset, length))
            await asyncio.sleep(0)
            return data

    device = BlockSize(Slow(4096), 512)
    await asyncio.gather(
        *(device.write(at * 512, memoryview(bytes([at + 1]) * 512)) for at in range(8))
    )
    data = await device.read(0, 4096)
    assert bytes(data) == b"".join(bytes([at + 1]) * 512 for at in range(8))


def test_smaller_blocks_have_the_handlers_of_the_inner_device() -> None:
    class Bare(BlockDevice):
        blocks = 16

        async def read(self, offset: int, length: int) -> bytes:
            return bytes(length)

    for block_size in (512, 4096, 8192):
        device = BlockSize(Bare(), block_size)
        assert device.read_only
        assert missing_operations(device) >= {"flush", "trim", "extents"}


def test_smaller_blocks_are_not_shared_by_processes_that_write() -> None:
    assert not BlockSize(OneDisk(MIB), 512).multi_conn
    assert BlockSize(OneDisk(MIB), 8192).multi_conn
    device = OneDisk(MIB)
    device.read_only = True
    assert BlockSize(device, 512).multi_conn


@pytest.mark.parametrize(
    ("block_size", "message"),
    [
        (0, "must be a power of two from 1 to 65536, not 0"),
        (3, "must be a power of two from 1 to 65536, not 3"),
        (-512, "must be a power of two"),
        (1 << 17, "must be a power of two"),
        (8192, "has 12288 bytes, no multiple of a block_size of 8192"),
    ],
)
def test_invalid_block_size_is_refused(block_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockSize(MemoryDevice(12288), block_size)


async def test_resize_goes_to_the_inner_device_in_its_blocks() -> None:
    class Resizable(MemoryDevice):
        pass

    device = BlockSize(Resizable(MIB), 512)
    device.blocks = 128
    assert (device.inner.blocks, device.size) == (16, 65536)
    with pytest.raises(ValueError, match="no multiple of the inner device's 4096"):
        device.blocks = 129
