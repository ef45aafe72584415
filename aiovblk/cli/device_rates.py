"""What attached devices do, by the kernel's counters: samples, and the rates between two."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from ..kernel import procfs, status, sysfs
from ..kernel.sysfs import Disk
from ..text import escape
from .attached import attached_disks, server_of
from .sizes import format_size

HEADER = ("DEVICE", "SIZE", "READ/S", "WRITE/S", "READ MB/S", "WRITE MB/S", "IN FLIGHT", "MEAN MS")
LAST_COLUMN = "SERVER"

# Indices of the fields of /sys/block/*/stat (Documentation/block/stat.rst). Each kind of request
# has a count and the milliseconds that all of them took; reads and writes have sectors as well.
_READS, _READ_SECTORS, _WRITES, _WRITTEN_SECTORS = 0, 2, 4, 6
_COUNTS = (_READS, _WRITES, 11, 15)  # discards since Linux 4.18, flushes since 5.5
_MILLISECONDS = (3, 7, 14, 16)
_FIELDS = 17


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of one device at one time."""

    time: float
    """Seconds of a monotonic clock."""
    counters: list[int]
    """The fields of /sys/block/nbdN/stat."""
    generation: int | None
    """The thread that attached it, or the number of a ublk device's disk among all that there were;
    if that differs, the device was attached anew."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of a device between two samples."""

    reads: float
    """Per second; so are the next three."""
    writes: float
    bytes_read: float
    bytes_written: float
    latency: float | None
    """Mean seconds of a request; None if none was completed."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What a device is, and what it did between two samples."""

    disk: Disk
    generation: int | None
    size: str
    """With a unit: ``64M``."""
    rates: Rates | None
    """None for a device that was just attached."""
    in_flight: int
    server: str
    """The process that serves it, fit for a terminal; empty if that is gone."""

    @property
    def path(self) -> str:
        """The device node."""
        return f"/dev/{sysfs.disk_name(self.disk)}"


def samples() -> dict[Disk, Sample]:
    """Read the counters of every attached device that can be used."""
    return {
        disk: Sample(time.monotonic(), counters, _generation(disk))
        for disk in attached_disks()
        if (counters := status.io_counters(disk))
    }


def _generation(disk: Disk) -> int | None:
    if isinstance(disk, int):
        return sysfs.server_thread(disk)
    number = sysfs.attribute(disk, "diskseq")
    return int(number) if number else None


def rates(before: Sample, now: Sample) -> Rates:
    """Calculate the rates between two samples."""
    # Older kernels count fewer kinds of requests.
    earlier = before.counters + [0] * (_FIELDS - len(before.counters))
    later = now.counters + [0] * (_FIELDS - len(now.counters))
    seconds = now.time - before.time
    grown = [new - old for old, new in zip(earlier, later, strict=False)]
    completed = sum(grown[field] for field in _COUNTS)
    milliseconds = sum(grown[field] for field in _MILLISECONDS)
    return Rates(
        reads=grown[_READS] / seconds,
        writes=grown[_WRITES] / seconds,
        bytes_read=grown[_READ_SECTORS] * sysfs.SECTOR / seconds,
        bytes_written=grown[_WRITTEN_SECTORS] * sysfs.SECTOR / seconds,
        latency=milliseconds / 1000 / completed if completed else None,
    )


def activities(before: Mapping[Disk, Sample], now: Mapping[Disk, Sample]) -> list[Activity]:
    """Return what each device that is attached now did since the sample before."""
    found = []
    for disk, sample in now.items():
        earlier = before.get(disk)
        is_same = earlier is not None and earlier.generation == sample.generation
        found.append(
            Activity(
                disk,
                sample.generation,
                format_size(sysfs.size(disk)),
                rates(earlier, sample) if earlier is not None and is_same else None,
                status.in_flight(disk),
                _server(disk, sample),
            )
        )
    return found


def format_rates(rates: Rates | None) -> list[str]:
    """Format requests and millions of bytes per second, reads before writes, and milliseconds."""
    if rates is None:
        return ["-"] * 5
    return [
        f"{rates.reads:.0f}",
        f"{rates.writes:.0f}",
        f"{rates.bytes_read / 1e6:.1f}",
        f"{rates.bytes_written / 1e6:.1f}",
        "-" if rates.latency is None else f"{rates.latency * 1000:.2f}",
    ]


def _server(disk: Disk, sample: Sample) -> str:
    unknown = ""
    if isinstance(disk, str):
        process = server_of(disk)
        unknown = "not visible"  # there is one, or the kernel would have removed the disk
    else:
        thread = sample.generation
        process = procfs.process_of(thread) if thread is not None else None
    return f"{process[0]} ({escape(process[1])})" if process else unknown
