"""Exports: the devices that a server offers by name, and their opening, flags and closing.

A device that is given as an object is shared by all connections; a factory makes one for each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from ..aio.tasks import GracefulTask
from ..arguments import MAX_BLOCK_SIZE
from ..contract import check_device, check_handlers, check_instance, defining_class
from ..device import BlockDevice, DeviceFactory, can, make_device
from ..dispatch import format_exception, is_bug, transmission_flags
from ..protocol import MAX_STRING, ExportInfo, TransmissionFlag
from ..unaligned import UnalignedAdapter

logger = logging.getLogger("aiovblk")

PREFERRED_BLOCK = 4096
"""Bytes of the preferred block size that clients are given, unless the device's own blocks are
larger: what file systems and page caches read and write."""

MIN_REQUEST = 512
"""Bytes of the smallest write of the kernel, which does not ask for block sizes."""

CLOSE_DEVICE_TIMEOUT = 5.0
"""Seconds for a cancelled ``flush()`` or ``unmount()`` to end."""


@dataclass(frozen=True, slots=True)
class Export:
    """Describe one export: its device, and how clients may use it.

    Args:
        device: the device to serve, shared by all connections; or a function, async or not, that
            is called for each connection and returns its own device, which is unmounted when the
            connection has ended.
        description: a text for people; at most 4096 bytes.
        read_only: refuse requests that would change it, although the device could.

    Raises:
        TypeError, ValueError: the device, or the description, is invalid.

    """

    device: BlockDevice | DeviceFactory
    description: str = ""
    read_only: bool = False

    def __post_init__(self) -> None:
        """Check the device and the description before the first client does."""
        if isinstance(self.device, BlockDevice):
            check_network_device(self.device)
        elif isinstance(self.device, type) and issubclass(self.device, BlockDevice):
            check_handlers(self.device)  # for workers, which make devices of their own
        elif not callable(self.device) or isinstance(self.device, type):
            check_instance(self.device)  # raises, and says why
        _check_string("description", self.description)


ExportSource = BlockDevice | DeviceFactory | Export


def exports_of(served: ExportSource | Mapping[str, ExportSource]) -> dict[str, Export]:
    """Normalise the ``exports`` argument of :func:`aiovblk.serve` to exports by name.

    Raises:
        TypeError, ValueError: a name, or its export, is invalid.

    """
    if not isinstance(served, Mapping):
        served = {"": served}
    if not served:
        raise ValueError("exports is empty: give at least one device to serve")
    exports: dict[str, Export] = {}
    for name, each in served.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of an export must be a str, not {name!r}")
        _check_string("name of an export", name)
        exports[name] = each if isinstance(each, Export) else Export(each)
    return exports


def check_network_device(device: object) -> BlockDevice:
    """Raise if a device cannot be served, or declares what the protocol does not allow."""
    return check_device(device, min_block_size=1, max_block_size=MAX_BLOCK_SIZE)


def _check_string(what: str, text: str) -> None:
    if len(text.encode()) > MAX_STRING:
        raise ValueError(f"a {what} has at most {MAX_STRING} bytes, not {len(text.encode())}")


class OpenDevice:
    """Hold a device that is being served, by one connection or shared by several.

    Args:
        name: of the export.
        device: the device itself.
        adapter: the device for requests of any alignment; see :func:`accept_unaligned`.
        export: where the device is from.
        shared: whether all connections use this device.

    Attributes:
        name: the export and the device's class, for the log.
        device: the device itself.
        adapter: the device for requests of any alignment.

    """

    def __init__(
        self, name: str, device: BlockDevice, adapter: BlockDevice, export: Export, *, shared: bool
    ) -> None:
        self.name = f"export {name!r} ({type(device).__name__})"
        self.device = device
        self.adapter = adapter
        self._shared = shared
        self._export = export

    @property
    def info(self) -> ExportInfo:
        """Return what the handshake reports of the device, as it is now."""
        device = self.device
        return ExportInfo(
            device.size,
            self._flags(),
            minimum_block=self._minimum_block(),
            preferred_block=max(device.block_size, PREFERRED_BLOCK),
            description=self._export.description,
        )

    def _minimum_block(self) -> int:
        """Return the minimum block size in bytes.

        "The minimum block size represents the smallest addressable length and alignment within the
        export", by read-modify-write where need be; clients refuse to send smaller requests
        (libnbd). So it is one byte, except where another process, or another device of the same
        factory, may change the same block between the read and the write: the range lock of a
        read-modify-write covers one device object only.
        """
        device = self.device
        is_writable = not (self._export.read_only or device.read_only)
        has_siblings = device.multi_conn and not self._shared
        return device.block_size if has_siblings and is_writable else 1

    def _flags(self) -> TransmissionFlag:
        device = self.device
        # CAN_MULTI_CONN: one flush() of a shared device covers the writes of all connections.
        # Devices of the same factory may promise the same (`multi_conn`); but a part of a block is
        # changed by read-modify-write, whose lock covers one device object only. Some clients never
        # ask for the minimum block size, so blocks must be no larger than the smallest write.
        is_safe = device.multi_conn and device.block_size <= MIN_REQUEST
        flags = transmission_flags(device, multi_conn=self._shared or is_safe)
        if self._export.read_only:
            flags |= TransmissionFlag.READ_ONLY
        if can(device, "cache"):
            flags |= TransmissionFlag.SEND_CACHE
        if TransmissionFlag.SEND_WRITE_ZEROES in flags:
            # A device overrides write_zeroes because it need not write the zeroes.
            flags |= TransmissionFlag.SEND_FAST_ZERO
        return flags

    async def close(self, timeout: float) -> list[str]:
        """Flush and unmount the device, within ``timeout`` seconds each.

        Returns:
            Failures, in words; they are logged as well.

        """
        failures: list[str] = []
        for method in ("flush", "unmount"):
            error = await _call_handler(getattr(self.device, method), timeout)
            if error is not None:
                handler = f"{defining_class(self.device, method)}.{method}()"
                failure = f"{self.name}: {handler} failed: {format_exception(error)}"
                logger.error("%s", failure, exc_info=error if is_bug(error, self.device) else None)
                failures.append(failure)
        return failures


async def _call_handler(
    handler: Callable[[], Coroutine[Any, Any, None]], timeout: float
) -> BaseException | None:
    """Call a handler within ``timeout`` seconds; return what it raised, any BaseException."""

    async def call() -> None:
        await handler()

    # Not by asyncio.timeout(), which cannot cancel the GracefulTask that this runs in. By a
    # GracefulTask of its own: the end of the loop must not cancel what stores a device's data.
    task = GracefulTask(call(), lambda: None)
    await asyncio.wait([task], timeout=timeout)
    late = not task.done()
    if late:
        task.force_cancel()
        await asyncio.wait([task], timeout=CLOSE_DEVICE_TIMEOUT)
    if late and (not task.done() or task.cancelled()):
        return TimeoutError(f"timed out after {timeout:g} s")
    if task.cancelled():
        return asyncio.CancelledError("the handler cancelled itself")
    return task.exception()


async def open_device(name: str, export: Export) -> OpenDevice:
    """Open a device for one connection, to an export that has a factory.

    Raises:
        Exception: any that the factory raises; TypeError or ValueError if it returns a device
            that cannot be served.

    """
    assert not isinstance(export.device, BlockDevice)  # shared ones are open already
    device = check_network_device(await make_device(export.device))
    return OpenDevice(name, device, accept_unaligned(device), export, shared=False)


def open_shared(exports: Mapping[str, Export]) -> dict[str, OpenDevice]:
    """Open the devices that connections share; by export name."""
    opened: dict[str, OpenDevice] = {}
    for name, export in exports.items():
        device = export.device
        if isinstance(device, BlockDevice):
            opened[name] = OpenDevice(name, device, accept_unaligned(device), export, shared=True)
    return opened


_of_loops: WeakKeyDictionary[
    asyncio.AbstractEventLoop, WeakValueDictionary[int, UnalignedAdapter]
] = WeakKeyDictionary()


def accept_unaligned(device: BlockDevice) -> BlockDevice:
    """Wrap a device so that requests need not be aligned to its blocks.

    There is one adapter for each device and event loop, shared by all servers and by all clients
    to whom a factory gives the same device: read-modify-write of a block excludes only requests
    through the same adapter.
    """
    if device.block_size == 1:
        return device
    known = _of_loops.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    # By its id, which is unique while this adapter lives: a device need not be hashable.
    aligned = known.get(id(device))
    if aligned is None:
        aligned = known[id(device)] = UnalignedAdapter(device)
    return aligned
