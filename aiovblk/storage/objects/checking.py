"""Check a disk for damage: missing objects, objects that do not belong to it, wrong checksums."""

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
    checkpoint_key,
    chunk_key,
    chunk_of,
    entry_parts,
    is_key,
)
from .state import DiskState

_REQUESTS = 16  # chunks that are read at the same time

Needed = dict[int, set[tuple[int, int]]]
"""Index and version of the chunks that states have, by the number of origin."""


@dataclass(slots=True)
class CheckReport:
    """What a check has found."""

    chunks: int = 0
    """Chunks that exist, and so were checked."""
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
        contents: whether to read all chunks, rather than only list them.
        advance: progress callback, called with the number of chunks read since the last call.

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


def _add(needed: Needed, state: DiskState) -> None:
    for index, entry in enumerate(state.chunks):
        if entry:
            origin, version = entry_parts(entry)
            needed.setdefault(origin, set()).add((index, version))


def _check_origins(disk: StoredDisk, needed: Needed, report: CheckReport) -> None:
    """Report chunks of ancestors that the manifest lacks; they cannot be looked for."""
    for origin in [each for each in needed if each > len(disk.manifest.origins)]:
        count = len(needed.pop(origin))
        report.problems.append(f"{MANIFEST} lacks ancestor {origin}, which has {count} chunks")


async def _check_presence(disk: StoredDisk, needed: Needed, report: CheckReport) -> None:
    """Report the needed chunks that no list has, and remove them from ``needed``."""
    for folder in (LOG, MAP):
        _report_foreign(await disk.objects.list_objects(folder), report)
    for origin, source in enumerate(disk.sources):
        if origin in needed or not origin:
            listed = await source.objects.list_objects(CHUNKS)
            chunks = needed.setdefault(origin, set())
            await asyncio.to_thread(_check_listed, disk, origin, chunks, listed, report)


def _check_listed(
    disk: StoredDisk,
    origin: int,
    chunks: set[tuple[int, int]],
    listed: list[ObjectInfo],
    report: CheckReport,
) -> None:
    if not origin:
        _report_foreign(listed, report)
    sizes = {chunk: each.size for each in listed if (chunk := chunk_of(each.path))}
    missing = chunks - sizes.keys()
    report.problems += [f"{_chunk_name(disk, origin, *each)} is missing" for each in missing]
    chunks -= missing
    report.chunks += len(chunks)
    report.size += sum(sizes[each] for each in chunks)


def _report_foreign(listed: list[ObjectInfo], report: CheckReport) -> None:
    """Report objects that aiovblk cannot have stored here."""
    for each in listed:
        if not is_key(each.path):
            reason = "is not part of the disk; another program has put it there"
            report.problems.append(f"{each.path} {reason}")


async def _check_contents(
    disk: StoredDisk, needed: Needed, report: CheckReport, advance: Callable[[int], object]
) -> None:
    """Read and decode all chunks, and report those that are damaged."""
    sources = disk.sources
    chunk_size = disk.manifest.chunk_size

    async def check_chunk(origin: int, index: int, version: int) -> None:
        key, name = chunk_key(index, version), _chunk_name(disk, origin, index, version)
        try:
            data = await sources[origin].objects.get(key)
            decode = partial(sources[origin].codec.open, longest=chunk_size)
            contents = await asyncio.to_thread(decode, key, data)
            if len(contents) != chunk_size:
                problem = f"{name} has {len(contents)} bytes instead of {chunk_size}"
                report.problems.append(problem)
        except OSError as exc:
            report.problems.append(f"{name}: {exc}")
        advance(1)

    for origin, chunks in needed.items():
        in_order = await asyncio.to_thread(sorted, chunks)
        await run_bounded(
            (partial(check_chunk, origin, *each) for each in in_order), limit=_REQUESTS
        )


def _chunk_name(disk: StoredDisk, origin: int, index: int, version: int) -> str:
    """Return a chunk's key, with the ancestor's folder before it if it is not the disk's own."""
    key = chunk_key(index, version)
    return key if not origin else f"{disk.manifest.origins[origin - 1].path}/{key}"
