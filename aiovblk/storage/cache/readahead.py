"""Who reads one line after the other, and what he will want next."""

from __future__ import annotations

_MAX_STREAMS = 64
"""How many are remembered; a random read looks like the beginning of one."""


class _Stream:
    """A reader that goes forward.

    Attributes:
        edge: the first line that was not fetched for it.
        window: how many lines were fetched ahead at the last time.

    """

    __slots__ = ("edge", "window")

    def __init__(self, edge: int) -> None:
        self.edge = edge
        self.window = 0


class ReadAhead:
    """What to fetch before it is asked for.

    A read that misses may be the beginning of a stream: one more read where it ended, and it is
    one. From then on, whenever the reader gets to the lines that were fetched for it last, the next
    ones are fetched, twice as many as before. Thus it costs a hit no more than a look whether its
    line is awaited, and nothing is fetched for a reader that has turned away.

    Args:
        most: lines to fetch at a time; 0 for no read-ahead.

    Attributes:
        awaited: the streams, by the line that has to be asked for to move them on.

    """

    def __init__(self, most: int) -> None:
        self.awaited: dict[int, _Stream] = {}
        self._max_ahead = most

    def demand(self, lines: range, *, missed: bool) -> range:
        """Take note of a read of these lines; returns those to fetch ahead, perhaps none."""
        if not self._max_ahead:
            return range(0)
        awaited = next((number for number in lines if number in self.awaited), None)
        if awaited is not None:
            return self._advance(self.awaited.pop(awaited), lines)
        if missed:
            self._wait_for(lines.stop, _Stream(lines.stop))
        return range(0)

    def _advance(self, stream: _Stream, lines: range) -> range:
        begin = max(stream.edge, lines.stop)
        stream.window = min(2 * max(stream.window, len(lines)), self._max_ahead)
        stream.edge = begin + stream.window
        self._wait_for(begin, stream)
        return range(begin, stream.edge)

    def _wait_for(self, number: int, stream: _Stream) -> None:
        self.awaited[number] = stream
        if len(self.awaited) > _MAX_STREAMS:
            del self.awaited[next(iter(self.awaited))]
