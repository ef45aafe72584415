"""``aiovblk list``: show the attached devices of all processes."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict, dataclass

from ..kernel import status, sysfs, users
from ..kernel.status import DeviceState
from ..kernel.sysfs import Disk
from ..protocol.constants import TransmissionFlag
from ..ublk.status import has_disk, status_of
from .attached import attached_disks, ublk_number
from .options import add_json
from .parser import CommandParser
from .sizes import format_size
from .tables import format_table

NO_FLAGS = TransmissionFlag(0)


@dataclass(frozen=True, slots=True)
class AttachedDevice:
    """One attached device, as /sys, /proc and the driver of ublk show it.

    Attributes:
        driver: ``nbd`` or ``ublk``.
        index: N of /dev/nbdN or /dev/ublkbN.
        path: the device node.
        size: bytes.
        block_size: bytes of a logical block.
        read_only, rotational: as the kernel has it.
        flags: the transmission flags that the kernel was given, by the specification's names; those
            that a ublk device would have.
        server_pid, server_name: the process that attached it, or has taken it over; None if it
            has ended, or is not visible.
        state: whether it has a server; see :class:`~aiovblk.kernel.status.DeviceState`.
        identity: the name by which a later server finds it; only if attached by netlink.
        owner: the id of the user who has mounted it; of ublk devices only, None if not visible.
        in_flight: requests without a reply.
        partitions: the nodes of its partitions.
        holders: the kernel's names of devices on top of it (``dm-0``).
        used: its users, as text.

    """

    driver: str
    index: int
    path: str
    size: int
    block_size: int
    read_only: bool
    rotational: bool
    flags: list[str]
    server_pid: int | None
    server_name: str | None
    state: DeviceState
    identity: str | None
    owner: int | None
    in_flight: int
    partitions: list[str]
    holders: list[str]
    used: list[str]


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = "%(prog)s [OPTION...]"
    parser.description = "Show the attached devices (NBD and ublk), their servers and users."
    add_json(parser)
    parser.show_examples(
        ("as a table", "aiovblk list"),
        ("the nodes alone", "aiovblk list --json | jq -r '.[].path'"),
    )
    parser.set_defaults(command=show)


def show(arguments: Namespace) -> None:
    """Print the attached devices as a table, or as JSON."""
    devices = attached()
    print(as_json(devices) if arguments.json else as_table(devices))


def attached() -> list[AttachedDevice]:
    """Return every attached device, NBD's first."""
    return [inspect_device(disk) for disk in attached_disks()]


def inspect_device(disk: Disk) -> AttachedDevice:
    """Look at one attached device."""
    identity = owner = None
    number = ublk_number(disk)
    if number is None:
        assert isinstance(disk, int)
        identity, flags = status.identity(disk), status.transmission_flags(disk)
        process, state = status.server(disk), status.state(disk)
    else:
        found = status_of(number)
        process, state, owner = found.server, found.state, found.owner
        flags = status.flags_from_sysfs(disk) if has_disk(number) else NO_FLAGS
    return AttachedDevice(
        driver="nbd" if number is None else "ublk",
        index=int(disk) if number is None else number,
        path=f"/dev/{sysfs.disk_name(disk)}",
        size=sysfs.size(disk),
        block_size=status.block_size(disk),
        read_only=status.is_read_only(disk),
        rotational=status.is_rotational(disk),
        flags=[flag.name or hex(flag) for flag in flags],
        server_pid=process[0] if process else None,
        server_name=process[1] if process else None,
        state=state,
        identity=identity,
        owner=owner,
        in_flight=status.in_flight(disk),
        partitions=[f"/dev/{each}" for each in sysfs.partitions(disk)],
        holders=users.holding_devices(disk),
        used=[user for user in users.users(disk) if user != _as_user(process)],
    )


def _as_user(process: tuple[int, str] | None) -> str:
    """Describe a server as a user of its own device, which it has open."""
    return users.opened_by(*process) if process else ""


def as_json(devices: list[AttachedDevice]) -> str:
    """Format as a JSON array of objects with the fields of :class:`AttachedDevice`."""
    return json.dumps([asdict(device) for device in devices], indent=2)


COLUMNS = (
    "DEVICE",
    "SIZE",
    "BLOCK",
    "ACCESS",
    "SERVER",
    "STATE",
    "INFLIGHT",
    "IDENTITY",
    "FLAGS",
    "USED",
)


def as_table(devices: list[AttachedDevice]) -> str:
    """Format as a table with a line per device."""
    return format_table(COLUMNS, map(_row, devices))


def _row(device: AttachedDevice) -> tuple[str, ...]:
    # Read-only has its own column, and HAS_FLAGS is always set.
    flags = [flag for flag in device.flags if flag not in ("HAS_FLAGS", "READ_ONLY")]
    return (
        device.path,
        format_size(device.size),
        str(device.block_size),
        "ro" if device.read_only else "rw",
        _server(device),
        device.state,
        str(device.in_flight),
        device.identity or "-",
        ",".join(flag.removeprefix("SEND_").lower() for flag in flags) or "-",
        ", ".join(device.used) or "-",
    )


def _server(device: AttachedDevice) -> str:
    if device.server_pid:
        return f"{device.server_pid} ({device.server_name})"
    return "not visible" if device.state is DeviceState.UNKNOWN else "gone"
