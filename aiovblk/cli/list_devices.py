"""``aiovblk list``: show the attached devices of all processes."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict, dataclass

from ..kernel import status, sysfs, users
from ..kernel.status import DeviceState
from .options import add_json
from .parser import CommandParser
from .sizes import format_size
from .tables import format_table


@dataclass(frozen=True, slots=True)
class AttachedDevice:
    """One attached NBD device, as /sys and /proc show it.

    Attributes:
        index: N of /dev/nbdN.
        path: the device node.
        size: bytes.
        block_size: bytes of a logical block.
        read_only, rotational: as the kernel has it.
        flags: the transmission flags that the kernel was given, by the specification's names.
        server_pid, server_name: the process that attached it, or has taken it over; None if it
            has ended, or is not visible.
        state: whether it has a server; see :class:`~aiovblk.kernel.status.DeviceState`.
        identity: the name by which a later server finds it; only if attached by netlink.
        in_flight: requests without a reply.
        partitions: the nodes of its partitions.
        holders: the kernel's names of devices on top of it (``dm-0``).
        used: its users, as text.

    """

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
    in_flight: int
    partitions: list[str]
    holders: list[str]
    used: list[str]


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = "%(prog)s [OPTION...]"
    parser.description = "Show the attached NBD devices, their servers and their users."
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
    """Return every attached NBD device."""
    return [inspect_device(index) for index in sysfs.indices() if not sysfs.is_free(index)]


def inspect_device(index: int) -> AttachedDevice:
    process = status.server(index)
    server_pid, server_name = process or (None, None)
    return AttachedDevice(
        index=index,
        path=f"/dev/nbd{index}",
        size=sysfs.size(index),
        block_size=status.block_size(index),
        read_only=status.is_read_only(index),
        rotational=status.is_rotational(index),
        flags=[flag.name or hex(flag) for flag in status.transmission_flags(index)],
        server_pid=server_pid,
        server_name=server_name,
        state=status.state(index),
        identity=status.identity(index),
        in_flight=status.in_flight(index),
        partitions=[f"/dev/{name}" for name in sysfs.partitions(index)],
        holders=users.holding_devices(index),
        used=[user for user in users.users(index) if user != _as_user(process)],
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
        f"{device.server_pid} ({device.server_name})" if device.server_pid else "gone",
        device.state,
        str(device.in_flight),
        device.identity or "-",
        ",".join(flag.removeprefix("SEND_").lower() for flag in flags) or "-",
        ", ".join(device.used) or "-",
    )
