"""Forked children get none of the protected descriptors of their parent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHILD = """
import os, socket, tempfile
from aiovblk import atfork
from aiovblk.kernel import watchdog

def in_child(look):
    child = os.fork()
    if child == 0:
        os._exit(0 if look() else 1)
    return os.waitpid(child, 0)[1] == 0

def is_nothing(*descriptors):
    return all(os.path.sameopenfile(each, nothing) for each in descriptors)

nothing = os.open(os.devnull, os.O_RDWR)
"""

FILES = """
mine = atfork.open_protected("/proc/self/status")
closed = atfork.protect_fd(os.open("/proc/self/status", os.O_RDONLY))
atfork.close_protected(closed)
again = os.open("/proc/self/status", os.O_RDONLY)
assert again == closed
assert in_child(lambda: is_nothing(mine) and not is_nothing(again))
assert in_child(lambda: not os.get_inheritable(mine))
assert in_child(lambda: atfork.close_protected(mine) is None)
assert not is_nothing(mine, again)
"""

SOCKETS = """
ours, theirs = map(atfork.protect_socket, socket.socketpair())
gone = atfork.protect_socket(socket.socket())
gone.close()
assert in_child(lambda: is_nothing(ours.fileno(), theirs.fileno()))
child = os.fork()
if child == 0:
    os.read(0, 1)
    os._exit(0)
theirs.close()
assert ours.recv(1) == b""  # though the child lives
"""

LOCK = """
import asyncio
from aiovblk.storage import FileDevice

with tempfile.NamedTemporaryFile() as file:
    file.truncate(4096)
    device = FileDevice(file.name)
    child = os.fork()
    if child == 0:
        os.read(0, 1)
        os._exit(0)
    asyncio.run(device.unmount())
    asyncio.run(FileDevice(file.name).unmount())  # though the child lives
"""

GRANDCHILD = """
mine = atfork.protect_fd(os.open("/proc/self/status", os.O_RDONLY))

def look():
    atfork.close_protected(mine)
    own = atfork.protect_fd(os.open("/proc/self/status", os.O_RDONLY))
    return in_child(lambda: is_nothing(own))

assert in_child(look)
"""

WATCHDOG = """
import warnings
warnings.simplefilter("error")
dog = watchdog.watchdog
dog.watch(1, 1000, 0)
process = dog._process

def look():
    assert dog._process is None
    dog.forget(1)
    dog.watch(2, 1000, 0)
    own = dog._process
    dog.forget(2)
    return own.returncode is not None

assert in_child(look)
with dog._lock:  # of whatever thread
    assert in_child(look)
assert process.poll() is None
child = os.fork()
if child == 0:
    os.read(0, 1)
    os._exit(0)
dog.forget(1)
assert process.returncode is not None  # though the child lives
"""


NETWORK = """
import asyncio, multiprocessing, sys, warnings
import aiovblk, uvloop
from aiovblk.storage import MemoryDevice

warnings.simplefilter("ignore")  # of forking with threads about

def sockets():
    # All that are open, but those of the loop's own.
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found[target] = int(name)
    return found

def listening():
    # TCP sockets that listen, whoever has them; 10 is TCP_LISTEN.
    with open("/proc/net/tcp") as table:
        lines = [line.split() for line in table]
    return {f"socket:[{words[9]}]" for words in lines if words[3] == "0A"}

async def main(path, workers):
    before = sockets()
    options = {"workers": 1} if workers else {}
    export = make if workers else MemoryDevice(1 << 20)
    async with aiovblk.serve(export, unix=path, host="127.0.0.1", port=0, **options) as server:
        async with aiovblk.connect(server.uris[0]) as one, aiovblk.connect(server.uris[-1]) as two:
            await one.read(0, 512)
            await two.read(0, 512)
            ours = {target: fd for target, fd in sockets().items() if target not in before}
            # Two that listen, two clients with their servers (or a worker's channel).
            assert len(ours) >= 5, ours
            assert in_child(lambda: not ours.keys() & sockets().keys()), ours
            assert ours.keys() <= sockets().keys()
            assert ours.keys() & listening()
            await one.read(0, 512)  # the parent goes on
            await two.read(0, 512)
            forked, has_forked = os.pipe()
            if os.fork() == 0:
                os.write(has_forked, b".")  # what it must not have is closed by now
                os.read(0, 1)
                os._exit(0)
            os.read(forked, 1)
            os.close(forked)
            os.close(has_forked)
    assert not os.path.exists(path)
    # Though the child lives. (Its port may be another's by now, so it is not tried to have it.)
    assert not ours.keys() & listening()

def make():
    return MemoryDevice(1 << 20, block_size=1)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(main(directory + "/socket", WORKERS))
"""


@pytest.mark.parametrize("workers", [False, True])
def test_a_child_is_left_no_socket_of_a_server_or_a_client(workers: bool, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(CHILD + NETWORK.replace("WORKERS", str(workers)))
    with subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE) as parent:
        assert parent.wait(50) == 0


@pytest.mark.parametrize("code", [FILES, SOCKETS, LOCK, GRANDCHILD, WATCHDOG])
def test_a_child_is_left_nothing(code: str) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD + code], stdin=subprocess.PIPE) as parent:
        assert parent.wait(20) == 0
