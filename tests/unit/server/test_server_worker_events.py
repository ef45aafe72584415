"""Events of a server with a worker pool: reported by the workers, published by the parent."""

from __future__ import annotations

import errno
import os
import pickle
import signal
from functools import partial
from pathlib import Path

import pytest

from aiovblk.events import (
    ClientConnected,
    ClientDisconnected,
    ClientRefused,
    Event,
    RequestFailed,
    ServerClosed,
    ServerClosing,
    SlowRequest,
)
from aiovblk.protocol import Option, OptionReply
from aiovblk.protocol.options import serialize_info_request
from aiovblk.server.workers.pool import WorkerPool
from aiovblk.server.workers.service import MAX_EVENTS
from aiovblk.workers import messages
from aiovblk.workers.channel import MAX_MESSAGE

from ...support.network_client import MIB, READ, connected, serve, using, worker_pids
from ...support.polling import until
from ...support.server_events import LOCAL, NOT_THERE, everything, next_words, words
from ...support.worker_services import FileOfAll

pytestmark = pytest.mark.slow


@pytest.mark.deadline(120)
async def test_workers_report_their_clients_and_requests(path: Path, image: Path) -> None:
    factory = partial(FileOfAll, image)
    async with serve({"disk": factory}, unix=path, workers=2, slow_request=0.01) as server:
        events = server.events()
        async with connected(path) as client:
            await client.greet()
            replies = await client.ask(Option.GO, serialize_info_request("other", []))
            assert replies[-1][0] == OptionReply.ERR_UNKNOWN
        assert await next_words(events) == ("ClientRefused", 1, LOCAL, NOT_THERE)
        async with using(path) as client:
            assert await next_words(events) == ("ClientConnected", 2, LOCAL, "disk", False)
            assert (await client.call(READ, MIB, 512)).error == errno.EINVAL
            failed = await anext(events)
            assert words(failed) == ("RequestFailed", "read", MIB, 512, errno.EINVAL)
            assert isinstance(failed, RequestFailed)
            assert (failed.client, failed.peer, failed.export) == (2, LOCAL, "disk")
            client.send(READ, 512 * 14, 512)  # which is never answered
            assert (await next_words(events))[:4] == ("SlowRequest", "read", 512 * 14, 512)
            assert [each.number for each in server.connections] == [2]
            server.close(force=True)
            assert [name for name, *_ in await everything(events)] == [
                "ServerClosing",
                "RequestFailed",
                "ClientDisconnected",
                "ServerClosed",
            ]


@pytest.mark.deadline(120)
async def test_clients_of_a_lost_worker_are_published_as_disconnected(
    path: Path, image: Path
) -> None:
    async with serve(partial(FileOfAll, image), unix=path, workers=1) as server:
        events = server.events()
        async with using(path):
            assert (await next_words(events))[0] == "ClientConnected"
            [first] = worker_pids(server)
            os.kill(first, signal.SIGKILL)
            reason = f"worker process {first} was ended by SIGKILL"
            assert await next_words(events) == ("ClientDisconnected", 1, LOCAL, "", reason)
        pool = server._clients
        assert isinstance(pool, WorkerPool)
        await until(lambda: pool._slots[0].is_alive())
        async with using(path):
            assert await next_words(events) == ("ClientConnected", 2, LOCAL, "", False)


def test_a_message_holds_as_many_events_as_are_reported_at_once() -> None:
    peer = "[2001:0db8:0000:0000:0000:0000:0000:0001]:65535"
    events: list[Event] = [
        ClientDisconnected(1 << 62, peer, f"{number:04096}", "a reason" * 100)
        for number in range(MAX_EVENTS)
    ]
    assert len(pickle.dumps(messages.Notification("events", (events,)))) <= MAX_MESSAGE // 2


def test_events_travel_between_processes() -> None:
    for event in (
        ClientConnected(1, LOCAL, "disk", tls=True),
        ClientDisconnected(1, LOCAL, "disk", None),
        ClientRefused(1, LOCAL, NOT_THERE),
        ServerClosing(),
        ServerClosed(),
        SlowRequest("read", 0, 512, 31.4, client=1, peer=LOCAL, export="disk"),
    ):
        assert pickle.loads(pickle.dumps(event)) == event
