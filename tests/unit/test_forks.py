"""What a forked child is left of its parent's descriptors."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import os, socket, tempfile
from aiovblk import forks
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
mine = forks.open("/proc/self/status")
closed = forks.withhold(os.open("/proc/self/status", os.O_RDONLY))
forks.close(closed)
again = os.open("/proc/self/status", os.O_RDONLY)
assert again == closed
assert in_child(lambda: is_nothing(mine) and not is_nothing(again))
assert in_child(lambda: not os.get_inheritable(mine))
assert in_child(lambda: forks.close(mine) is None)
assert not is_nothing(mine, again)
"""

SOCKETS = """
ours, theirs = map(forks.withhold_socket, socket.socketpair())
gone = forks.withhold_socket(socket.socket())
gone.close()
assert in_child(lambda: is_nothing(ours.fileno(), theirs.fileno()))
child = os.fork()
if child == 0:
    os.read(0, 1)
    os._exit(0)
theirs.close()
assert ours.recv(1) == b""  # though the child lives
"""

GRANDCHILD = """
mine = forks.withhold(os.open("/proc/self/status", os.O_RDONLY))

def look():
    forks.close(mine)
    own = forks.withhold(os.open("/proc/self/status", os.O_RDONLY))
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


@pytest.mark.parametrize("code", [FILES, SOCKETS, GRANDCHILD, WATCHDOG])
def test_a_child_is_left_nothing(code: str) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD + code], stdin=subprocess.PIPE) as parent:
        assert parent.wait(20) == 0
