"""Exports: names, descriptions, read-only, block sizes; and devices that a factory makes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aiovblk import BlockDevice, Export, ProtocolError, connect
from aiovblk.protocol import ClientHandshake, Option, OptionReply, ReplyMode
from aiovblk.protocol.options import serialize_info_request
from aiovblk.storage import MemoryDevice

from ...support.network_client import MIB, LoggingDevice, connected, serve, until_left, using


class Geometry(BlockDevice):
    def __init__(self, block_size: int, blocks: int) -> None:
        self.block_size, self.blocks = block_size, blocks


def uri(path: Path, name: str = "") -> str:
    return f"nbd+unix:///{name}?socket={path}"


async def test_each_name_is_another_device(path: Path) -> None:
    exports = {"a": MemoryDevice(MIB), "b": MemoryDevice(2 * MIB), "ü/ b": MemoryDevice(3 * MIB)}
    async with serve(exports, unix=path) as server:
        for number, each in enumerate(server.uris, 1):
            async with connect(each) as remote:
                assert remote.size == number * MIB


async def test_only_export_is_the_default_one_whatever_its_name(path: Path) -> None:
    async with serve({"disk": MemoryDevice(MIB)}, unix=path), connect(uri(path)) as remote:
        assert remote.size == MIB


async def test_there_is_no_default_among_several(path: Path) -> None:
    async with serve({"a": MemoryDevice(MIB), "b": MemoryDevice(MIB)}, unix=path):
        with pytest.raises(ProtocolError, match="there is no such export"):
            async with connect(uri(path)):
                pass


async def test_description_is_sent_and_listed(path: Path) -> None:
    exports: dict[str, Any] = {
        "disk": Export(MemoryDevice(MIB), "a disk, für alle"),
        "plain": MemoryDevice(MIB),
    }
    async with serve(exports, unix=path):
        async with connect(uri(path, "disk")) as remote:
            assert remote.description == "a disk, für alle"
        async with connected(path) as client:
            await client.greet()
            replies = await client.ask(Option.LIST)
    assert replies == [
        (OptionReply.SERVER, b"\0\0\0\4disk" + "a disk, für alle".encode()),
        (OptionReply.SERVER, b"\0\0\0\5plain"),
        (OptionReply.ACK, b""),
    ]


async def test_read_only_export_refuses_writes_to_a_writable_device(path: Path) -> None:
    device = LoggingDevice()
    exports: dict[str, Any] = {"free": device, "locked": Export(device, read_only=True)}
    async with serve(exports, unix=path):
        async with connect(uri(path, "free")) as remote:
            assert not remote.read_only
            await remote.write(0, b"\1" * 512)
        async with connect(uri(path, "locked")) as remote:
            assert remote.read_only
            with pytest.raises(PermissionError):
                await remote.write(0, bytes(512))
            assert await remote.read(0, 512) == b"\1" * 512
    # Two names, but one device, which is closed once.
    assert device.events == ["write", "flush", "unmount"]


async def test_parts_of_a_block_are_safe_by_whatever_name(path: Path) -> None:
    class Slow(MemoryDevice):
        async def write(self, offset: int, data: memoryview) -> None:
            await asyncio.sleep(0)
            await super().write(offset, data)

    device = Slow(MIB)
    async with (
        serve({"a": device, "b": device}, unix=path),
        connect(uri(path, "a")) as first,
        connect(uri(path, "b")) as second,
    ):
        both = (first, second)
        writes = [both[at % 2].write(at, bytes([at])) for at in range(1, 200)]
        await asyncio.gather(*writes)
        assert await first.read(0, 200) == bytes(range(200))


@pytest.mark.parametrize("mode", ReplyMode)
@pytest.mark.parametrize("allocation", [False, True])
async def test_client_gets_all_replies_in_each_mode(
    path: Path, mode: ReplyMode, allocation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def modest(name: str, **options: Any) -> ClientHandshake:
        return ClientHandshake(name, mode=mode, allocation=allocation, **options)

    monkeypatch.setattr("aiovblk.client.dialing.ClientHandshake", modest)
    async with serve(MemoryDevice(4 * MIB), unix=path), connect(uri(path)) as remote:
        assert remote._session.negotiated.mode is mode
        await remote.write(MIB, b"\1" * MIB)
        assert await remote.read(0, 4 * MIB) == bytes(MIB) + b"\1" * MIB + bytes(2 * MIB)
        await remote.write_zeroes(MIB, MIB // 2, may_trim=True)
        await remote.trim(0, MIB)
        extents = await remote.extents(0, 4 * MIB)
        holes = allocation and mode is not ReplyMode.SIMPLE
        assert [extent.length for extent in extents] == (
            [3 * MIB // 2, MIB // 2, 2 * MIB] if holes else [4 * MIB]
        )


# Devices of one client


@pytest.mark.parametrize("is_async", [False, True])
async def test_factory_makes_a_device_for_each_client_and_it_is_closed_with_it(
    path: Path, is_async: bool
) -> None:
    made: list[LoggingDevice] = []

    def make() -> LoggingDevice:
        made.append(LoggingDevice())
        return made[-1]

    async def make_later() -> LoggingDevice:
        await asyncio.sleep(0)
        return make()

    async with serve({"own": make_later if is_async else make}, unix=path) as server:
        async with using(path) as one, using(path) as other:
            await one.write(0, b"\1" * 512)
            assert await other.read(0, 512) == bytes(512)
            assert [device.events for device in made] == [["write"], []]
        await until_left(server)
        assert [device.events for device in made] == [
            ["write", "flush", "unmount"],
            ["flush", "unmount"],
        ]


async def test_factory_is_called_once_for_a_client_that_asks_twice(path: Path) -> None:
    made: list[LoggingDevice] = []

    def make() -> LoggingDevice:
        made.append(LoggingDevice())
        return made[-1]

    async with serve({"own": make}, unix=path) as server:
        async with connected(path) as client:
            await client.greet()
            for _ in range(2):
                replies = await client.ask(Option.INFO, serialize_info_request("own", []))
                assert replies[-1][0] == OptionReply.ACK
            await client.go("own")
        await until_left(server)
    assert [device.events for device in made] == [["flush", "unmount"]]


@pytest.mark.parametrize("failure", ["raises", "no device", "no geometry"])
async def test_factory_that_fails_is_logged_and_its_export_is_unknown(
    path: Path, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> Any:
        if failure == "raises":
            raise RuntimeError("out of disks")
        return "a string" if failure == "no device" else Geometry(3, 1)

    exports: dict[str, Any] = {"own": make, "disk": MemoryDevice(MIB)}
    async with serve(exports, unix=path), connected(path) as client:
        await client.greet()
        [(reply, _)] = await client.ask(Option.GO, serialize_info_request("own", []))
        assert reply == OptionReply.ERR_UNKNOWN
        await client.go("disk")
    expected = {
        "raises": "RuntimeError: out of disks",
        "no device": "TypeError: expected a BlockDevice, got 'a string'",
        "no geometry": "ValueError: block_size must be a power of two",
    }
    assert "export 'own': opening it failed" in caplog.text
    assert expected[failure] in caplog.text


async def test_failing_flush_of_a_clients_own_device_is_logged_and_nothing_more(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(LoggingDevice):
        async def flush(self) -> None:
            raise OSError("the disk is on fire")

    device = Failing()
    async with serve(lambda: device, unix=path) as server:
        async with using(path):
            pass
        await until_left(server)
    assert device.events == ["unmount"]
    (record,) = caplog.records
    assert record.getMessage().endswith("Failing.flush() failed: OSError: the disk is on fire")
    assert record.exc_info is None  # an outage is one line


async def test_flush_with_a_bug_is_logged_with_its_traceback(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(LoggingDevice):
        async def flush(self) -> None:
            raise ValueError("a bug")

    async with serve(lambda: Wrong(), unix=path) as server:
        async with using(path):
            pass
        await until_left(server)
    (record,) = caplog.records
    assert record.getMessage().endswith("Wrong.flush() failed: ValueError: a bug")
    assert record.exc_info is not None


# Invalid options


@pytest.mark.parametrize(
    ("exports", "error", "reason"),
    [
        ({}, ValueError, "exports is empty"),
        ({1: MemoryDevice(MIB)}, TypeError, "the name of an export must be a str, not 1"),
        ({"x" * 4097: MemoryDevice(MIB)}, ValueError, "has at most 4096 bytes, not 4097"),
        ({"ü" * 2049: MemoryDevice(MIB)}, ValueError, "has at most 4096 bytes, not 4098"),
        ({"a": "disk.img"}, TypeError, "expected a BlockDevice, got 'disk.img'"),
        (None, TypeError, "expected a BlockDevice, got None"),
        (MemoryDevice, TypeError, "export '' is the class MemoryDevice: make an instance of it"),
        ({"a": Geometry(131072, 1)}, ValueError, "power of two from 1 to 65536, not 131072"),
        ({"a": Geometry(3, 1)}, ValueError, "power of two"),
        ({"a": Geometry(512, 0)}, ValueError, "blocks must be at least 1"),
    ],
)
async def test_invalid_export_is_refused(
    path: Path, exports: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        async with serve(exports, unix=path):
            pass
    assert not path.exists()


async def test_tls_that_is_no_context_is_refused(path: Path) -> None:
    wrong: Any = True
    with pytest.raises(TypeError, match=r"tls must be an ssl\.SSLContext .* not True"):
        async with serve(MemoryDevice(MIB), unix=path, tls=wrong):
            pass
    assert not path.exists()


def test_description_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="a description has at most 4096 bytes, not 4097"):
        Export(MemoryDevice(MIB), "x" * 4097)


@pytest.mark.parametrize(
    "option",
    [
        "max_connections",
        "handshake_timeout",
        "drain_timeout",
        "concurrency",
        "handler_timeout",
        "connection_memory",
        "memory",
    ],
)
async def test_number_that_is_not_positive_is_refused(path: Path, option: str) -> None:
    number: dict[str, Any] = {option: 0}
    with pytest.raises(ValueError, match=f"{option} must be .*, not 0"):
        async with serve(MemoryDevice(MIB), unix=path, **number):
            pass


@pytest.mark.parametrize("block_size", [1, 512, 65536])
async def test_network_takes_blocks_that_the_kernel_does_not(path: Path, block_size: int) -> None:
    device = MemoryDevice(MIB, block_size=block_size)
    async with serve(device, unix=path), using(path) as client:
        await client.write(0, b"\1" * block_size)
        assert await client.read(0, block_size) == b"\1" * block_size
