"""Share one read-only device between several layers, by reference counting."""

from __future__ import annotations

import errno

from ..contract import check_inner
from ..device import BlockDevice
from .layer import Layer


class Shared:
    """Shares a device between several layers that only read it.

    A layer unmounts the device below it. So each layer gets a handle of its own, and the last
    handle that is unmounted unmounts the device. Keep a handle to keep the device open between two
    users.

    Args:
        device: the shared device. The handles own it as soon as there is one.

    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = check_inner(device, "device")
        self._handles = 0
        self._is_closed = False

    def handle(self) -> BlockDevice:
        """Make a read-only device that forwards to the shared one.

        Raises:
            OSError: the last handle was unmounted already, and the device with it (EBADF).

        """
        if self._is_closed:
            raise OSError(errno.EBADF, "the shared device was unmounted with its last handle")
        self._handles += 1
        return _Handle(self._device, self)

    async def _release(self) -> None:
        self._handles -= 1
        if not self._handles:
            self._is_closed = True
            await self._device.unmount()


class _Handle(Layer):
    passes_bitmaps = True

    def __init__(self, device: BlockDevice, shared: Shared) -> None:
        super().__init__(device)
        self._shared: Shared | None = shared
        self.read_only = True

    async def write(self, offset: int, data: memoryview) -> None:
        raise _refusal()

    async def trim(self, offset: int, length: int) -> None:
        raise _refusal()

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        raise _refusal()

    async def unmount(self) -> None:
        shared, self._shared = self._shared, None
        if shared:
            await shared._release()


def _refusal() -> PermissionError:
    return PermissionError(errno.EPERM, "this device is shared, and only read")
