"""RemoteDevice: its attributes, and the requests that its handlers send."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from aiovblk.device import Operation, can
from aiovblk.protocol import Command, ReplyMode, TransmissionFlag

from ...support.scripted_server import ALL_FLAGS, remote_of


async def test_device_has_the_attributes_that_the_server_sends() -> None:
    flags = ALL_FLAGS | TransmissionFlag.ROTATIONAL
    sizes = 512, 65536, 1 << 20
    async with remote_of(size=1 << 30, flags=flags, block_sizes=sizes, description="a disk") as (
        remote,
        _,
    ):
        assert (remote.size, remote.block_size, remote.blocks) == (1 << 30, 512, 1 << 21)
        assert remote.rotational
        assert not remote.read_only
        assert remote.description == "a disk"
        assert remote.uri.startswith("nbd+unix:///?socket=")
        assert remote.uri in repr(remote)
        assert remote.connections == 1
        info = remote.info
        assert (info.minimum_block, info.preferred_block, info.maximum_payload) == sizes


@pytest.mark.parametrize(
    ("size", "smallest", "block_size", "blocks"),
    [
        (1 << 20, 1, 512, 2048),
        (1 << 20, 512, 512, 2048),
        (1 << 20, 4096, 4096, 256),
        (1 << 20, 8192, 8192, 128),
        (1 << 20, 65536, 65536, 16),
        (4096 + 512, 1, 512, 9),
        (4096 + 2048, 1, 512, 12),
        (1000, 1, 8, 125),
        (1001, 1, 1, 1001),
        (1001, 512, 512, 1),
        (0, 1, 512, 0),
        (2**63 - 4096, 1, 512, 2**54 - 8),
    ],
)
async def test_block_divides_the_size(
    size: int, smallest: int, block_size: int, blocks: int
) -> None:
    sizes = smallest, max(smallest, 4096), 1 << 20
    async with remote_of(size=size, block_sizes=sizes) as (remote, _):
        assert (remote.block_size, remote.blocks) == (block_size, blocks)


HANDLERS: set[Operation] = {"write", "flush", "trim", "write_zeroes", "extents", "cache"}


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({}, set()),
        ({"flags": 1}, {"flush", "trim", "write_zeroes", "cache"}),
        ({"flags": ALL_FLAGS & ~TransmissionFlag.SEND_FLUSH}, {"flush"}),
        ({"flags": ALL_FLAGS & ~TransmissionFlag.SEND_TRIM}, {"trim"}),
        ({"flags": ALL_FLAGS & ~TransmissionFlag.SEND_WRITE_ZEROES}, {"write_zeroes"}),
        ({"flags": ALL_FLAGS & ~TransmissionFlag.SEND_CACHE}, {"cache"}),
        ({"flags": ALL_FLAGS | TransmissionFlag.READ_ONLY}, {"write", "trim", "write_zeroes"}),
        ({"allocation": False}, {"extents"}),
        ({"mode": ReplyMode.SIMPLE}, {"extents"}),
    ],
)
async def test_device_overrides_what_the_server_supports(
    fields: dict[str, Any], missing: set[str]
) -> None:
    async with remote_of(**fields) as (remote, _):
        lacks = {name for name in HANDLERS if not can(remote, name)}
        assert lacks == missing
        assert remote.read_only == ("write" in missing)


async def test_what_the_server_does_not_support_is_as_in_the_base_class() -> None:
    flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.READ_ONLY
    async with remote_of(flags=flags) as (remote, _):
        await remote.flush()
        await remote.trim(0, 4096)
        with pytest.raises(PermissionError):
            await remote.write(0, b"x")
        with pytest.raises(PermissionError):
            await remote.write_zeroes(0, 4096, may_trim=True)


async def test_zeroes_are_written_where_the_server_has_no_command_for_it() -> None:
    async with remote_of(flags=1) as (remote, peer):
        zeroing = asyncio.ensure_future(remote.write_zeroes(4096, 8192, may_trim=True))
        request = await peer.request()
        assert (request.type, request.offset) == (Command.WRITE, 4096)
        assert peer.data[request.cookie] == bytes(8192)
        peer.succeed(request)
        await zeroing


# Pieces


async def test_read_beyond_the_servers_limit_is_made_of_pieces_in_flight_together() -> None:
    async with remote_of(block_sizes=(1, 4096, 10_000)) as (remote, peer):
        reading = asyncio.ensure_future(remote.read(4096, 20480))
        requests = await peer.requests(3)
        assert [(r.offset, r.length) for r in requests] == [
            (4096, 8192),
            (12288, 8192),
            (20480, 4096),
        ]
        peer.part(requests[2], 20480, 4096 * b"c", done=True)
        peer.hole(requests[0], 4096, 8192, done=True)
        peer.part(requests[1], 12288, 4096 * b"a")
        peer.part(requests[1], 16384, 4096 * b"b", done=True)
        result = await reading
        assert result == 8192 * b"\0" + 4096 * b"a" + 4096 * b"b" + 4096 * b"c"
        assert result.readonly


async def test_write_beyond_the_servers_limit_is_made_of_pieces_in_flight_together() -> None:
    async with remote_of(block_sizes=(1, 4096, 8192)) as (remote, peer):
        data = b"".join(bytes([n]) * 4096 for n in range(5))
        writing = asyncio.ensure_future(remote.write(0, data))
        requests = await peer.requests(3)
        assert [r.offset for r in requests] == [0, 8192, 16384]
        assert b"".join(peer.data[r.cookie] for r in requests) == data
        for request in reversed(requests):
            peer.succeed(request)
        await writing


async def test_failure_of_a_piece_is_raised_when_all_have_ended() -> None:
    async with remote_of(block_sizes=(1, 4096, 4096)) as (remote, peer):
        writing = asyncio.ensure_future(remote.write(0, bytes(8192)))
        first, second = await peer.requests(2)
        peer.fail(first, errno.ENOSPC)
        other = asyncio.ensure_future(remote.read(0, 1))
        peer.succeed(await peer.request(), b"x")
        await other
        assert not writing.done()
        peer.succeed(second)
        with pytest.raises(OSError, match="No space left"):
            await writing


@pytest.mark.parametrize(
    ("smallest", "largest", "longest"),
    [(1, 4096, 4096), (1, 1000, 512), (512, 1000, 512), (1, 4097, 4096), (65536, 70000, 65536)],
)
async def test_pieces_are_whole_blocks(smallest: int, largest: int, longest: int) -> None:
    sizes = smallest, largest, largest
    async with remote_of(block_sizes=sizes, size=1 << 20) as (remote, peer):
        writing = asyncio.ensure_future(remote.write(0, bytes(longest + smallest)))
        requests = await peer.requests(2)
        assert [r.length for r in requests] == [longest, smallest]
        for each in requests:
            peer.succeed(each)
        await writing


async def test_ranges_beyond_32_bits_are_split() -> None:
    async with remote_of(size=1 << 40) as (remote, peer):
        for call in (
            remote.trim(4096, 1 << 33),
            remote.cache(4096, 1 << 33),
            remote.write_zeroes(4096, 1 << 33, may_trim=True),
        ):
            task = asyncio.ensure_future(call)
            pieces = []
            for _ in range(3):
                request = await peer.request()
                pieces.append((request.offset, request.length))
                peer.succeed(request)
            await task
            longest = 2**32 - 2**16
            assert pieces == [
                (4096, longest),
                (4096 + longest, longest),
                (4096 + 2 * longest, 2**17),
            ]


async def test_ranges_need_no_pieces_with_extended_headers() -> None:
    async with remote_of(size=1 << 40, mode=ReplyMode.EXTENDED) as (remote, peer):
        trimming = asyncio.ensure_future(remote.trim(0, 1 << 40))
        request = await peer.request()
        assert request.length == 1 << 40
        peer.succeed(request)
        await trimming


async def test_empty_ranges_send_no_request() -> None:
    async with remote_of() as (remote, _):
        assert bytes(await remote.read(0, 0)) == b""
        await remote.write(0, b"")
        await remote.trim(0, 0)
