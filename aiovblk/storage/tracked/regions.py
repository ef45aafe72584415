"""Which regions of the device are open: where bits may be set that are not durable yet.

The bits of a *closed* region are durable. Before a bit is set in it, it is opened: the header that
says so is made durable. After a power failure everything in an open region counts as dirty, so
bits need no fsync of their own. (The write-intent bitmap of Linux's md is the model.)

Opening costs an fsync outside of the program's flushes, so it is done seldom: the first time all
regions are opened at once. They are closed when the regions in which bits are set have stayed the
same for a while, at most a quarter of those that are open; only these are left open. If others are
needed after that, as many more are opened each time as make the fsyncs a logarithm. Writes at
random never stay in few regions: then all remain open, and no fsync is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_CALM = 32
"""Flushes without a change of the recently used regions, before others are closed."""

_MOST_CALM = 4096
_GROWTH = 4


class OpenRegions:
    """The open regions, and the decision which to open or close, and when.

    Invariant: a bit that is set and not durable is in a region whose flag is set, and the durable
    header, or one that may replace it, names that region.

    Args:
        count: of the regions.
        opened: runs of regions that the durable header has as open.

    """

    def __init__(self, count: int, opened: Iterable[tuple[int, int]] = ()) -> None:
        self.flags = bytearray(count)
        for begin, end in opened:
            self.flags[begin:end] = b"\1" * (end - begin)
        self._recent = bytearray(count)
        self._wanted: set[int] = set()
        self._calm = 0
        self._needed_calm = _CALM
        self._step = count  # how many to open at once
        self._was_closed = False
        self._kept: bytearray | None = None  # while regions are being closed

    def are_open(self, first: int, last: int) -> bool:
        """Return whether all regions of a range are open."""
        if first == last:
            return bool(self.flags[first])
        return self.flags.find(0, first, last + 1) < 0

    def use(self, first: int, last: int) -> None:
        """Note that bits are set in these regions, which are open."""
        if not self._recent[first] or self._recent.find(0, first, last + 1) >= 0:
            self._recent[first : last + 1] = b"\1" * (last + 1 - first)
            self._calm = 0

    def want(self, first: int, last: int) -> None:
        """Ask for regions to be open in the next :meth:`plan`; none beyond the end of the device.

        It may have shrunk since the request was made that needs them.
        """
        self._wanted.update(range(first, min(last + 1, len(self.flags))))

    def plan(self) -> bytearray:
        """Return the flags that the next header should have."""
        flags, count, step = self.flags[:], len(self.flags), self._step
        for region in self._wanted:
            begin = region // step * step
            end = min(begin + step, count)
            flags[begin:end] = b"\1" * (end - begin)
        self._step = min(step * _GROWTH, count)
        return flags

    def opened(self, flags: bytearray) -> None:
        """Adopt a plan once it is durable."""
        self.flags = flags
        self._wanted = {region for region in self._wanted if not flags[region]}
        self._calm = 0

    def should_close(self) -> bool:
        """Note a flush of the program; return whether it is time to close regions."""
        self._calm += 1
        if self._calm < self._needed_calm or self._kept is not None:
            return False
        self._calm = 0
        is_worth = 0 < self.flags.count(1) >= _GROWTH * self._recent.count(1)
        if not is_worth:
            self._begin_generation()
        return is_worth

    def begin_closing(self) -> None:
        """Note which regions stay open; call it before the bits are made durable."""
        was_wrong = self._was_closed and 2 * self.flags.count(1) > len(self.flags)
        needed = self._needed_calm * 2 if was_wrong else self._needed_calm // 2
        self._needed_calm = max(_CALM, min(needed, _MOST_CALM))
        self._kept = self._recent[:]
        self._begin_generation()

    def finish_closing(self) -> None:
        """Close all others, in which no bit was set since; call it once the bits are durable."""
        assert self._kept is not None  # begin_closing() was called
        used = zip(self.flags, self._kept, self._recent, strict=True)
        self.flags = bytearray(flag & (kept | recent) for flag, kept, recent in used)
        self._kept = None
        self._was_closed = True
        self._step = 1

    def cancel_closing(self) -> None:
        """Leave all as it is, since the bits could not be made durable."""
        self._kept = None

    def _begin_generation(self) -> None:
        self._recent = bytearray(len(self.flags))
        self._calm = 0


def runs_of(flags: bytearray) -> Iterator[tuple[int, int]]:
    """Yield the runs of flags that are set: the first of each, and the one after it."""
    begin = flags.find(1)
    while begin >= 0:
        end = flags.find(0, begin)
        end = len(flags) if end < 0 else end
        yield begin, end
        begin = flags.find(1, end)
