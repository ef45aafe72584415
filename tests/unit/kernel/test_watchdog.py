"""The watchdog as a program, with another /sys and a netlink that only records."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiovblk.kernel import watchdog
from aiovblk.kernel.monitor import NetlinkMonitorThread

from ...support.kernel_tree import KernelTree

pytestmark = pytest.mark.slow

NETLINK = """
def disconnect(index):
    open({disconnected!r}, "a").write(f"{{index}} ")

def offer_connection(index, identity, ours, theirs):
    assert identity == f"volume {{index}}"
    return index != 4  # that one has a server
"""


@pytest.fixture
def disconnected(tmp_path: Path, tree: KernelTree) -> Path:
    """The file of disconnected indices; beside it the watchdog's program, for this tree."""
    disconnected = tmp_path / "disconnected"
    text = watchdog._PROGRAM.read_text()
    assert '"/sys/block"' in text
    program = tmp_path / "watchdog_process.py"
    text = text.replace('"/sys/block"', repr(str(tree.block)))
    program.write_text(text.replace("syslog.syslog(", f"open({str(disconnected)!r}, 'a').write("))
    (tmp_path / "netlink.py").write_text(NETLINK.format(disconnected=str(disconnected)))
    for index, thread in enumerate((100, 101, 102, None, 104)):
        directory = tree.device(f"nbd{index}", f"43:{index * 32}", thread=thread)
        tree.write(directory / "backend", f"volume {index}\n")
    disconnected.touch()
    return disconnected


def parent(disconnected: Path, tree: KernelTree, code: str) -> tuple[int, set[int]]:
    """Run a parent; its exit status, and what was disconnected once its watchdog has ended too."""
    begin = f"""
import os, signal, subprocess
from functools import partial
from pathlib import Path
from aiovblk.kernel import sysfs, watchdog

watchdog._PROGRAM = Path({str(disconnected.with_name("watchdog_process.py"))!r})
sysfs.SYS_BLOCK = Path({str(tree.block)!r})
dog = watchdog.Watchdog()
"""
    # The watchdog has this pipe for as long as it lives.
    reading, writing = os.pipe()
    begin += f"subprocess.Popen = partial(subprocess.Popen, pass_fds=[{writing}])\n"
    command = [sys.executable, "-c", begin + code]
    done = subprocess.run(command, pass_fds=[writing], timeout=20, check=False)
    os.close(writing)
    with open(reading, "rb") as lives:
        lives.read()
    return done.returncode, set(map(int, disconnected.read_text().split()))


WATCH = """
dog.watch_pending(100)         # and whatever it attaches
dog.watch(101, 1, 0)
dog.watch(102, 2, 0)
dog.watch(103, 3, 0)       # detached by another process
dog.watch_pending(999)         # attached nothing
dog.forget(102)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os._exit(0)", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_what_a_dead_parent_leaves_is_disconnected(
    disconnected: Path, tree: KernelTree, end: str, status: int
) -> None:
    assert parent(disconnected, tree, WATCH + end) == (status, {0, 1})


@pytest.mark.parametrize("number", [errno.ESRCH, errno.EINVAL])
def test_a_parent_that_is_gone_before_the_watchdog_looks(
    number: int, disconnected: Path, tree: KernelTree
) -> None:
    """EINVAL is said of a session's leader, whose number lives on with it: so under systemd."""
    program = disconnected.with_name("watchdog_process.py")
    text = program.read_text()
    assert "os.pidfd_open(parent)" in text
    text = text.replace("os.pidfd_open(parent)", "gone()")
    gone = f"def gone() -> int:\n    raise OSError({number}, 'gone')\n\n\ndef main("
    program.write_text(text.replace("def main(", gone))
    assert parent(disconnected, tree, WATCH + "os._exit(0)") == (0, {0, 1})


