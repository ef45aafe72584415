"""One device shared by several layers."""

from __future__ import annotations

import errno

import pytest

from aiovblk.device import can
from aiovblk.storage import MemoryDevice, Overlay, Shared


class Base(MemoryDevice):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.unmounts: list[str] = []

    async def unmount(self) -> None:
        self.unmounts.append("once")


async def test_last_handle_unmounts_the_device() -> None:
    base = Base(1 << 20)
    shared = Shared(base)
    handles = [shared.handle() for _ in range(3)]
    for handle in handles:
        assert not base.unmounts
        await handle.unmount()
    assert base.unmounts == ["once"]
    with pytest.raises(OSError, match="unmounted with its last handle") as caught:
        shared.handle()
    assert caught.value.errno == errno.EBADF


async def test_handle_that_is_unmounted_twice_counts_once() -> None:
    base = Base(1 << 20)
    shared = Shared(base)
    first, second = shared.handle(), shared.handle()
    await first.unmount()
    await first.unmount()
    assert not base.unmounts
    await second.unmount()
    assert base.unmounts == ["once"]


async def test_handle_reads_and_refuses_changes() -> None:
    base = Base(1 << 20)
    await base.write(0, memoryview(b"x" * 4096))
    handle = Shared(base).handle()
    assert handle.read_only
    assert (handle.block_size, handle.size) == (4096, 1 << 20)
    assert can(handle, "extents")
    assert await handle.extents(0, 1 << 20) == await base.extents(0, 1 << 20)
    for change in (
        handle.write(0, memoryview(bytes(4096))),
        handle.trim(0, 4096),
        handle.write_zeroes(0, 4096, may_trim=True),
    ):
        with pytest.raises(PermissionError, match="shared, and only read"):
            await change
    assert await handle.read(0, 4096) == b"x" * 4096


async def test_overlays_over_one_base_are_independent() -> None:
    base = Base(1 << 20)
    await base.write(0, memoryview(b"golden  " * 1024))
    shared = Shared(base)
    overlays = [
        await Overlay.create(shared.handle(), MemoryDevice(Overlay.diff_size(base)))
        for _ in range(10)
    ]
    for number, overlay in enumerate(overlays):
        await overlay.write(4096, memoryview(bytes([number]) * 4096))
    for number, overlay in enumerate(overlays):
        assert await overlay.read(0, 8192) == b"golden  " * 512 + bytes([number]) * 4096
        with pytest.raises(ValueError, match="base is read-only"):
            await overlay.commit()
        await overlay.unmount()
    assert base.unmounts == ["once"]
    assert await base.read(0, 8192) == b"golden  " * 1024
