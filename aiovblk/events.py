"""What happens to a mount or a server: ``async for event in mount.events()``, ``server.events()``.

An event is a small frozen dataclass. Another kind is another subclass of :class:`Event`, and a
call of :meth:`EventBroadcaster.publish` where it happens; nothing else needs to know of it.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from time import time as now

MAX_QUEUED_EVENTS = 1024
"""Events that wait for one listener; of more, the oldest are dropped."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened."""

    time: float = field(default_factory=now, kw_only=True)
    """When; seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Attached(Event):
    """The device is live. What each listener hears first, whenever it begins."""

    path: str
    """The device node."""


@dataclass(frozen=True, slots=True)
class ConnectionLost(Event):
    """A connection to the kernel ended though nobody wanted it to."""

    connection: int
    """Which, counted from 1."""
    connections: int
    """How many the device was attached with. If all of them are lost, that is the end of the mount.
    """
    reason: str


@dataclass(frozen=True, slots=True)
class ConnectionRestored(Event):
    """A connection that was lost is made again; what was in flight on it is sent again."""

    connection: int
    """Which, counted from 1."""
    connections: int
    """How many there are."""


@dataclass(frozen=True, slots=True)
class Detached(Event):
    """The device was left attached, for another server to go on. The last event but one."""


@dataclass(frozen=True, slots=True)
class Resized(Event):
    """The device has another size."""

    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class RequestEvent(Event):
    """Something has happened to one request. What only a server knows is None for a mount."""

    command: str
    """``read``, ``write``, ``flush`` and so on."""
    offset: int
    """Bytes."""
    length: int
    """Bytes."""
    client: int | None = field(default=None, kw_only=True)
    """Whose it is, as in :class:`ClientConnected`."""
    peer: str | None = field(default=None, kw_only=True)
    """The address of that client."""
    export: str | None = field(default=None, kw_only=True)
    """What it is for."""


@dataclass(frozen=True, slots=True)
class SlowRequest(RequestEvent):
    """A handler has been running for longer than ``slow_request``. Told once for each."""

    seconds: float
    """For how long it has been running."""


@dataclass(frozen=True, slots=True)
class RequestFailed(RequestEvent):
    """A request was answered with an error, by its handler or before it reached one."""

    errno: int
    """The error value of the reply: one of those that the NBD specification has."""
    reason: str = field(default="", kw_only=True)
    """Why, in words: class and text of what its handler raised; at most 300 characters."""


@dataclass(frozen=True, slots=True)
class Unmounting(Event):
    """The device is about to be unmounted, for whatever reason."""


@dataclass(frozen=True, slots=True)
class Unmounted(Event):
    """The mount has ended. The last event."""

    failure: BaseException | None
    """What :meth:`Mount.wait` raises."""


@dataclass(frozen=True, slots=True)
class ClientConnected(Event):
    """A client of a server has agreed on an export, and may send requests."""

    client: int
    """Which: all that were ever accepted are counted from 1."""
    peer: str
    """Its address, in words."""
    export: str
    """The name of what it uses."""
    tls: bool
    """Whether the connection is protected by TLS."""


@dataclass(frozen=True, slots=True)
class ClientDisconnected(Event):
    """A client that was connected is gone: all it asked for is answered or given up."""

    client: int
    """Which, as in :class:`ClientConnected`."""
    peer: str
    export: str
    reason: str | None
    """None if it was in order: it disconnected as the protocol has it, or was told to leave."""


@dataclass(frozen=True, slots=True)
class ClientRefused(Event):
    """A client was turned away, or left when the handshake had not given it what it asked for.

    Who leaves the handshake of his own accord, having looked at the exports say, is not told of.
    """

    client: int
    """Which, counted with those of :class:`ClientConnected`."""
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerClosing(Event):
    """A server begins to drain: it takes no more clients, and no more requests."""


@dataclass(frozen=True, slots=True)
class ServerClosed(Event):
    """A server serves nobody any more, as :meth:`Server.wait` tells. The last event."""


@dataclass(frozen=True, slots=True)
class EventsDropped(Event):
    """Events were dropped here, since their listener was too slow."""

    count: int
    """How many."""


class EventStream(AsyncIterator[Event]):
    """One who hears what happens from now on, until the end.

    Concurrency: one task at a time. Cancellation: safe; nothing is lost.
    """

    def __init__(self, first: Iterable[Event] = (), *, limit: int = MAX_QUEUED_EVENTS) -> None:
        """Hear these events first; at most ``limit`` may wait."""
        self._queue = deque(first)
        self._limit = limit
        self._dropped = 0
        self._ended = False
        self._ready = asyncio.Event()

    async def __anext__(self) -> Event:
        """Wait for the next event."""
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return self._next()

    def drain(self) -> list[Event]:
        """What has not been heard yet."""
        return [self._next() for _ in range(len(self._queue) + bool(self._dropped))]

    def _next(self) -> Event:
        if self._dropped:
            missed, self._dropped = EventsDropped(self._dropped), 0
            return missed
        return self._queue.popleft()

    def put(self, event: Event) -> None:
        """Be told of one; called by the feed."""
        if len(self._queue) == self._limit:
            lost = self._queue.popleft()
            self._dropped += lost.count if isinstance(lost, EventsDropped) else 1
        self._queue.append(event)
        self._ready.set()

    def close(self) -> None:
        """Be told that there will be no more; called by the feed."""
        self._ended = True
        self._ready.set()


class EventBroadcaster:
    """Tells everybody who listens; nobody is waited for, and who is gone is forgotten."""

    def __init__(self) -> None:
        self._listeners: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self._first: Event | None = None
        self._ended = False

    @property
    def has_listeners(self) -> bool:
        """Whether anybody listens, for whom it would be worth to put an event together."""
        return bool(self._listeners)

    def publish(self, event: Event, *, first: bool = False) -> None:
        """Tell of an event.

        Args:
            event: what has happened.
            first: whether those who begin to listen later are to hear it too, before all else.

        """
        if first:
            self._first = event
        for listener in self._listeners:
            listener.put(event)

    def close(self) -> None:
        """Tell that nothing more will happen."""
        self._ended = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()  # a handler that was given up may fail later still

    def subscribe(self) -> EventStream:
        """Begin to listen, now. After the end, that is over at once."""
        if self._ended:
            listener = EventStream()
            listener.close()
            return listener
        listener = EventStream([] if self._first is None else [self._first])
        self._listeners.add(listener)
        return listener
