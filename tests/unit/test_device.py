from __future__ import annotations

import asyncio
import errno
import os

import pytest

from aiovblk import BlockDevice
from aiovblk.dispatch import transmission_flags
from aiovblk.protocol import TransmissionFlag as Flag

PAGE = os.sysconf("SC_PAGE_SIZE")


class Readable(BlockDevice):
    blocks = 8

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


class Writable(Readable):
    async def write(self, offset: int, data: memoryview) -> None:
        pass


class Flushable(Writable):
    async def flush(self) -> None:
        pass


class Trimmable(Writable):
    async def trim(self, offset: int, length: int) -> None:
        pass


class Zeroable(Writable):
    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        pass


class Rotating(Writable):
    rotational = True


class WritableByName(Readable):
    read_only = False


class ReadOnlyByName(Writable):
    read_only = True


class ReadOnlyByProperty(Writable):
    @property
    def read_only(self) -> bool:
        return self.blocks == 8

    @read_only.setter
    def read_only(self, value: bool) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (BlockDevice, Flag.READ_ONLY),
        (Readable, Flag.READ_ONLY),
        (Writable, Flag(0)),
        (Flushable, Flag.SEND_FLUSH | Flag.SEND_FUA),
        (Trimmable, Flag.SEND_TRIM),
        (Zeroable, Flag.SEND_WRITE_ZEROES),
        (Rotating, Flag.ROTATIONAL),
        (WritableByName, Flag(0)),
        (ReadOnlyByName, Flag.READ_ONLY),
        (ReadOnlyByProperty, Flag.READ_ONLY),
    ],
)
def test_transmission_flags_follow_from_the_class(kind: type[BlockDevice], flags: Flag) -> None:
    assert transmission_flags(kind()) == Flag.HAS_FLAGS | flags


def test_handler_of_a_mixin_counts() -> None:
    class FlushMixin:
        async def flush(self) -> None:
            pass

    class Device(FlushMixin, Writable):
        pass

    assert Flag.SEND_FLUSH in transmission_flags(Device())


def test_handler_of_one_object_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def write(offset: int, data: memoryview) -> None:
        pass

    device = Readable()
    monkeypatch.setattr(device, "write", write)
    assert Flag.READ_ONLY not in transmission_flags(device)


def test_handler_that_is_switched_back_to_the_default_does_not_count() -> None:
    class Device(Flushable):
        flush = BlockDevice.flush

    assert Flag.SEND_FLUSH not in transmission_flags(Device())


@pytest.mark.parametrize("kind", [Readable, Writable, WritableByName, ReadOnlyByName])
@pytest.mark.parametrize("value", [True, False])
def test_read_only_of_an_object_wins(kind: type[BlockDevice], value: bool) -> None:
    device = kind()
    device.read_only = value
    assert device.read_only is value
    assert (Flag.READ_ONLY in transmission_flags(device)) is value
    assert kind().read_only is kind.__dict__.get("read_only", kind is Readable)


def test_read_only_property_may_change_its_mind() -> None:
    device = ReadOnlyByProperty()
    device.blocks = 9
    assert not device.read_only


def test_size_follows_from_the_geometry() -> None:
    device = Readable()
    assert device.size == 8 * 4096
    device.block_size, device.blocks = 512, 5
    assert device.size == 2560


async def test_default_read_and_write_are_not_permitted() -> None:
    device = BlockDevice()
    with pytest.raises(PermissionError) as caught:
        await device.read(0, 4096)
    assert caught.value.errno == errno.EPERM
    with pytest.raises(PermissionError) as caught:
        await device.write(0, memoryview(bytes(4096)))
    assert caught.value.errno == errno.EPERM


async def test_default_write_zeroes_is_not_permitted_without_write() -> None:
    with pytest.raises(PermissionError):
        await BlockDevice().write_zeroes(0, 4096, may_trim=True)


async def test_default_flush_trim_and_unmount_do_nothing() -> None:
    device = BlockDevice()
    await device.flush()
    await device.trim(0, 4096)
    await device.unmount()


async def test_zeroes_of_the_default_write_zeroes_cannot_be_spoilt() -> None:
    class Device(BlockDevice):
        async def write(self, offset: int, data: memoryview) -> None:
            assert data.readonly

    await Device().write_zeroes(0, 4096, may_trim=False)


async def test_default_write_zeroes_leaves_others_their_time_between_two_pieces() -> None:
    events: list[str] = []

    class Device(BlockDevice):
        async def write(self, offset: int, data: memoryview) -> None:
            events.append("write")

    zeroing = asyncio.create_task(Device().write_zeroes(0, 3 << 20, may_trim=True))
    while not zeroing.done():
        await asyncio.sleep(0)
        events.append("other")
    assert [*dict.fromkeys(enumerate(events[:4]))] == [*enumerate(["write", "other"] * 2)]
