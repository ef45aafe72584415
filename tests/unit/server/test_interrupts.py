"""KeyboardInterrupt during a server's shutdown: the second Ctrl-C, as ``asyncio.Runner`` takes it.

It is raised wherever the main thread happens to be, after the first has begun the shutdown. Here
that is at the first line of one function after the other.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

import aiovblk
from aiovblk.server import server as server_module
from aiovblk.server.workers.pool import _WorkerSlot
from aiovblk.storage import MemoryDevice

from ...support.network_client import LoggingDevice, clients_of, serve, using
from ...support.sizes import by_size

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio, os, signal, sys, threading
import uvloop
import aiovblk
from aiovblk.protocol import Command, Option, Request, serialize_request
from aiovblk.protocol.options import serialize_info_request, serialize_option
from aiovblk.storage import MemoryDevice
import socket

# A shell that is no terminal's starts what it runs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
path, loop, where, number = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
package = os.path.dirname(aiovblk.__file__)
ready = threading.Event()
done = threading.Event()

class Slow(MemoryDevice):
    turn = asyncio.Lock()

    async def read(self, offset, length):
        if offset:
            # One by one, so that each has a reply, and a turn of the loop, of its own.
            async with self.turn:
                await asyncio.sleep(0.01)
        return await super().read(offset, length)

def interrupt_at(frame, event, argument):
    if not frame.f_code.co_filename.startswith(package):
        return None
    if frame.f_code.co_qualname != where:
        return None
    global number
    number -= 1
    if number:
        return None
    sys.settrace(None)
    done.set()
    raise KeyboardInterrupt

def client():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.sendall((3).to_bytes(4) + serialize_option(Option.GO, serialize_info_request("", [])))
    requests = [Request(0, Command.READ, at, at % 3 * 4096, 4096) for at in range(12)]
    sock.sendall(b"".join(map(serialize_request, requests)))  # all there when one is
    while sock.recv(1 << 16):
        pass

async def main():
    async with aiovblk.serve(Slow(1 << 20), unix=path, drain_timeout=3600) as server:
        threading.Thread(target=client, daemon=True).start()
        while not server.stats.in_flight:
            await asyncio.sleep(0)
        sys.settrace(interrupt_at)
        signal.raise_signal(signal.SIGINT)
        await server.wait()

factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
try:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
except KeyboardInterrupt:
    pass
sys.settrace(None)
print("interrupted" if done.is_set() else "never there")
sys.stdout.flush()
os._exit(0)
"""

# Where tasks do not start eagerly, requests that follow one that waits come from the queue.
REPLY = "ReplySender.add_waited" if sys.version_info >= (3, 12) else "ReplySender.reply"

PLACES = [
    (REPLY, 1),
    (REPLY, 3),
    ("ReplySender.send", 1),
    ("ReplySender.send", 2),
    ("Stats.record_replies", 1),
    ("RequestServer.serve", 2),
    ("Server.close", 1),
    ("Server.drain_and_close", 1),
    ("GracefulTask.__init__", 1),
    ("Server._finish_shutdown", 1),
    ("ServerConnection.stop", 1),
    ("ServerConnection._drain", 1),
    ("ServerConnection._close", 1),
    ("StreamProtocol.connection_lost", 1),
    ("LocalClients._on_end", 1),
    ("LocalClients.close", 1),
    ("OpenDevice.close", 1),
]


LOOPS = ["asyncio", "uvloop"]

# Each takes a process for two seconds: every place on either loop, and on both with --long.
CASES = [
    (where, number, loop)
    for index, (where, number) in enumerate(PLACES)
    for loop in by_size([LOOPS[index % 2]], LOOPS)
]


@pytest.mark.parametrize(("where", "number", "loop"), CASES)
def test_shutdown_completes_although_an_interrupt_hits_it_anywhere(
    where: str, number: int, loop: str, tmp_path: Path
) -> None:
    """With a drain timeout of an hour, which is not what ends it."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "socket"), loop, where, str(number)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


async def test_shutdown_completes_although_a_workers_disconnect_message_is_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when an interrupt hits the callback that processes a worker's message."""
    lost: list[str] = []
    original = _WorkerSlot._on_event

    def forget(slot: _WorkerSlot, name: str, arguments: tuple[object, ...]) -> None:
        if name == "left":
            lost.append(name)
        else:
            original(slot, name, arguments)

    monkeypatch.setattr(_WorkerSlot, "_on_event", forget)
    monkeypatch.setattr(server_module, "RECHECK_INTERVAL", 0.01)
    make = functools.partial(MemoryDevice, 1 << 20, block_size=512)
    async with aiovblk.serve(make, unix=path, workers=1, drain_timeout=3600), using(path) as client:
        assert await client.read(0, 512) == bytes(512)
    assert lost == ["left"]


async def test_shutdown_completes_although_a_disconnect_callback_is_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "RECHECK_INTERVAL", 0.01)
    async with serve(LoggingDevice(), unix=path) as server, using(path) as client:
        assert await client.read(0, 512) == bytes(512)
        (task,) = clients_of(server)._serving
        task.remove_done_callback(clients_of(server)._on_end)
        events = server.events()
    assert [type(event).__name__ async for event in events] == [
        "ServerClosing",
        "ClientDisconnected",
        "ServerClosed",
    ]
