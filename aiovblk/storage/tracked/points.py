"""Named points and the intervals between them, as pure functions of a header.

Invariants:

* Intervals follow each other in time. What changed since a point is the union of the bitmaps from
  its interval to the last one. So a write sets a bit in one bitmap, however many points there are.
* The last interval lasts until now; all others are frozen: no bit of them is set any more.
* The first interval begins at a point. Others may have lost theirs; two frozen ones, of which the
  later has none, can be united.
* A point without an interval stands for "everything": nothing is known about it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ...errors import StorageError
from .header import SLOTS, Header, Interval, PointRecord

MAX_POINTS = 64
"""Named points of a device."""

_MAX_NAME = 200  # bytes; so that the header fits into its place


@dataclass(frozen=True, slots=True)
class Point:
    """A named point in time of a device."""

    name: str
    time: float
    """Seconds since the epoch, when it was added."""
    dirty: int
    """Bytes that count as written since then."""


def add(header: Header, name: str, time: float, slot: int | None) -> Header:
    """Add a point.

    Args:
        header: to which it is added.
        name: a new one.
        time: seconds since the epoch.
        slot: for the interval that begins; None to begin at the same time as the last one.

    """
    intervals = header.intervals
    if slot is not None:
        # Bits are set in the one that ends until this is durable.
        intervals = (*without_checksum(header).intervals, Interval(slot))
    point = PointRecord(time, len(intervals) - 1)
    return replace(header, intervals=intervals, points={**header.points, name: point})


def drop(header: Header, name: str) -> Header:
    """Drop a point, and the intervals that no point needs any more.

    Raises:
        KeyError: there is none of this name.

    """
    point(header, name)
    left = {each: record for each, record in header.points.items() if each != name}
    return _without_needless(replace(header, points=left))


def merge(header: Header, target: str, sources: Iterable[str]) -> Header:
    """Let a point count as dirty what any of the others does: it moves to the earliest of them.

    Raises:
        KeyError: there is no such point.

    """
    indices = [point(header, name).interval for name in (target, *sources)]
    earliest = None if None in indices else min(each for each in indices if each is not None)
    moved = replace(header.points[target], interval=earliest)
    return _without_needless(replace(header, points={**header.points, target: moved}))


def everything(header: Header) -> Header:
    """Let all count as dirty, for each point."""
    points = {name: replace(each, interval=None) for name, each in header.points.items()}
    return replace(header, points=points, intervals=(), open=())


def point(header: Header, name: str) -> PointRecord:
    """Return a point; KeyError, fit to be shown, if there is none of this name."""
    try:
        return header.points[name]
    except KeyError:
        known = ", ".join(sorted(header.points)) or "none"
        raise KeyError(f"there is no point {name!r}; there are: {known}") from None


def without_checksum(header: Header, index: int = -1) -> Header:
    """Let the bitmap of an interval change, by default that of the last one, if there is any."""
    intervals = list(header.intervals)
    if intervals:
        intervals[index] = replace(intervals[index], checksum=None)
    return replace(header, intervals=tuple(intervals))


def free_slot(header: Header) -> int:
    """Return a slot that no interval has.

    Raises:
        StorageError: all are in use.

    """
    taken = {each.slot for each in header.intervals}
    for slot in range(SLOTS):
        if slot not in taken:
            return slot
    raise StorageError(
        errno.ENOSPC, f"there are {SLOTS} points with changes between them: drop one that is old"
    )


def removable(header: Header) -> int | None:
    """Return the index of a frozen interval that can be united with the one before it."""
    begins = {each.interval for each in header.points.values()}
    frozen = range(1, len(header.intervals) - 1)
    return next((index for index in frozen if index not in begins), None)


def united(header: Header, index: int) -> Header:
    """Remove an interval whose bits the one before it has as well."""
    return _reindexed(header, [each for each in range(len(header.intervals)) if each != index])


def check_new_name(header: Header, name: str) -> None:
    """Refuse a name that a new point cannot have.

    Raises:
        TypeError, ValueError: it is no such name, or taken.
        StorageError: there are too many points.

    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a point must be a str, not {name!r}")
    if not 0 < len(name.encode(errors="replace")) <= _MAX_NAME or not name.isprintable():
        raise ValueError(
            f"the name of a point must have 1 to {_MAX_NAME} bytes of printable characters,"
            f" not {name!r}"
        )
    if name in header.points:
        raise ValueError(f"there is a point {name!r} already: drop it, or take another name")
    if len(header.points) >= MAX_POINTS:
        raise StorageError(errno.ENOSPC, f"there are {MAX_POINTS} points: drop one")


def _without_needless(header: Header) -> Header:
    begins = [each.interval for each in header.points.values() if each.interval is not None]
    first = min(begins, default=len(header.intervals))
    return _reindexed(header, range(first, len(header.intervals)))


def _reindexed(header: Header, kept: Sequence[int]) -> Header:
    """Keep some of the intervals, and all points, which begin at none of the others."""
    new = {index: number for number, index in enumerate(kept)}
    points = {
        name: each if each.interval is None else replace(each, interval=new[each.interval])
        for name, each in header.points.items()
    }
    intervals = tuple(header.intervals[index] for index in kept)
    return replace(header, intervals=intervals, points=points)
