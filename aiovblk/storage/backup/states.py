"""What a backup is, and how far an unfinished run has come: the two records that a target keeps.

A target holds states of a source. Each has a *point*: the name under which the source can tell what
differs from it (:class:`.SupportsDirtyBitmaps`). So the newest backup's point is the base of the
next one.

An unfinished run leaves a mixture: some ranges hold its state, others still that of the base, and
some may hold either. :class:`Progress` says for each range which states are possible there. The
next run copies what differs from *any* of them: what differs from none is right already, whichever
of them a block holds. So a run goes on where another was interrupted, even if the source has
changed since.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

NOTHING = ""
"""The point of a target that holds no backup: it may hold anything, so all is copied."""
UNKNOWN = None
"""The point of a state that the source cannot tell the differences from: it is compared."""

Point = str | None


@dataclass(frozen=True, slots=True)
class Backup:
    """A state of a source that a target holds."""

    name: str
    """The time in UTC, as ``20261130T130500Z``; of a second one in that second, with ``-2``."""
    time: float
    """When it was taken, in seconds since the epoch."""
    size: int
    """Bytes of the source then."""
    source: str
    """Identifies the source."""
    point: Point
    """The name under which the source can tell what differs from it; None if it has none. Of a
    snapshot of a disk in an object store ``NAME@SEQUENCE``, see :mod:`.numbered`."""

    def encode(self) -> bytes:
        """Encode it as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode what :meth:`encode` has made.

        Raises:
            ValueError, TypeError, KeyError: it is something else.

        """
        fields = json.loads(data)
        return cls(
            str(fields["name"]),
            float(fields["time"]),
            int(fields["size"]),
            str(fields["source"]),
            None if fields["point"] is None else str(fields["point"]),
        )


class Region(NamedTuple):
    """A range of a target, and the points of the states that it may hold."""

    begin: int
    end: int
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a target holds while its present state is no whole backup.

    Attributes:
        base: the name of the newest backup when the first of the unfinished runs began; None if
            there was none.
        source: identifies the source of all points.
        points: that of the base, then one for each run that has not finished, oldest first.
        marks: ``(end, number)``, ascending: up to ``end``, from the mark before, the target holds
            the state ``points[number]`` or, in part, that of a later run. What is behind the last
            mark holds that of the base, likewise.

    """

    base: str | None
    source: str
    points: tuple[Point, ...]
    marks: tuple[tuple[int, int], ...] = ()

    @classmethod
    def after(cls, latest: Backup | None, *, is_current: bool = True) -> Self:
        """Return the progress of no run yet.

        Args:
            latest: the newest backup.
            is_current: whether the target's present state is known to be that backup.

        """
        if latest is None:
            return cls(None, "", (NOTHING,))
        return cls(latest.name, latest.source, (latest.point if is_current else UNKNOWN,))

    def begin(self, source: str, point: Point) -> Self:
        """Return it with one more run, of the state ``point`` of ``source``."""
        points = self.points
        if source != self.source:
            points = tuple(each if each == NOTHING else UNKNOWN for each in points)
        return replace(self, source=source, points=(*points, point))

    def advance(self, end: int) -> Self:
        """Return it once the last run has copied, and flushed, all up to ``end``."""
        others = tuple(mark for mark in self.marks if mark[0] > end)
        return replace(self, marks=((end, len(self.points) - 1), *others))

    def resized(self, size: int, before: int) -> Self:
        """Return it once the target has been given another size: what is new holds nothing.

        Args:
            size: bytes.
            before: bytes that it had.

        """
        if size < before:
            marks = tuple((min(end, size), number) for end, number in self.marks)
            return replace(self, marks=marks)
        marks = tuple((end, number + 1) for end, number in self.marks)
        if not marks or marks[-1][0] < before:
            marks += ((before, 1),)
        return replace(self, points=(NOTHING, *self.points), marks=marks)

    def regions(self, size: int) -> Iterator[Region]:
        """Yield what ``size`` bytes held before the last run, which :meth:`begin` has added."""
        begin = 0
        for end, number in (*self.marks, (size, 0)):
            if begin < min(end, size):
                yield Region(begin, min(end, size), self.points[number:-1])
                begin = end

    def encode(self) -> bytes:
        """Encode it as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode what :meth:`encode` has made.

        Raises:
            ValueError, TypeError, KeyError: it is something else.

        """
        fields: dict[str, Any] = json.loads(data)
        marks = tuple((int(end), int(number)) for end, number in fields["marks"])
        points = tuple(fields["points"])
        if not points or any(not 0 <= number < len(points) for _, number in marks):
            raise ValueError("its marks do not fit its points")
        return cls(fields["base"], str(fields["source"]), points, marks)


def name_of(time: float) -> str:
    """Return the name of a backup that was taken at this time."""
    return f"{datetime.fromtimestamp(time, UTC):%Y%m%dT%H%M%SZ}"


def free_name(time: float, others: Iterable[str]) -> str:
    """Return the name for a backup of this time, which no other has, nor has had before.

    Args:
        time: when it was taken, in seconds since the epoch.
        others: the names that there are; at least that of the newest backup.

    """
    name = name_of(time)
    numbers = [int(match[1] or 1) for each in others if (match := _numbered(name, each))]
    return f"{name}-{max(numbers) + 1}" if numbers else name


def _numbered(name: str, other: str) -> re.Match[str] | None:
    return re.fullmatch(f"{name}(?:-([0-9]{{1,9}}))?", other)
