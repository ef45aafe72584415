"""The devices of the ublk driver as seen from outside: which there are, who serves each.

Which there are, /sys shows to all. What becomes of each only the driver knows, and says to root and
to the user who has made the device (GET_DEV_INFO2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..kernel import capabilities, procfs, sysfs
from ..kernel.status import DeviceState
from . import control
from .attachment import char_directory, disk_name
from .commands import State, UblkDeviceInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class UblkStatus:
    """What is known of a device.

    Attributes:
        number: N of /dev/ublkbN.
        state: whether it has a server.
        server: the id and name of the process that serves it, or is about to; None if none can be
            seen.
        owner: the id of the user who has made it; None if the driver does not say.

    """

    number: int
    state: DeviceState
    server: tuple[int, str] | None = None
    owner: int | None = None


def numbers() -> list[int]:
    """Return the numbers N of all devices, in order: those without a disk, too."""
    return sorted(set(_numbers()))


def _numbers() -> Iterator[int]:
    directories = (char_directory(0).parent, "ublkc"), (sysfs.SYS_BLOCK, "ublkb")
    for directory, name in directories:
        for entry in directory.glob(f"{name}*"):
            if found := re.fullmatch(rf"{name}(\d+)", entry.name):
                yield int(found[1])


def exists(number: int) -> bool:
    """Return whether there is a device of a number."""
    return number in numbers()


def has_disk(number: int) -> bool:
    """Return whether a device can be used: whether there is a /dev/ublkbN."""
    return (sysfs.SYS_BLOCK / disk_name(number)).exists()


def status_of(number: int) -> UblkStatus:
    """Ask the driver for the status of a device. Blocks, for a moment.

    Args:
        number: N of /dev/ublkbN.

    Returns:
        Its status, of which only the number is known where the driver does not answer: no such
        device, or another user's.

    """
    try:
        info = control.info(number)
    except OSError:  # it may not be asked, or the device is gone
        return UblkStatus(number=number, state=DeviceState.UNKNOWN)
    server = procfs.process_of(info.server) if info.server > 0 else None
    return UblkStatus(
        number=number,
        state=_state(info, has_server=server is not None),
        server=server,
        owner=info.owner,
    )


def _state(info: UblkDeviceInfo, *, has_server: bool) -> DeviceState:
    if info.state == State.LIVE:
        return DeviceState.ALIVE
    if info.state != State.DEAD:
        return DeviceState.LOST  # it waits for another server
    # Until it is started a device counts as dead; its number of a process is that of its server.
    if has_server:
        return DeviceState.ALIVE
    if info.server > 0 and capabilities.is_initial("pid") is False:
        return DeviceState.UNKNOWN
    return DeviceState.DEAD
