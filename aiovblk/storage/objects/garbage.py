"""What is looked after from time to time: garbage, and damage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ...aio.gather import run_bounded
from .client import AnyStore, ObjectInfo, ObjectStoreClient
from .disk import StoredDisk
from .journal import Journal, record
from .keys import (
    CHUNKS,
    LOG,
    MANIFEST,
    MAP,
    checkpoint_key,
    chunk_key,
    chunk_of,
    entry_parts,
    is_key,
    sequence_of,
)
from .manifest import Manifest
from .records import Kind
from .state import DiskState

_CONCURRENCY = 500  # objects of one request to delete
_REQUESTS = 16  # chunks that are read at the same time
_DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Garbage:
    """What nothing needs."""

    objects: int
    size: int
    """Bytes."""


async def collect_garbage(
    store: AnyStore, path: str = "", *, key: bytes | None = None, delete: bool = True
) -> Garbage:
    """Delete what neither the disk nor a snapshot needs; the disk may be mounted meanwhile.

    A writer deletes what it replaces by itself. What remains: what crashed writers have stored in
    vain, and what was kept for snapshots that were dropped since.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        key: 32 bytes, if the disk is encrypted.
        delete: whether to delete it; else it is only counted.

    Raises:
        StorageError: the disk is damaged; nothing was deleted.

    """
    disk = await StoredDisk.open(store, path, key=key)
    journal = await disk.journal(writes=delete)
    if delete:
        await _release_clones(disk, journal)
    state = journal.state
    snapshots = _sequences(state)
    found = await asyncio.to_thread(
        _unused, await disk.objects.list_objects(CHUNKS), state, state.floor
    )
    for sequence in snapshots:
        try:
            snapshot = await journal.state_at(sequence)
        except FileNotFoundError:
            if sequence in _sequences(await disk.state()):
                raise
            continue  # it was dropped meanwhile
        found = await asyncio.to_thread(_unused, found, snapshot, state.floor)
    found += [
        each
        for each in await disk.objects.list_objects(MAP)
        if (number := sequence_of(each.path)) is not None
        and number < journal.checkpointed
        and number not in snapshots
    ]
    if delete:
        for first in range(0, len(found), _CONCURRENCY):
            await disk.objects.delete([each.path for each in found[first : first + _CONCURRENCY]])
    sizes = [each.size for each in found]
    if isinstance(disk.objects, ObjectStoreClient):
        sizes += await disk.objects.leftovers(("", LOG, MAP, CHUNKS), delete=delete)
    return Garbage(len(sizes), sum(sizes))


def _sequences(state: DiskState) -> set[int]:
    return {each.sequence for each in state.snapshots.values()}


def _unused(found: list[ObjectInfo], state: DiskState, floor: int) -> list[ObjectInfo]:
    """The chunks that a state has not, and that no writer is about to add: below the floor."""
    unused = []
    for each in found:
        chunk = chunk_of(each.path)
        if chunk is not None and chunk[1] < floor and not _has(state, *chunk):
            unused.append(each)
    return unused


def _has(state: DiskState, index: int, version: int) -> bool:
    return index < len(state.chunks) and state.chunks[index] == version


async def _release_clones(disk: StoredDisk, journal: Journal) -> None:
    """Take note of clones whose folder is gone."""
    for snapshot in list(journal.state.snapshots.values()):
        for identity, clone in list(snapshot.clones.items()):
            # One that is being made has no folder yet.
            if clone.time < time.time() - _DAY and not await _exists(disk, clone.path, identity):
                await journal.add(record(Kind.RELEASE, disk=identity))


async def _exists(disk: StoredDisk, path: str, identity: str) -> bool:
    try:
        data = await disk.root.subfolder(path).get(MANIFEST)
    except FileNotFoundError:
        return False
    return Manifest.decode(data).disk == identity


@dataclass(slots=True)
class CheckReport:
    """What a check has found."""

    chunks: int = 0
    """Objects that were looked at."""
    size: int = 0
    """Bytes of them, as they are stored."""
    problems: list[str] = field(default_factory=list)
    """What is wrong, one line each; none if all is well."""


async def check(
    store: AnyStore,
    path: str = "",
    *,
    key: bytes | None = None,
    contents: bool = True,
    advance: Callable[[int], object] = lambda count: None,
) -> CheckReport:
    """Find out whether everything is there that the disk and its snapshots need, and is intact.

    Nothing is changed. The disk should not be written to meanwhile, except by flushes that are few:
    what is replaced during the check is reported missing.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        key: 32 bytes, if the disk is encrypted.
        contents: whether to read all chunks, rather than to see that they exist.
        advance: called with how many chunks were looked at since it was last called.

    Raises:
        OSError: the store fails, or the disk's history is so damaged that it cannot be opened.

    """
    disk = await StoredDisk.open(store, path, key=key)
    journal = await disk.journal(writes=False)
    report = CheckReport()
    needed: Needed = {}
    await asyncio.to_thread(_add, needed, journal.state)
    for name, snapshot in journal.state.snapshots.items():
        try:
            state = await journal.state_at(snapshot.sequence)
        except OSError as exc:
            what = "is missing" if isinstance(exc, FileNotFoundError) else str(exc)
            report.problems.append(f"snapshot {name}: {checkpoint_key(snapshot.sequence)} {what}")
        else:
            await asyncio.to_thread(_add, needed, state)
    _check_origins(disk, needed, report)
    await _check_presence(disk, needed, report)
    if contents:
        await _check_contents(disk, needed, report, advance)
    report.problems.sort()
    return report


Needed = dict[int, set[tuple[int, int]]]  # index and version of chunks, by origin


def _add(needed: Needed, state: DiskState) -> None:
    for index, entry in enumerate(state.chunks):
        if entry:
            origin, version = entry_parts(entry)
            needed.setdefault(origin, set()).add((index, version))


def _check_origins(disk: StoredDisk, needed: Needed, report: CheckReport) -> None:
    """Report chunks of ancestors that the disk does not have; they are not looked for."""
    for origin in [each for each in needed if each > len(disk.manifest.origins)]:
        count = len(needed.pop(origin))
        report.problems.append(f"{MANIFEST} lacks ancestor {origin}, which has {count} chunks")


async def _check_presence(disk: StoredDisk, needed: Needed, report: CheckReport) -> None:
    """Look for what is needed in lists; only what is there is needed after that."""
    for folder in (LOG, MAP):
        _report_foreign(await disk.objects.list_objects(folder), report)
    for origin, source in enumerate(disk.sources):
        if origin in needed or not origin:
            found = await source.objects.list_objects(CHUNKS)
            chunks = needed.setdefault(origin, set())
            await asyncio.to_thread(_find_missing, disk, origin, chunks, found, report)


def _find_missing(
    disk: StoredDisk,
    origin: int,
    chunks: set[tuple[int, int]],
    found: list[ObjectInfo],
    report: CheckReport,
) -> None:
    if not origin:
        _report_foreign(found, report)
    sizes = {chunk: each.size for each in found if (chunk := chunk_of(each.path))}
    missing = chunks - sizes.keys()
    report.problems += [f"{_named(disk, origin, *each)} is missing" for each in missing]
    chunks -= missing
    report.chunks += len(chunks)
    report.size += sum(sizes[each] for each in chunks)


def _report_foreign(found: list[ObjectInfo], report: CheckReport) -> None:
    for each in found:
        if not is_key(each.path):
            reason = "is not part of the disk; somebody else has put it there"
            report.problems.append(f"{each.path} {reason}")


async def _check_contents(
    disk: StoredDisk, needed: Needed, report: CheckReport, advance: Callable[[int], object]
) -> None:
    sources = disk.sources
    longest = disk.manifest.chunk_size

    async def look(origin: int, index: int, version: int) -> None:
        name = chunk_key(index, version)
        try:
            data = await sources[origin].objects.get(name)
            unseal = partial(sources[origin].codec.open, longest=longest)
            found = await asyncio.to_thread(unseal, name, data)
            if len(found) != longest:
                report.problems.append(
                    f"{_named(disk, origin, index, version)} has {len(found)} bytes"
                )
        except OSError as exc:
            report.problems.append(f"{_named(disk, origin, index, version)}: {exc}")
        advance(1)

    for origin, chunks in needed.items():
        in_order = await asyncio.to_thread(sorted, chunks)
        await run_bounded((partial(look, origin, *each) for each in in_order), limit=_REQUESTS)


def _named(disk: StoredDisk, origin: int, index: int, version: int) -> str:
    name = chunk_key(index, version)
    return name if not origin else f"{disk.manifest.origins[origin - 1].path}/{name}"
