"""What a server offers by name, and how one device serves many connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from ..alignment import AnyAlignment
from ..arguments import MAX_BLOCK_SIZE
from ..device import BlockDevice, Factory, check_geometry, device_of, overrides
from ..dispatch import transmission_flags
from ..protocol import MAX_STRING, ExportInfo, TransmissionFlag
from ..tasks import SteadyTask

logger = logging.getLogger("aiovblk")

PREFERRED_BLOCK = 4096
"""Bytes of the block that clients are told to prefer, unless the device's own blocks are larger:
what file systems and page caches read and write."""

SMALLEST_REQUEST = 512
"""Bytes of the smallest write of the kernel, which does not ask for block sizes."""

GIVE_UP_TIMEOUT = 5.0
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

    device: BlockDevice | Factory
    description: str = ""
    read_only: bool = False

    def __post_init__(self) -> None:
        """Find out now what no client should have to."""
        if isinstance(self.device, BlockDevice):
            check_network_geometry(self.device)
        elif not callable(self.device) or isinstance(self.device, type):
            check_geometry(self.device)  # raises, and says why
        _check_string("description", self.description)


Served = BlockDevice | Factory | Export


def exports_of(served: Served | Mapping[str, Served]) -> dict[str, Export]:
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


def check_network_geometry(device: BlockDevice) -> None:
    """Refuse a device whose declarations the protocol does not allow."""
    check_geometry(device, smallest=1, largest=MAX_BLOCK_SIZE)


def _check_string(what: str, text: str) -> None:
    if len(text.encode()) > MAX_STRING:
        raise ValueError(f"a {what} has at most {MAX_STRING} bytes, not {len(text.encode())}")


class OpenDevice:
    """A device that is served on one connection or several.

    Args:
        served: the device, for requests of any alignment; see :func:`for_any_alignment`.

    Attributes:
        device: what it is.

    """

    def __init__(
        self, device: BlockDevice, served: BlockDevice, export: Export, *, shared: bool
    ) -> None:
        self.device = device
        self.served = served
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
        promised = device.multi_conn and device.block_size <= SMALLEST_REQUEST
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
        for handler in (self.device.flush, self.device.unmount):
            try:
                await _within(patience, handler())
            except Exception as exc:
                logger.exception("%s() failed", handler.__qualname__)
                failures.append(f"{handler.__qualname__}() failed: {exc!r}")
        return failures


async def _within(patience: float, handling: Coroutine[Any, Any, None]) -> None:
    # Neither asyncio.timeout() nor the end of the loop may have a part in it: the one cannot cancel
    # a task that serves, the other must not cancel what stores a device's data.
    task = SteadyTask(handling, lambda: None)
    await asyncio.wait([task], timeout=patience)
    if not task.done():
        task.give_up()
        await asyncio.wait([task], timeout=GIVE_UP_TIMEOUT)
    if not task.done() or task.cancelled():
        raise TimeoutError(f"it was not done within {patience:g} s")
    task.result()


async def open_device(export: Export) -> OpenDevice:
    """The device for one connection to an export that has a factory.

    Raises:
        Exception: whatever the factory raises; TypeError or ValueError when what it returns cannot
            be served.

    """
    assert not isinstance(export.device, BlockDevice)  # shared ones are open already
    device = await device_of(export.device)
    check_network_geometry(device)
    return OpenDevice(device, for_any_alignment(device), export, shared=False)


def open_shared(exports: Mapping[str, Export]) -> dict[str, OpenDevice]:
    """The devices that connections share, by name of their export.

    One that has two names is still one: whoever writes to a part of a block by one of them must
    keep off whoever does so by the other.
    """
    opened: dict[str, OpenDevice] = {}
    served: dict[int, BlockDevice] = {}
    for name, export in exports.items():
        device = export.device
        if isinstance(device, BlockDevice):
            same = served.setdefault(id(device), for_any_alignment(device))
            opened[name] = OpenDevice(device, same, export, shared=True)
    return opened


def for_any_alignment(device: BlockDevice) -> BlockDevice:
    """The device as clients may use it, who need not care for its blocks."""
    return AnyAlignment(device) if device.block_size > 1 else device
