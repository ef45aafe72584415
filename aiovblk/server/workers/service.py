"""Clients that several processes serve: what each of them does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple

from ...dispatch import Stats
from ...events import EventStream
from ...workers import Notify
from ..clients import LocalClients
from ..connection import ConnectionSettings, ServerConnection

REPORT_INTERVAL = 0.2
"""Seconds between reports of who is connected, and what happens, while there is some."""

MAX_REPORTS = 16
"""In one message, whose size has a limit: one may take 16 KiB, with a long name, and requests of
each kind that took times of each magnitude."""


MAX_EVENTS = 32
"""In one message, likewise: one may take little more than 5 KiB, with a long name."""


class ClientReport(NamedTuple):
    """What the parent is told of a client."""

    number: int
    peer: str
    export: str | None
    stats: Stats


class ClientService:
    """Some of a server's clients.

    Args:
        make_settings: makes what they have in common.
        tell: tells the parent.

    """

    def __init__(self, make_settings: Callable[[], ConnectionSettings], tell: Notify) -> None:
        self._settings = make_settings()
        self._clients = LocalClients(self._settings, self._on_left)
        self._notify = tell
        self._reported: dict[int, ClientReport] = {}
        self._events: EventStream | None = None
        self._alone = asyncio.Event()
        self._reporting = asyncio.create_task(self._report_regularly())

    async def listen(self) -> None:
        """Tell what happens from now on; until then nobody cares."""
        self._events = self._clients.listen()

    async def accept(self, number: int, sock: socket.socket) -> None:
        """Serve whoever is at the other end."""
        sock.setblocking(False)
        self._clients.accept(sock, number)

    async def stop_client(self, number: int) -> None:
        """Take no more requests of one."""
        for connection in self._clients.connected():
            if connection.number == number:
                connection.stop()

    async def stop(self) -> None:
        """Take no more requests; what is in flight is answered."""
        self._clients.stop()

    async def count(self) -> int:
        """How many there are; who has left was told of before."""
        return self._clients.count()

    async def cancel_handlers(self) -> None:
        """Give up what is in flight."""
        self._clients.cancel_handlers()

    async def shutdown(self) -> None:
        """Let those who are left drain, as they would if the parent were there."""
        self._reporting.cancel()
        self._clients.stop()
        patience = asyncio.get_running_loop().call_later(
            self._settings.drain_timeout, self._clients.cancel_handlers
        )
        while self._clients.count():
            self._alone.clear()
            await self._alone.wait()
        patience.cancel()
        self._settings.failures.close()
        self._settings.complaints.close()

    def _on_left(self) -> None:
        self._alone.set()
        try:
            self._report()
        finally:
            # Whatever becomes of the report: the parent waits for as many as it has handed over.
            self._notify("left")

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            self._report()

    def _report(self) -> None:
        connected = {each.number: each for each in self._clients.connected()}
        gone = self._reported.keys() - connected.keys()
        changed = [
            ClientReport(number, each.peer, each.export, each.stats.copy())
            for number, each in connected.items()
            if not _is_reported(self._reported.get(number), each)
        ]
        for number in gone:
            del self._reported[number]
            self._notify("gone", number)
        for first in range(0, len(changed), MAX_REPORTS):
            self._notify("clients", changed[first : first + MAX_REPORTS])
        self._reported |= {report.number: report for report in changed}
        if gone or changed:
            self._notify("stats", self._clients.stats())
        events = [] if self._events is None else self._events.drain()
        for first in range(0, len(events), MAX_EVENTS):
            self._notify("events", events[first : first + MAX_EVENTS])


def _is_reported(report: ClientReport | None, client: ServerConnection) -> bool:
    """Whether nothing has changed since."""
    return report is not None and report[1:] == (client.peer, client.export, client.stats)
