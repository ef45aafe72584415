"""Events of a mount or a server: ``async for event in mount.events()``, ``server.events()``.

An event is a small frozen dataclass. A new kind of event is another subclass of :class:`Event`, and
a call of :meth:`EventBroadcaster.publish` where it happens; nothing else has to change.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from time import time as now

MAX_QUEUED_EVENTS = 1024
"""Most events in the queue of one listener; beyond that, the oldest are dropped."""


@dataclass(frozen=True, slots=True)
class Event:
    """Base class of all events."""

    time: float = field(default_factory=now, kw_only=True)
    """When it happened; seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Attached(Event):
    """The device is live. The first event of each listener, whenever it subscribes."""

    path: str
    """The device node."""


@dataclass(frozen=True, slots=True)
class ConnectionLost(Event):
    """A connection to the kernel ended unexpectedly."""

    connection: int
    """The number of the connection, counted from 1."""
    connections: int
    """How many the device was attached with. If all of them are lost, the mount ends."""
    reason: str


@dataclass(frozen=True, slots=True)
class ConnectionRestored(Event):
    """A lost connection was reconnected; the kernel sends its requests in flight again."""

    connection: int
    """The number of the connection, counted from 1."""
    connections: int
    """How many the device has."""


@dataclass(frozen=True, slots=True)
class Detached(Event):
    """The device was left attached, for another server to take over. The last event but one."""


@dataclass(frozen=True, slots=True)
class Resized(Event):
    """The device was resized."""

    size: int
    """The new size in bytes."""


@dataclass(frozen=True, slots=True)
class RequestEvent(Event):
    """Base class of events about one request. What only a server knows is None for a mount."""

    command: str
    """``read``, ``write``, ``flush`` and so on."""
    offset: int
    """Bytes."""
    length: int
    """Bytes."""
    client: int | None = field(default=None, kw_only=True)
    """The client that sent it, as in :class:`ClientConnected`."""
    peer: str | None = field(default=None, kw_only=True)
    """The address of that client."""
    export: str | None = field(default=None, kw_only=True)
    """The name of the export."""


@dataclass(frozen=True, slots=True)
class SlowRequest(RequestEvent):
    """A handler has been running for longer than ``slow_request``. Once for each request."""

    seconds: float
    """How long it has been running."""


@dataclass(frozen=True, slots=True)
class RequestFailed(RequestEvent):
    """A request was answered with an error, by its handler or by validation."""

    errno: int
    """The error value of the reply: one of those in the NBD specification."""
    reason: str = field(default="", kw_only=True)
    """Why: class and text of the exception that its handler raised; at most 300 characters."""


@dataclass(frozen=True, slots=True)
class Unmounting(Event):
    """The device is about to be unmounted, for any reason."""


@dataclass(frozen=True, slots=True)
class Unmounted(Event):
    """The mount has ended. The last event."""

    failure: BaseException | None
    """What :meth:`Mount.wait` raises; None for a regular unmount."""


@dataclass(frozen=True, slots=True)
class ClientConnected(Event):
    """A client of a server has completed the handshake, and may send requests."""

    client: int
    """The number of its connection; all that were ever accepted are counted from 1."""
    peer: str
    """The address of the client, in words."""
    export: str
    """The name of the export that it uses."""
    tls: bool
    """Whether the connection is protected by TLS."""


@dataclass(frozen=True, slots=True)
class ClientDisconnected(Event):
    """A client is disconnected: all its requests are answered or abandoned."""

    client: int
    """The number of its connection, as in :class:`ClientConnected`."""
    peer: str
    export: str
    reason: str | None
    """What went wrong; None if the client disconnected as the protocol says, or was disconnected by
    a graceful shutdown."""


@dataclass(frozen=True, slots=True)
class ClientRefused(Event):
    """A client was rejected, or left the handshake because a request of it was refused.

    There is no event for a client that leaves the handshake without that, after a list of exports,
    say.
    """

    client: int
    """The number of its connection, counted with those of :class:`ClientConnected`."""
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerClosing(Event):
    """A server begins to drain (graceful shutdown): no more clients, no more requests."""


@dataclass(frozen=True, slots=True)
class ServerClosed(Event):
    """A server has ended, as :meth:`Server.wait` waits for. The last event."""


@dataclass(frozen=True, slots=True)
class EventsDropped(Event):
    """Events were dropped at this place of the stream, since the listener was too slow."""

    count: int
    """How many events were dropped."""


class EventStream(AsyncIterator[Event]):
    """Iterate over events from now on, until the mount or server ends: the queue of one listener.

    Concurrency: one task at a time. Cancellation: safe; no event is lost.
    """

    def __init__(self, first: Iterable[Event] = (), *, limit: int = MAX_QUEUED_EVENTS) -> None:
        """Begin with the events of ``first``; queue at most ``limit``."""
        self._queue = deque(first)
        self._limit = limit
        self._dropped = 0
        self._ended = False
        self._ready = asyncio.Event()

    async def __anext__(self) -> Event:
        """Return the next event; wait for it if necessary."""
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return self._next()

    def drain(self) -> list[Event]:
        """Return all queued events without waiting."""
        return [self._next() for _ in range(len(self._queue) + bool(self._dropped))]

    def _next(self) -> Event:
        if self._dropped:
            dropped, self._dropped = EventsDropped(self._dropped), 0
            return dropped
        return self._queue.popleft()

    def put(self, event: Event) -> None:
        """Queue an event; called by the broadcaster. If the queue is full, drop the oldest."""
        if len(self._queue) == self._limit:
            oldest = self._queue.popleft()
            self._dropped += oldest.count if isinstance(oldest, EventsDropped) else 1
        self._queue.append(event)
        self._ready.set()

    def close(self) -> None:
        """End the stream after the queued events; called by the broadcaster."""
        self._ended = True
        self._ready.set()


class EventBroadcaster:
    """Publish events to all listeners, without waiting; listeners are referenced weakly."""

    def __init__(self) -> None:
        self._listeners: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self._first: Event | None = None
        self._ended = False

    @property
    def has_listeners(self) -> bool:
        """Whether there are listeners, so that it is worthwhile to create an event."""
        return bool(self._listeners)

    def publish(self, event: Event, *, first: bool = False) -> None:
        """Publish an event to all listeners.

        Args:
            event: the event.
            first: whether later subscribers get it too, as their first event.

        """
        if first:
            self._first = event
        for listener in self._listeners:
            listener.put(event)

    def close(self) -> None:
        """End the streams of all listeners: there will be no more events."""
        self._ended = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()  # an abandoned handler may still fail later

    def subscribe(self) -> EventStream:
        """Return a stream of the events from now on; after :meth:`close` an empty one."""
        if self._ended:
            listener = EventStream()
            listener.close()
            return listener
        listener = EventStream([] if self._first is None else [self._first])
        self._listeners.add(listener)
        return listener
