"""What a server offers by name, and how one device serves many connections."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from ..device import BlockDevice, check_geometry, overrides
from ..dispatch import transmission_flags
from ..protocol import MAX_STRING, ExportInfo, TransmissionFlag
from ..tasks import SteadyTask
from .alignment import AnyAlignment

logger = logging.getLogger("aiovblk")

LARGEST_BLOCK = 64 * 1024
"""Bytes of the largest block that the network protocol knows ("Block size constraints")."""

GIVE_UP_TIMEOUT = 5.0
"""Seconds for a handler to end that is cancelled."""

Factory = Callable[[], BlockDevice | Awaitable[BlockDevice]]


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
            check_geometry(self.device)  # type: ignore[arg-type]  # raises, and says why
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
    check_geometry(device, smallest=1, largest=LARGEST_BLOCK)


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
            minimum_block=device.block_size,
            preferred_block=max(device.block_size, 4096),
            description=self._export.description,
        )

    def _flags(self) -> TransmissionFlag:
        device = self.device
        # One flush() of a shared device covers what came by any connection.
        flags = transmission_flags(device, multi_conn=self._shared)
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
    device = export.device()
    if inspect.isawaitable(device):
        device = await device
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
