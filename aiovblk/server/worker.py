"""Clients that several processes serve: what each of them does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple

from ..dispatch import Stats
from ..events import Listener
from ..workers import Notify
from .clients import LocalClients
from .connection import Connection, Settings

REPORT_INTERVAL = 0.2
"""Seconds between reports of who is connected, and what happens, while there is some."""

MOST_REPORTS = 16
"""In one message, whose size has a limit: one may take 16 KiB, with a long name, and requests of
each kind that took times of each magnitude."""


MOST_EVENTS = 32
"""In one message, likewise: one may take little more than 5 KiB, with a long name."""


class Report(NamedTuple):
    """What the parent is told of a client."""

    number: int
    peer: str
    export: str | None
    stats: Stats


class ClientsService:
    """Some of a server's clients.

    Args:
        make_settings: makes what they have in common.
        tell: tells the parent.

    """

    def __init__(self, make_settings: Callable[[], Settings], tell: Notify) -> None:
        self._settings = make_settings()
        self._clients = LocalClients(self._settings, self._on_left)
        self._tell = tell
        self._reported: dict[int, Report] = {}
        self._events: Listener | None = None
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

    async def give_up(self) -> None:
        """Give up what is in flight."""
        self._clients.give_up()

    async def leave(self) -> None:
        """Let those who are left drain, as they would if the parent were there."""
        self._reporting.cancel()
        self._clients.stop()
        patience = asyncio.get_running_loop().call_later(
            self._settings.drain_timeout, self._clients.give_up
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
            self._tell("left")

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            self._report()

    def _report(self) -> None:
        connected = {each.number: each for each in self._clients.connected()}
        gone = self._reported.keys() - connected.keys()
        changed = [
            Report(number, each.peer, each.export, each.stats.copy())
            for number, each in connected.items()
            if not _is_told(self._reported.get(number), each)
        ]
        for number in gone:
            del self._reported[number]
            self._tell("gone", number)
        for first in range(0, len(changed), MOST_REPORTS):
            self._tell("clients", changed[first : first + MOST_REPORTS])
        self._reported |= {report.number: report for report in changed}
        if gone or changed:
            self._tell("stats", self._clients.stats())
        events = [] if self._events is None else self._events.take()
        for first in range(0, len(events), MOST_EVENTS):
            self._tell("events", events[first : first + MOST_EVENTS])


def _is_told(report: Report | None, client: Connection) -> bool:
    """Whether nothing has changed since."""
    return report is not None and report[1:] == (client.peer, client.export, client.stats)
