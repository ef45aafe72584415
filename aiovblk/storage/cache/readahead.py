"""Detect sequential reads, and decide which lines to read ahead for them."""

from __future__ import annotations

_MAX_STREAMS = 64
"""Streams that are remembered; every random read that misses looks like the begin of one."""


class _Stream:
    """A sequential reader.

    Attributes:
        edge: the first line that was not read ahead for it.
        window: lines of its last read-ahead.

    """

    __slots__ = ("edge", "window")

    def __init__(self, edge: int) -> None:
        self.edge = edge
        self.window = 0


class ReadAhead:
    """Detects sequential reads, and returns which lines to fetch before they are requested.

    A read that misses may be the begin of a stream. If a second read continues where it ended, the
    stream is sequential. From then on, each time the reader reaches the lines of its last
    read-ahead, the next window is fetched, twice as large as the last one, up to ``max_window``.
    So a hit costs only a look whether its line is in ``awaited``, and nothing is fetched for a
    reader that has stopped.

    Args:
        max_window: lines of one read-ahead at most; 0 for no read-ahead.

    Attributes:
        awaited: the streams, by the line whose read continues them.

    """

    def __init__(self, max_window: int) -> None:
        self.awaited: dict[int, _Stream] = {}
        self._max_window = max_window

    def demand(self, lines: range, *, missed: bool) -> range:
        """Record a read of ``lines``; return the lines to read ahead, perhaps none.

        Args:
            lines: the lines of the read.
            missed: whether it has to wait for ``inner``, so that it may begin a stream.

        """
        if not self._max_window:
            return range(0)
        awaited = next((number for number in lines if number in self.awaited), None)
        if awaited is not None:
            return self._advance(self.awaited.pop(awaited), lines)
        if missed:
            self._await(lines.stop, _Stream(lines.stop))
        return range(0)

    def _advance(self, stream: _Stream, lines: range) -> range:
        """Return the next window of a stream."""
        begin = max(stream.edge, lines.stop)
        stream.window = min(2 * max(stream.window, len(lines)), self._max_window)
        stream.edge = begin + stream.window
        self._await(begin, stream)
        return range(begin, stream.edge)

    def _await(self, number: int, stream: _Stream) -> None:
        """Continue the stream when this line is read; forget the oldest one if there are many."""
        self.awaited[number] = stream
        if len(self.awaited) > _MAX_STREAMS:
            del self.awaited[next(iter(self.awaited))]
