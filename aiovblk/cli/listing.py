"""``aiovblk list``: the devices that are attached, by whomever."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ..kernel import sysfs


@dataclass(frozen=True, slots=True)
class Attached:
    """One attached NBD device, as /sys and /proc show it."""

    path: str
    size: int
    block_size: int
    read_only: bool
    server_pid: int | None
    server_name: str | None
    partitions: list[str]
    used: list[str]


def attached() -> list[Attached]:
    """Every NBD device that is attached."""
    return [_look_at(index) for index in sysfs.indices() if not sysfs.is_free(index)]


def _look_at(index: int) -> Attached:
    thread = sysfs.server_thread(index)
    process = sysfs.process_of(thread) if thread is not None else None
    server_pid, server_name = process or (None, None)
    return Attached(
        path=f"/dev/nbd{index}",
        size=sysfs.size(index),
        block_size=sysfs.block_size(index),
        read_only=sysfs.is_read_only(index),
        server_pid=server_pid,
        server_name=server_name,
        partitions=[f"/dev/{name}" for name in sysfs.partitions(index)],
        used=[user for user in sysfs.holders(index) if user != _as_user(process)],
    )


def _as_user(process: tuple[int, str] | None) -> str:
    """How a server shows among the users of its own device, which it has open."""
    return sysfs.opened_by(*process) if process else ""


def as_json(devices: list[Attached]) -> str:
    """A JSON array of objects with the fields of :class:`Attached`; sizes are bytes."""
    return json.dumps([asdict(device) for device in devices], indent=2)


def as_table(devices: list[Attached]) -> str:
    """A line per device, for people."""
    rows = [("DEVICE", "SIZE", "BLOCK", "ACCESS", "SERVER", "USED")]
    for device in devices:
        server = f"{device.server_pid} ({device.server_name})" if device.server_pid else "gone"
        access = "ro" if device.read_only else "rw"
        used = ", ".join(device.used) or "-"
        size = in_units(device.size)
        rows.append((device.path, size, str(device.block_size), access, server, used))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def in_units(size: float) -> str:
    """Bytes for people."""
    units = iter("BKMGTPE")
    unit = next(units)
    while size >= 1024:
        size, unit = size / 1024, next(units)
    return f"{size:.4g}{unit}"
