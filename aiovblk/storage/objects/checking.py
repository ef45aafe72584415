"""Check a disk for damage: missing objects, objects that do not belong to it, wrong checksums.

What records and checkpoints hold, inline data included, is verified when the disk is opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ...aio.gather import run_bounded
from .client import AnyStore, ObjectInfo
from .disk import StoredDisk
from .keys import (
    CHUNKS,
    LOG,
    MANIFEST,
    MAP,
    SEGMENTS,
    checkpoint_key,
    is_key,
    version_of,
)
from .object_reader import StoredObject, open_stored
from .state import DiskState
from .view import stored_objects

_REQUESTS = 16  # objects that are read at the same time

Needed = dict[int, set[StoredObject]]
"""The chunks and segments that states have, by the number of origin."""


@dataclass(slots=True)
class CheckReport:
    """What a check has found."""

    chunks: int = 0
    """Chunks that exist, and so were checked."""
    segments: int = 0
    """Segments, likewise."""
    size: int = 0
    """Bytes of them, as they are stored."""
    problems: list[str] = field(default_factory=list)
    """One line for each; empty if the disk is intact."""


async def check(
    store: AnyStore,
    path: str = "",
    *,
    key: bytes | None = None,
    contents: bool = True,
    advance: Callable[[int], object] = lambda count: None,
) -> CheckReport:
    """Verify that everything that the disk and its snapshots need exists and is intact.

    Nothing is changed. The disk should not be written to meanwhile, except by few flushes: what is
    replaced during the check is reported missing.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        key: 32 bytes, if the disk is encrypted.
        contents: whether to read all objects, rather than only list them.
        advance: progress callback, called with the number of objects read since the last call.

    Raises:
        OSError: the store fails, or the disk's history is so damaged that it cannot be opened.

    """
    disk = await StoredDisk.open(store, path, key=key)
    journal = await disk.journal(writes=False)
    report = CheckReport()
    needed: Needed = {}
    await asyncio.to_thread(_add, needed, disk, journal.state)
    for name, snapshot in journal.state.snapshots.items():
        try:
            state = await journal.state_at(snapshot.sequence)
        except OSError as exc:
            what = "is missing" if isinstance(exc, FileNotFoundError) else str(exc)
            report.problems.append(f"snapshot {name}: {checkpoint_key(snapshot.sequence)} {what}")
        else:
            await asyncio.to_thread(_add, needed, disk, state)
    _check_origins(disk, needed, report)
    await _check_presence(disk, needed, report)
    if contents:
        await _check_contents(disk, needed, report, advance)
    report.problems.sort()
    return report


def _add(needed: Needed, disk: StoredDisk, state: DiskState) -> None:
    for stored in stored_objects(disk.manifest, state):
        needed.setdefault(stored.origin, set()).add(stored)


def _check_origins(disk: StoredDisk, needed: Needed, report: CheckReport) -> None:
    """Report objects of ancestors that the manifest lacks; they cannot be looked for."""
    for origin in [each for each in needed if each > len(disk.manifest.origins)]:
        objects = needed.pop(origin)
        chunks = sum(not each.is_segment for each in objects)
        found = f"{chunks} chunks"
        if chunks < len(objects):
            found += f" and {len(objects) - chunks} segments"
        report.problems.append(f"{MANIFEST} lacks ancestor {origin}, which has {found}")


async def _check_presence(disk: StoredDisk, needed: Needed, report: CheckReport) -> None:
    """Report the needed objects that no list has, and remove them from ``needed``."""
    for folder in (LOG, MAP):
        _report_foreign(await disk.objects.list_objects(folder), report)
    for origin, source in enumerate(disk.sources):
        if origin in needed or not origin:
            listed = await source.objects.list_objects(CHUNKS)
            listed += await source.objects.list_objects(SEGMENTS)
            objects = needed.setdefault(origin, set())
            await asyncio.to_thread(_check_listed, disk, origin, objects, listed, report)


def _check_listed(
    disk: StoredDisk,
    origin: int,
    objects: set[StoredObject],
    listed: list[ObjectInfo],
    report: CheckReport,
) -> None:
    if not origin:
        _report_foreign(listed, report)
    sizes = {each.path: each.size for each in listed if version_of(each.path) is not None}
    missing = {each for each in objects if each.key not in sizes}
    report.problems += [f"{_name(disk, each)} is missing" for each in missing]
    objects -= missing
    segments = sum(each.is_segment for each in objects)
    report.segments += segments
    report.chunks += len(objects) - segments
    report.size += sum(sizes[each.key] for each in objects)


def _report_foreign(listed: list[ObjectInfo], report: CheckReport) -> None:
    """Report objects that aiovblk cannot have stored here."""
    for each in listed:
        if not is_key(each.path):
            reason = "is not part of the disk; another program has put it there"
            report.problems.append(f"{each.path} {reason}")


async def _check_contents(
    disk: StoredDisk, needed: Needed, report: CheckReport, advance: Callable[[int], object]
) -> None:
    """Read and decode all objects, and report those that are damaged."""
    sources = disk.sources

    async def check_object(stored: StoredObject) -> None:
        name, source = _name(disk, stored), sources[stored.origin]
        try:
            data = await source.objects.get(stored.key)
            await asyncio.to_thread(open_stored, source.codec, stored, data)
        except OSError as exc:
            report.problems.append(f"{name}: {exc}")
        advance(1)

    for objects in needed.values():
        in_order = await asyncio.to_thread(sorted, objects)
        await run_bounded((partial(check_object, each) for each in in_order), limit=_REQUESTS)


def _name(disk: StoredDisk, stored: StoredObject) -> str:
    """Return an object's key, with the ancestor's folder before it if it is not the disk's own."""
    if not stored.origin:
        return stored.key
    return f"{disk.manifest.origins[stored.origin - 1].path}/{stored.key}"
