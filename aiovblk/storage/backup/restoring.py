"""Restore a backup into a device."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ...arguments import check_count
from ...bitmaps import SupportsDirtyBitmaps
from ...contract import check_inner
from ...device import BlockDevice
from ..copying import REQUESTS
from ..metered import Metered
from ..objects import ObjectStoreDevice
from ..ratelimited import Rate, RateLimited
from .errors import BackupError
from .moving import Progressed, common_block, counting, move, unseen
from .numbered import bitmaps_of
from .sources import identity_of
from .spans import Differences, How, Planner, merge, total_of
from .states import Backup
from .targets import Target


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore was."""

    backup: Backup
    """What was restored."""
    base: str | None
    """The backup by whose point the device could tell what differs; None if it was compared."""
    compared: int
    """Bytes that were read from both sides."""
    read: int
    """Bytes that were read from the backup."""
    written: int
    """Bytes that were written to the device, without zeroes."""


async def restore(
    target: Target,
    device: BlockDevice,
    *,
    name: str | None = None,
    identity: str | None = None,
    rate: float | None = None,
    requests: int = REQUESTS,
    advance: Progressed = unseen,
) -> RestoreReport:
    """Make a device what a source was when it was backed up; what is read is verified.

    Only what differs is written. Where the device can tell what differs from a state that the
    target holds as well (it is the source itself, and has the bitmap or snapshot still), only that
    is read; otherwise both are read and compared, except where the device is a hole.

    The device is flushed in the end. If this is interrupted, the device is a mixture: call it
    again. Nothing else may use the device meanwhile.

    Args:
        target: what holds the backup.
        device: at least as large as the backup; what is behind that stays. The caller unmounts it.
        name: of the backup; None for the newest.
        identity: identifies the device, as for :class:`.DeviceSource`, so that its bitmaps are
            used; None if it is another one than was backed up, or a disk in an object store, which
            is known.
        rate: bytes per second that are read from the target at most; None for no limit.
        requests: reads and writes in flight.
        advance: called for progress.

    Raises:
        FileNotFoundError: there is no such backup.
        BackupError: the backup does not fit into the device, or it is read-only.
        OSError: the first error of a request; or (EIO) the backup is damaged. The device is a
            mixture then.

    Cancellation: as an interruption.

    """
    check_count("requests", requests)
    check_inner(device, "device")
    if identity is None and isinstance(device, ObjectStoreDevice):
        identity = identity_of(device)
    backups = await target.backups()
    chosen = choose(backups, name)
    async with target.read(chosen.name) as reader:
        _check_fits(chosen, device)
        limited = reader if rate is None else RateLimited(reader, Rate(bytes=rate))
        source, to = Metered(limited), Metered(device)
        block = common_block(reader, device)
        planner = Planner(source, to, block)
        base = None if identity is None else await _base(backups, chosen, identity, reader, device)
        ranges = None
        if base is not None:
            with suppress(KeyError):  # a bitmap was dropped meanwhile
                ranges = await _ranges(planner, base, chosen, reader, device)
        if ranges is None:
            base = None
            spans = await planner.of_ranges([(0, chosen.size)], How.COMPARE)
        else:
            spans = await planner.of_ranges(ranges, How.COPY)
        done = counting(spans, advance)
        await move(source, to, spans, block=block, requests=requests, advance=done)
    return RestoreReport(
        chosen,
        None if base is None else base.name,
        total_of(spans, How.COMPARE),
        source.counts["read"].bytes,
        to.counts["write"].bytes,
    )


def choose(backups: Sequence[Backup], name: str | None) -> Backup:
    """Return the backup of a name, or the newest.

    Raises:
        FileNotFoundError: there is none.

    """
    for each in reversed(backups):
        if name is None or each.name == name:
            return each
    names = ", ".join(each.name for each in backups) or "none"
    reason = "there is no backup" if name is None else f"there is no backup {name!r}; there are"
    raise FileNotFoundError(errno.ENOENT, reason if name is None else f"{reason}: {names}")


def _check_fits(backup: Backup, device: BlockDevice) -> None:
    if device.read_only:
        raise BackupError("the device to restore into is read-only")
    if device.size < backup.size:
        raise BackupError(
            f"the backup has {backup.size} bytes, which do not fit into the device's {device.size}"
        )


async def _base(
    backups: Sequence[Backup],
    chosen: Backup,
    identity: str,
    reader: BlockDevice,
    device: BlockDevice,
) -> Backup | None:
    """Return a backup from whose state both sides can tell the differences; None without one."""
    bitmaps = bitmaps_of(device)
    if bitmaps is None or device.size != chosen.size:
        return None
    points = set(await bitmaps.dirty_bitmaps())
    names = {chosen.name}
    if isinstance(reader, SupportsDirtyBitmaps):
        names.update(await reader.dirty_bitmaps())
    # The one that is restored first: then only the device need be asked.
    for each in (chosen, *reversed(backups)):
        is_known = each.source == identity and each.point in points and each.name in names
        if is_known and each.size == chosen.size:
            return each
    return None


async def _ranges(
    planner: Planner, base: Backup, chosen: Backup, reader: BlockDevice, device: BlockDevice
) -> list[tuple[int, int]]:
    """Return where the device may differ from the chosen backup: either differs from the base."""
    bitmaps = bitmaps_of(device)
    assert bitmaps is not None  # by the choice of the base
    ranges = await planner.dirty(Differences(bitmaps, (base.point,)), 0, chosen.size)
    if base != chosen:
        assert isinstance(reader, SupportsDirtyBitmaps)  # likewise
        ranges += await planner.dirty(Differences(reader, (base.name,)), 0, chosen.size)
    return merge(ranges)
