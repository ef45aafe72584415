"""Each way to break the contract is caught and described: no check is useless.

Longer than other files: a list of small devices, one for each way, and the test that runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from aiovblk import BlockDevice, Extent
from aiovblk.storage import Layer, MemoryDevice
from aiovblk.testing import CheckFailed, CrashableDisk, check_block_device

pytestmark = pytest.mark.slow

SIZE = 256 * 1024
BLOCK = 4096
CHUNK = 8 * BLOCK


class Broken(Layer):
    """A device in one process's memory, above a medium that does all right.

    What is kept in ``shared`` outlives it, as something that is stored does.
    """

    def __init__(self, inner: BlockDevice, shared: dict[Any, Any]) -> None:
        super().__init__(inner)
        self.shared = shared


class ForgetsInCrash(Broken):
    """Acknowledges a flush that it has not made."""

    async def flush(self) -> None:
        pass


class IsNotWriteThrough(Broken):
    """Has no flush, by which it says that writes are durable when they return."""

    flush = BlockDevice.flush


class FlushesTooEarly(Broken):
    """Has its flush cover what was written before another flush began, which is still at it."""

    running: asyncio.Task[None] | None = None

    async def flush(self) -> None:
        if self.running is None or self.running.done():
            self.running = asyncio.ensure_future(self.slowly())
        await asyncio.shield(self.running)

    async def slowly(self) -> None:
        with contextlib.suppress(OSError):  # the power has failed meanwhile
            await self.inner.flush()
        for _ in range(15):
            await asyncio.sleep(0)


class FlushesNotZeroes(Broken):
    """Has zeroes in memory until it is unmounted."""

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        for block in range(offset, offset + length, BLOCK):
            self.shared[self, block] = True

    async def write(self, offset: int, data: memoryview) -> None:
        await self.inner.write(offset, data)
        for block in range(offset, offset + len(data), BLOCK):
            self.shared.pop((self, block), None)

    async def read(self, offset: int, length: int) -> bytes:
        data = bytearray(await self.inner.read(offset, length))
        for block in range(offset, offset + length, BLOCK):
            if (self, block) in self.shared:
                data[block - offset : block - offset + BLOCK] = bytes(BLOCK)
        return bytes(data)

    async def unmount(self) -> None:
        for owner, block in self.shared:
            if owner is self:
                await self.inner.write_zeroes(block, BLOCK, may_trim=False)
        await self.inner.flush()
        await self.inner.unmount()


class ForgetsAtUnmount(FlushesNotZeroes):
    async def unmount(self) -> None:
        await self.inner.unmount()


class KeepsData(Broken):
    """Takes the memory that it was lent for its own."""

    trim = BlockDevice.trim
    write_zeroes = BlockDevice.write_zeroes
    extents = BlockDevice.extents
    flush = BlockDevice.flush

    async def write(self, offset: int, data: memoryview) -> None:
        for at in range(0, len(data), BLOCK):
            self.shared[offset + at] = data[at : at + BLOCK]

    async def read(self, offset: int, length: int) -> bytes:
        blocks = range(offset, offset + length, BLOCK)
        return b"".join(self.shared.get(block, bytes(BLOCK)) for block in blocks)


class ReusesResults(Broken):
    """Reads into a buffer that the next read overwrites, though it promised not to."""

    def __init__(self, inner: BlockDevice, shared: dict[Any, Any]) -> None:
        super().__init__(inner, shared)
        self.buffer = bytearray(SIZE)

    async def read(self, offset: int, length: int) -> memoryview:
        data = await self.inner.read(offset, length)
        self.buffer[:length] = data
        return memoryview(self.buffer)[:length].toreadonly()


class ReadsShort(Broken):
    async def read(self, offset: int, length: int) -> Any:
        data = await self.inner.read(offset, length)
        return data[: 7 * BLOCK] if length > 8 * BLOCK else data


class ReadsWhatIsNoBytes(Broken):
    async def read(self, offset: int, length: int) -> Any:
        return list(await self.inner.read(offset, length))


class ReadsEverySecondByte(Broken):
    async def read(self, offset: int, length: int) -> Any:
        await self.inner.read(offset, length)
        return memoryview(bytes(2 * length))[::2]


class WritesInChunks(Broken):
    """A read-modify-write cycle of more than a block, which others may come between."""

    async def write(self, offset: int, data: memoryview) -> None:
        begin, end = offset // CHUNK * CHUNK, -(-(offset + len(data)) // CHUNK) * CHUNK
        chunk = bytearray(await self.inner.read(begin, end - begin))
        chunk[offset - begin : offset - begin + len(data)] = data
        await self.inner.write(begin, memoryview(chunk))


class WritesTornBlocks(Broken):
    """Stores halves of blocks, so that of two writes at once each may leave one."""

    async def write(self, offset: int, data: memoryview) -> None:
        mine = bytes(data)
        for half in (0, BLOCK // 2):
            await asyncio.sleep(0)
            old = bytearray(await MemoryDevice.read(self.memory, offset, len(mine)))
            for at in range(half, len(mine), BLOCK):
                old[at : at + BLOCK // 2] = mine[at : at + BLOCK // 2]
            await MemoryDevice.write(self.memory, offset, memoryview(old))

    async def read(self, offset: int, length: int) -> Any:
        return await self.memory.read(offset, length)

    @property
    def memory(self) -> MemoryDevice:
        memory: MemoryDevice = self.shared.setdefault("memory", MemoryDevice(SIZE))
        return memory

    trim = BlockDevice.trim
    write_zeroes = BlockDevice.write_zeroes
    extents = BlockDevice.extents


class ZeroesAreNot(Broken):
    """Trims in place of zeroing where it may."""

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        if may_trim:
            await self.inner.trim(offset, length)
        else:
            await self.inner.write_zeroes(offset, length, may_trim=may_trim)


class ExtentsLie(Broken):
    """Takes what is zero at the beginning for zero as a whole."""

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        first = (await self.inner.extents(offset, length))[0]
        return [Extent(length, hole=first.hole, zero=first.zero)]


class TrimmedAreNotZeroes(Broken):
    """Says of what was trimmed that it reads as zeroes."""

    async def trim(self, offset: int, length: int) -> None:
        await self.inner.trim(offset, length)
        for block in range(offset, offset + length, BLOCK):
            self.shared[block] = True

    async def write(self, offset: int, data: memoryview) -> None:
        for block in range(offset, offset + len(data), BLOCK):
            self.shared.pop(block, None)
        await self.inner.write(offset, data)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        zero = offset in self.shared
        return [Extent(BLOCK, hole=zero, zero=zero)]


class NoExtents(Broken):
    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return []


class EmptyExtents(Broken):
    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return [Extent(0), Extent(length)]


class RaggedExtents(Broken):
    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return [Extent(BLOCK // 2), Extent(length - BLOCK // 2)]


class WrongExtents(Broken):
    async def extents(self, offset: int, length: int) -> Any:
        return [length]


class WrongOffset(Broken):
    """Loses the upper bits of where the end is."""

    async def write(self, offset: int, data: memoryview) -> None:
        await self.inner.write(offset % (SIZE // 2), data)


class TrimsTooMuch(Broken):
    async def trim(self, offset: int, length: int) -> None:
        begin = offset // CHUNK * CHUNK
        end = -(-(offset + length) // CHUNK) * CHUNK
        await self.inner.write_zeroes(begin, end - begin, may_trim=True)


class TrimsAfterTheFact(Broken):
    """Leaves it to a task to trim."""

    extents = BlockDevice.extents

    async def trim(self, offset: int, length: int) -> None:
        task = asyncio.ensure_future(self.later(offset, length))
        self.shared.setdefault("tasks", set()).add(task)

    async def later(self, offset: int, length: int) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        with contextlib.suppress(OSError):  # the device was closed meanwhile
            await self.inner.trim(offset, length)


class ReturnsTooEarly(Broken):
    """Writes when it has said that it did."""

    async def write(self, offset: int, data: memoryview) -> None:
        task = asyncio.ensure_future(self.inner.write(offset, memoryview(bytes(data))))
        self.shared.setdefault("tasks", set()).add(task)
        task.add_done_callback(lambda task: task.exception())


class CachesReads(Broken):
    """Never finds out that what it has read before was written since by a read under way."""

    async def read(self, offset: int, length: int) -> Any:
        if (offset, length) not in self.shared:
            self.shared[offset, length] = await self.inner.read(offset, length)
        return self.shared[offset, length]

    async def write(self, offset: int, data: memoryview) -> None:
        for cached in [each for each in self.shared if sum(each) > offset]:
            del self.shared[cached]
        await self.inner.write(offset, data)


class LeavesAWriteBehind(Broken):
    """A write that was cancelled goes on, and comes after others."""

    async def write(self, offset: int, data: memoryview) -> None:
        mine = bytes(data)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            task = asyncio.ensure_future(self.later(offset, mine))
            self.shared.setdefault("tasks", set()).add(task)
            raise
        await self.inner.write(offset, memoryview(mine))

    async def later(self, offset: int, data: bytes) -> None:
        for _ in range(12):
            await asyncio.sleep(0)
        with contextlib.suppress(OSError):  # the device was closed meanwhile
            await self.inner.write(offset, memoryview(data))


class CannotBeRunTwice(Broken):
    """Notes what it is about to write, and stumbles over what it finds there."""

    async def write(self, offset: int, data: memoryview) -> None:
        note = bytes(data)
        if note in self.shared:
            raise RuntimeError("written already")
        self.shared[note] = True
        await self.inner.write(offset, data)


class RaisesNoOSError(Broken):
    async def trim(self, offset: int, length: int) -> None:
        raise KeyError(offset)


class RaisesCancelledError(Broken):
    async def flush(self) -> None:
        raise asyncio.CancelledError


class NeverWrites(Broken):
    async def write(self, offset: int, data: memoryview) -> None:
        raise OSError(errno.ENOSPC, "full")


class NeverReads(Broken):
    async def read(self, offset: int, length: int) -> Any:
        raise OSError(errno.EIO, "nothing there")


class HangsAtTheEnd(Broken):
    async def write(self, offset: int, data: memoryview) -> None:
        if offset + len(data) == self.size:
            await asyncio.get_running_loop().create_future()
        await self.inner.write(offset, data)


class CannotUnmount(Broken):
    async def unmount(self) -> None:
        await self.inner.unmount()
        raise RuntimeError("not now")


class Grows(Broken):
    def __init__(self, inner: BlockDevice, shared: dict[Any, Any]) -> None:
        super().__init__(inner, shared)
        inner.blocks = SIZE // BLOCK - 4 + self.shared.setdefault("opened", 0)
        self.shared["opened"] += 1


class IsEmpty(Broken):
    blocks = 0


class HasOddBlocks(Broken):
    def __init__(self, inner: BlockDevice, shared: dict[Any, Any]) -> None:
        super().__init__(inner, shared)
        self.block_size = 3000


async def failure(kind: Callable[..., BlockDevice], seed: int) -> CheckFailed:
    medium = CrashableDisk(SIZE, BLOCK, seed)
    shared: dict[Any, Any] = {}
    with pytest.raises(CheckFailed) as caught:
        await check_block_device(
            lambda: kind(medium.open(), shared),
            crash=lambda device: medium.crash(),
            seed=seed,
            timeout=1 if kind is HangsAtTheEnd else 60,
        )
    return caught.value


CASES: list[tuple[type[Broken], str]] = [
    (ForgetsInCrash, r"read\(0, .* after a crash: block \d+ .* holds .*, instead of .*round \d+'s"),
    (IsNotWriteThrough, r" after a crash: block \d+ .* holds .*, instead of"),
    (FlushesTooEarly, r"block \d+ .* holds .*, instead of"),
    (FlushesNotZeroes, r"block \d+ .* holds .*, instead of .*write_zeroes"),
    (ForgetsAtUnmount, r"block \d+ .* holds .*, instead of .*write_zeroes"),
    (KeepsData, r"holds what overwrote `data` after write had returned, instead of"),
    (ReusesResults, r"read\(.*holds .*, instead of"),
    (ReadsShort, r"read\(.*: returned 28672 bytes instead of \d+"),
    (ReadsWhatIsNoBytes, r"returned \[.*, not contiguous bytes"),
    (ReadsEverySecondByte, r"returned <memory.*>, not contiguous bytes"),
    (WritesInChunks, r"block \d+ .* holds .*, instead of"),
    (WritesTornBlocks, r"holds (block|zeroes).*, instead of"),
    (ZeroesAreNot, r"holds (garbage|block).*, instead of .*write_zeroes\("),
    (ExtentsLie, r"extents\(.*holds zeroes, instead of|are zeroes, but a read of them"),
    (TrimmedAreNotZeroes, r"says that 4096 bytes at \d+ are zeroes, but a read of them"),
    (NoExtents, r"extents\(0, .* when it is opened: returned no extent at all"),
    (EmptyExtents, r"extents\(.*: returned Extent\(length=0,.* no multiple of the block size"),
    (RaggedExtents, r"extents\(.*: returned Extent\(length=2048,.* no multiple of the block size"),
    (WrongExtents, r"extents\(.*: returned \[\d+\], not a sequence of extents"),
    (WrongOffset, r"block \d+ .* holds .*, instead of"),
    (TrimsTooMuch, r"holds zeroes, instead of .*write\("),
    (TrimsAfterTheFact, r"block \d+ .* holds .*, instead of .*"),
    (ReturnsTooEarly, r"block \d+ .* holds .*, instead of"),
    (CachesReads, r"holds .*, instead of|are zeroes, but a read of them"),
    (LeavesAWriteBehind, r"holds .*cancelled.*, instead of"),
    (CannotBeRunTwice, r"write\(.* cancelled.*: raised RuntimeError.*, which is no OSError"),
    (RaisesNoOSError, r"trim\(.*: raised KeyError\(\d+\), which is no OSError"),
    (RaisesCancelledError, r"flush.* raised CancelledError"),
    (NeverWrites, r"all \d+ calls of write have failed, the last with .*full"),
    (NeverReads, r"at the start: read\(0, .*: has failed 50 times, .*nothing there"),
    (HangsAtTheEnd, r"after 1 s this still runs: write\("),
    (CannotUnmount, r"unmount: raised RuntimeError\('not now'\)"),
    (Grows, r"reopened, it has 61 blocks of 4096 bytes, not 60 blocks"),
    (IsEmpty, r"at the start: blocks must be at least 1, not 0"),
    (HasOddBlocks, r"at the start: block_size must be a power of two from 1 to 65536, not 3000"),
]


@pytest.mark.parametrize(("kind", "message"), CASES, ids=[kind.__name__ for kind, _ in CASES])
@pytest.mark.parametrize("seed", range(2))
async def test_broken_device_is_caught(kind: type[Broken], message: str, seed: int) -> None:
    exc = await failure(kind, seed)
    assert re.search(message, str(exc)), str(exc)
    assert exc.seed == seed


class OnlyWrites(BlockDevice):
    blocks = 4

    async def write(self, offset: int, data: memoryview) -> None:
        pass


async def test_device_without_a_read_is_none() -> None:
    with pytest.raises(CheckFailed, match="the device has no read"):
        await check_block_device(OnlyWrites)


async def test_failure_of_the_factory_is_reported() -> None:
    def broken() -> BlockDevice:
        raise LookupError("no such disk")

    with pytest.raises(CheckFailed, match="opening it: raised LookupError") as caught:
        await check_block_device(broken)
    assert isinstance(caught.value.__cause__, LookupError)


async def test_device_is_unmounted_after_a_failure() -> None:
    medium = CrashableDisk(SIZE)
    with pytest.raises(CheckFailed):
        await check_block_device(lambda: ReadsShort(medium.open(), {}))
    medium.open()  # would be refused


async def test_device_is_unmounted_when_the_check_is_cancelled() -> None:
    medium = CrashableDisk(SIZE)
    check = asyncio.ensure_future(check_block_device(medium.open))
    for _ in range(300):
        await asyncio.sleep(0)
    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check
    medium.open()
