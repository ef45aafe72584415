"""Open, crash, reopen and verify the disk under check; each opening may give another device."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

from ..contract import check_device
from ..device import BlockDevice, DeviceFactory, can, make_device
from ..errors import STOP_EXCEPTIONS
from .generator import GeneratedRequest
from .model import Model
from .regions import Regions
from .results import CheckFailed, checked_extents, checked_view
from .runner import UNASKED

MAX_BLOCK = 64 * 1024
"""Bytes: the largest block size of network clients."""

ATTEMPTS = 50
"""Attempts of a read, one of which must succeed."""

Crash = Callable[[BlockDevice], Awaitable[object] | object]


class CheckedDisk:
    """A disk, which outlives its devices: how to open it, and what it should hold.

    No request may be in flight when it is opened, closed or verified.

    Args:
        factory: opens the device.
        crash: cuts the device off; None if it cannot.
        seed: chooses the blocks that are used.
        timeout: seconds for each step.

    Attributes:
        model: what the blocks should hold.
        regions: the blocks that are used.
        block_size: bytes.
        read_only: whether its contents must not change.

    """

    model: Model
    regions: Regions
    block_size: int
    read_only: bool
    _geometry: str

    def __init__(
        self, factory: DeviceFactory, crash: Crash | None, seed: int, timeout: float
    ) -> None:
        self._factory = factory
        self._crash = crash
        self._seed = seed
        self._timeout = timeout
        self._device: BlockDevice | None = None

    @property
    def device(self) -> BlockDevice:
        """The device, while the disk is open."""
        assert self._device is not None  # not used while the disk is closed
        return self._device

    @property
    def can_crash(self) -> bool:
        """Whether the check was given a function that crashes it."""
        return self._crash is not None

    async def open_first(self) -> None:
        """Open the disk, and load its geometry and contents."""
        device = await self._open()
        if not can(device, "read"):
            raise CheckFailed("the device has no read")
        self.block_size = device.block_size
        # A device without write that is not read-only gets writes, and fails them.
        self.read_only = device.read_only or not can(device, "write")
        self._geometry = _geometry(device)
        self.regions = Regions(device.block_size, device.blocks, Random(self._seed))
        self.model = Model(device.block_size, write_through=not can(device, "flush"))
        for window in self.regions.windows:
            self.model.load(window.start, await self._read(window))
        await self.verify("when it is opened")

    async def open_again(self, when: str) -> None:
        """Open the disk after a crash or an unmount, and verify it."""
        self.model.restart()
        device = await self._open()
        if _geometry(device) != self._geometry:
            raise CheckFailed(f"reopened, it has {_geometry(device)}, not {self._geometry}")
        await self.verify(when)

    async def close(self) -> None:
        """Flush the device, then unmount it."""
        device = self.device
        began = self.model.now()
        async with self._step("flush"):
            with contextlib.suppress(OSError):
                await device.flush()
                self.model.flush(began)
        self._device = None
        async with self._step("unmount"):
            await device.unmount()

    async def crash(self) -> None:
        """Crash the device; results of its running handlers do not count any more."""
        assert self._crash is not None  # the caller checks can_crash
        device, self._device = self.device, None
        async with self._step("crash"):
            crashed = self._crash(device)
            if inspect.isawaitable(crashed):
                await crashed

    async def cancel(self) -> None:
        """Unmount the device if it is open, whatever state it is in."""
        if self._device is not None:
            with contextlib.suppress(CheckFailed):
                async with self._step("unmount"):
                    await self._device.unmount()

    async def verify(self, when: str) -> None:
        """Compare all blocks in use with what they should hold.

        Args:
            when: ends the description of a failed request.

        """
        try:
            for window in self.regions.windows:
                began = self.model.now()
                data = await self._read(window)
                async with self._step(str(GeneratedRequest("read", window, self.block_size))):
                    self.model.check_read(began, window.start, data)
                await self._verify_extents(window, data)
        except CheckFailed as exc:
            exc.request = f"{exc.request} {when}"
            raise

    async def _open(self) -> BlockDevice:
        async with self._step("opening it"):
            device = await make_device(self._factory)
        try:
            self._device = check_device(device, min_block_size=1, max_block_size=MAX_BLOCK)
        except (TypeError, ValueError) as exc:
            raise CheckFailed(str(exc)) from exc
        return self._device

    async def _read(self, blocks: range) -> bytes:
        """Read; retry up to :data:`ATTEMPTS` times if that fails."""
        request = GeneratedRequest("read", blocks, self.block_size)
        error: OSError | None = None
        for _ in range(ATTEMPTS):
            async with self._step(str(request)):
                try:
                    data = await self.device.read(request.offset, request.length)
                    return bytes(checked_view(data, request.length))
                except OSError as exc:
                    error = exc
        reason = f"has failed {ATTEMPTS} times, the last with {error!r}"
        raise CheckFailed(reason, str(request)) from error

    async def _verify_extents(self, blocks: range, data: bytes) -> None:
        """Compare the extents that are zeroes, also of trimmed blocks, with what was read."""
        size, left = self.block_size, blocks
        while left:
            request = GeneratedRequest("extents", left, size)
            async with self._step(str(request)):
                try:
                    found = await self.device.extents(request.offset, request.length)
                except OSError:
                    return
                for extent in checked_extents(found, size):
                    run, left = _split(left, extent.length // size)
                    at = (run.start - blocks.start) * size
                    if extent.zero and any(data[at : at + len(run) * size]):
                        raise CheckFailed(
                            f"says that {len(run) * size} bytes at {run.start * size} are zeroes,"
                            " but a read of them returned other bytes"
                        )

    @asynccontextmanager
    async def _step(self, what: str) -> AsyncIterator[None]:
        """Fail the check if the block raises, or takes longer than the timeout."""
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                yield
        except CheckFailed as exc:
            exc.request = exc.request or what
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise CheckFailed(UNASKED, what) from None
        except STOP_EXCEPTIONS:
            raise
        except BaseException as exc:
            late = limit.expired()
            how = f"takes longer than {self._timeout} s" if late else f"raised {exc!r}"
            raise CheckFailed(how, what) from exc


def _geometry(device: BlockDevice) -> str:
    return f"{device.blocks} blocks of {device.block_size} bytes"


def _split(blocks: range, length: int) -> tuple[range, range]:
    """Split off the first ``length`` blocks."""
    return blocks[:length], blocks[length:]
