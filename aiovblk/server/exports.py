"""What a server offers by name, and how one device serves many connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from ..aio.tasks import GracefulTask
from ..arguments import MAX_BLOCK_SIZE
from ..contract import check_device, check_handlers, defining_class
from ..device import BlockDevice, DeviceFactory, check_instance, make_device, overrides
from ..dispatch import format_exception, is_bug, transmission_flags
from ..protocol import MAX_STRING, ExportInfo, TransmissionFlag
from ..unaligned import UnalignedAdapter

logger = logging.getLogger("aiovblk")

PREFERRED_BLOCK = 4096
"""Bytes of the block that clients are told to prefer, unless the device's own blocks are larger:
what file systems and page caches read and write."""

MIN_REQUEST = 512
"""Bytes of the smallest write of the kernel, which does not ask for block sizes."""

CLOSE_DEVICE_TIMEOUT = 5.0
"""Seconds for a handler to end that is cancelled."""


@dataclass(frozen=True, slots=True)
class Export:
    """One name that clients may ask for.

    Args:
        device: what is served: one device, shared by all connections, or a function, async or not,
            that returns a device of its own for each. Such a device is unmounted with its
            connection.
        description: a text for people; at most 4096 bytes.
        read_only: refuse whatever would change it, although the device could.

    Raises:
        TypeError, ValueError: the device, or the description, cannot be.

    """

    device: BlockDevice | DeviceFactory
    description: str = ""
    read_only: bool = False

    def __post_init__(self) -> None:
        """Find out now what no client should have to."""
        if isinstance(self.device, BlockDevice):
            check_network_device(self.device)
        elif isinstance(self.device, type) and issubclass(self.device, BlockDevice):
            check_handlers(self.device)  # for workers, which make devices of their own
        elif not callable(self.device) or isinstance(self.device, type):
            check_instance(self.device)  # raises, and says why
        _check_string("description", self.description)


ExportSource = BlockDevice | DeviceFactory | Export


def exports_of(served: ExportSource | Mapping[str, ExportSource]) -> dict[str, Export]:
    """What :func:`aiovblk.serve` is given, as exports by name.

    Raises:
        TypeError, ValueError: a name, or what it stands for, cannot be.

    """
    if not isinstance(served, Mapping):
        served = {"": served}
    if not served:
        raise ValueError("there is nothing to serve: no exports were given")
    exports: dict[str, Export] = {}
    for name, each in served.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of an export must be a str, not {name!r}")
        _check_string("name of an export", name)
        exports[name] = each if isinstance(each, Export) else Export(each)
    return exports


def check_network_device(device: object) -> BlockDevice:
    """Refuse a device that cannot be served, or whose declarations the protocol does not allow."""
    return check_device(device, min_block_size=1, max_block_size=MAX_BLOCK_SIZE)


def _check_string(what: str, text: str) -> None:
    if len(text.encode()) > MAX_STRING:
        raise ValueError(f"a {what} has at most {MAX_STRING} bytes, not {len(text.encode())}")


class OpenDevice:
    """A device that is served on one connection or several.

    Args:
        name: of the export.
        adapter: the device, for requests of any alignment; see :func:`accept_unaligned`.

    Attributes:
        name: what it is called in the log.
        device: what it is.

    """

    def __init__(
        self, name: str, device: BlockDevice, served: BlockDevice, export: Export, *, shared: bool
    ) -> None:
        self.name = f"export {name!r} ({type(device).__name__})"
        self.device = device
        self.adapter = served
        self._shared = shared
        self._export = export

    @property
    def info(self) -> ExportInfo:
        """What a client is told of it, as it is now."""
        device = self.device
        return ExportInfo(
            device.size,
            self._flags(),
            minimum_block=self._minimum_block(),
            preferred_block=max(device.block_size, PREFERRED_BLOCK),
            description=self._export.description,
        )

    def _minimum_block(self) -> int:
        """Bytes of the smallest request.

        "The minimum block size represents the smallest addressable length and alignment within the
        export", by read-modify-write where need be; clients refuse to send smaller requests
        (libnbd). So it is a byte, but where others may change the same block meanwhile of whom this
        process does not know: by devices of their own, on the same disk.
        """
        device = self.device
        is_changed = not (self._export.read_only or device.read_only)
        apart = device.multi_conn and not self._shared
        return device.block_size if apart and is_changed else 1

    def _flags(self) -> TransmissionFlag:
        device = self.device
        # One flush() of a shared device covers what came by any connection. Devices of the same
        # factory may promise the same; but what is less than a block is changed by reading and
        # writing back, which keeps off others on this device only. Some clients never ask for the
        # minimum block.
        promised = device.multi_conn and device.block_size <= MIN_REQUEST
        flags = transmission_flags(device, multi_conn=self._shared or promised)
        if self._export.read_only:
            flags |= TransmissionFlag.READ_ONLY
        if overrides(device, BlockDevice.cache):
            flags |= TransmissionFlag.SEND_CACHE
        if TransmissionFlag.SEND_WRITE_ZEROES in flags:
            # A device overrides write_zeroes because it knows better than to write them.
            flags |= TransmissionFlag.SEND_FAST_ZERO
        return flags

    async def close(self, patience: float) -> list[str]:
        """Flush and unmount the device, waiting ``patience`` seconds for each.

        Returns:
            What went wrong, in words; it is logged as well.

        """
        failures: list[str] = []
        for method in ("flush", "unmount"):
            error = await _wait_outcome(patience, getattr(self.device, method))
            if error is not None:
                handler = f"{defining_class(self.device, method)}.{method}()"
                failure = f"{self.name}: {handler} failed: {format_exception(error)}"
                logger.error("%s", failure, exc_info=error if is_bug(error, self.device) else None)
                failures.append(failure)
        return failures


async def _wait_outcome(
    patience: float, handler: Callable[[], Coroutine[Any, Any, None]]
) -> BaseException | None:
    """Call a handler; what it has raised, be it no :exc:`Exception`."""

    async def call() -> None:
        await handler()

    # Neither asyncio.timeout() nor the end of the loop may have a part in it: the one cannot cancel
    # a task that serves, the other must not cancel what stores a device's data.
    task = GracefulTask(call(), lambda: None)
    await asyncio.wait([task], timeout=patience)
    late = not task.done()
    if late:
        task.force_cancel()
        await asyncio.wait([task], timeout=CLOSE_DEVICE_TIMEOUT)
    if late and (not task.done() or task.cancelled()):
        return TimeoutError(f"it was not done within {patience:g} s")
    if task.cancelled():
        return asyncio.CancelledError("it was cancelled, though nobody did so")
    return task.exception()


async def open_device(name: str, export: Export) -> OpenDevice:
    """The device for one connection to an export that has a factory.

    Raises:
        Exception: whatever the factory raises; TypeError or ValueError when what it returns cannot
            be served.

    """
    assert not isinstance(export.device, BlockDevice)  # shared ones are open already
    device = check_network_device(await make_device(export.device))
    return OpenDevice(name, device, accept_unaligned(device), export, shared=False)


def open_shared(exports: Mapping[str, Export]) -> dict[str, OpenDevice]:
    """The devices that connections share, by name of their export."""
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
    """The device as clients may use it, who need not care for its blocks.

    It is one for all servers of an event loop, and for all clients to whom a function gives the
    same device: what is less than a block is kept from those only who come by the same way.
    """
    if device.block_size == 1:
        return device
    known = _of_loops.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    # By its id, which is no other's while this lives: a device need not be hashable.
    aligned = known.get(id(device))
    if aligned is None:
        aligned = known[id(device)] = UnalignedAdapter(device)
    return aligned