@pytest.mark.parametrize("error", ["OSError(38, 'forbidden')", "TypeError('a bug')"])
def test_a_watchdog_that_cannot_wait_for_its_parent_itself_waits_for_the_end_of_its_input(
    error: str, disconnected: Path, tree: KernelTree
) -> None:
    program = disconnected.with_name("watchdog_process.py")
    text = program.read_text().replace("os.pidfd_open(parent)", "fail()")
    text = text.replace(f"open({str(disconnected)!r}, 'a').write(", "print(")  # for syslog
    fail = f"def fail() -> int:\n    raise {error}\n\n\ndef main("
    program.write_text(text.replace("def main(", fail))
    assert parent(disconnected, tree, WATCH + "os._exit(0)") == (0, {0, 1})


def test_a_parent_that_detaches_all_ends_its_watchdog(disconnected: Path, tree: KernelTree) -> None:
    code = """
dog.watch(101, 1, 0)
process = dog._process
dog.forget(101)
dog.forget(101)
assert process.returncode is not None
dog.watch(100, 0, 0)
dog.forget(100)
"""
    assert parent(disconnected, tree, code) == (0, set())


def test_an_unmount_does_not_wait_for_a_watchdog_to_start(
    disconnected: Path, tree: KernelTree
) -> None:
    disconnected.with_name("watchdog_process.py").write_text("import time\ntime.sleep(1000)\n")
    assert parent(disconnected, tree, "dog.watch(100, 0, 0)\ndog.forget(100)") == (0, set())


def test_signals_do_not_end_it_and_a_killed_one_is_replaced(
    disconnected: Path, tree: KernelTree
) -> None:
    code = """
dog.watch(100, 0, 0)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    os.kill(dog._process.pid, number)
assert os.getpgid(dog._process.pid) != os.getpgid(0)
os.kill(dog._process.pid, signal.SIGKILL)
dog._process.wait()
dog.forget(5)
dog.watch(101, 1, 0)
os._exit(0)
"""
    assert parent(disconnected, tree, code) == (0, {0, 1})


def test_without_a_watchdog_nothing_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(watchdog.watchdog, "watch_pending", refuse)
    with pytest.raises(PermissionError):
        NetlinkMonitorThread(lambda: 0, survive=0)


def test_what_is_to_survive_is_disconnected_later_unless_it_is_served(
    disconnected: Path, tree: KernelTree
) -> None:
    code = """
dog.watch(100, 0, 0.3)
dog.watch(101, 1, 0.1)
dog.watch(102, 2, 0)
dog.watch(104, 4, 0.2)
os._exit(0)
"""
    assert parent(disconnected, tree, code) == (0, {0, 1, 2})
    assert disconnected.read_text() == "2 1 0 "


def test_what_another_server_has_taken_over_is_left_to_it(
    disconnected: Path, tree: KernelTree
) -> None:
    locks = disconnected.parent / "locks"
    locks.mkdir()
    (locks / "nbd0.lock").write_text("1:first\n")
    (locks / "nbd1.lock").write_text("2:second\n")
    code = f"""
from aiovblk.kernel import locks
locks.LOCKS = Path({str(locks)!r})
dog.watch(100, 0, 0.1, "1:first")
dog.watch(101, 1, 0.1, "1:first")
os._exit(0)
"""
    assert parent(disconnected, tree, code) == (0, {0})


def test_what_is_left_is_freed_while_its_parent_goes_on(
    disconnected: Path, tree: KernelTree
) -> None:
    program = disconnected.with_name("watchdog_process.py")
    text = program.read_text()
    assert "HANDOVER_TIMEOUT = 10.0" in text
    program.write_text(text.replace("HANDOVER_TIMEOUT = 10.0", "HANDOVER_TIMEOUT = 0.1"))
    code = f"""
import time
dog.watch(100, 0, 0)
dog.watch(101, 1, 0)
dog.watch(104, 4, 0)
dog.release_to_successor(101)
dog.release_to_successor(104)
while Path({str(disconnected)!r}).read_text() != "1 ":
    time.sleep(0.01)
dog.release_to_successor(100)  # the last, and nothing waits for it
assert dog._process is None
"""
    assert parent(disconnected, tree, code) == (0, {0, 1})
