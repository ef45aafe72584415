"""The watchdog: a process that outlives this one, to disconnect its netlink devices if it dies.

The kernel keeps a device that was attached by netlink when its server dies, and programs that wait
for it hang, immune to SIGKILL. Nothing else would free it. (One that was attached by ioctl goes
with the thread in NBD_DO_IT.) For a device that is to survive its server, the watchdog waits some
seconds for the next server.

This module is the parent's side; the process runs :mod:`.watchdog_process`. They talk through a
pipe, in lines of text.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from .. import interpreter
from . import locks, sysfs

_PROGRAM = Path(__file__).with_name("watchdog_process.py")


class Watchdog:
    """The watchdog process for all devices of this process, started with the first one.

    Concurrency: any method may be called from any thread.

    Args:
        program: what it runs; None for the one of netlink devices.

    """

    def __init__(self, program: Path | None = None) -> None:
        self._program = program or _PROGRAM
        # Reentrant: garbage that is collected meanwhile may have a device, which is then left.
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._watched: dict[int, str] = {}
        self._may_outlive = False
        self._outliving: list[subprocess.Popen[bytes]] = []
        atexit.register(self._outlive)

    def reset_after_fork(self) -> None:
        """Forget everything, in a forked child: what is watched is its parent's."""
        if self._process is not None:
            assert self._process.stdin is not None  # it was made with a pipe
            self._process.stdin.close()
            self._process.returncode = 0  # it is no child of this process: Popen must not complain
        self._lock = threading.RLock()  # another thread may have had it
        self._process = None
        self._watched = {}
        self._may_outlive = False

    def watch_pending(self, thread: int) -> None:
        """Watch the device that a thread is about to attach, whichever it will be."""
        self._set(thread, f"+{thread}")

    def watch(self, thread: int, index: int, survive: float, owner_token: str = "") -> None:
        """Watch the device that a thread has attached.

        Args:
            thread: the thread that :meth:`watch_pending` was called with.
            index: N of /dev/nbdN.
            survive: seconds for another server to come after this process.
            owner_token: of the device's lock (:func:`.locks.owner_token`), which another server
                changes.

        """
        # The attaching thread by the number in /sys: in a container the thread has another number;
        # and of a device that was taken over it is another thread.
        attacher = sysfs.server_thread(index)
        self._set(thread, f"+{thread} {index} {attacher} {survive} {owner_token}")

    def forget(self, thread: int) -> None:
        """Stop watching what a thread has attached; the last one ends the watchdog process."""
        self._end(f"-{thread}", thread)

    def release_to_successor(self, thread: int) -> None:
        """Leave what a thread has attached to another server, as if this process had ended."""
        self._end(f"={thread}", thread)

    def _end(self, line: str, thread: int) -> None:
        with self._lock:
            if self._watched.pop(thread, None) is None or self._process is None:
                return
            self._send(line)
            self._may_outlive = self._may_outlive or line.startswith("=")
            if self._watched:
                return
            process, self._process = self._process, None
            assert process.stdin is not None  # it was made with a pipe
            if self._may_outlive:
                # The end of the pipe is not enough: a child that was forked when the pipe was made
                # may keep it open.
                with suppress(BrokenPipeError):
                    process.stdin.write(b".\n")
            else:
                # It has nothing to do any more, and may not even have started yet: that takes
                # seconds where many start at once, and an unmount waits for this.
                process.kill()
            process.stdin.close()
            if self._may_outlive:
                self._outliving.append(process)
            else:
                process.wait()
            self._may_outlive = False

    def _outlive(self) -> None:
        for process in self._outliving:
            process.returncode = 0  # left running on purpose: Popen must not complain

    def _set(self, thread: int, line: str) -> None:
        """Send a line about a thread; start the process if there is none, or it was killed."""
        with self._lock:
            self._outliving = [each for each in self._outliving if each.poll() is None]
            self._watched[thread] = line
            if self._process is not None and self._process.poll() is None:
                self._send(line)
                return
            self._process = _start(self._program)
            for each in self._watched.values():
                self._send(each)

    def _send(self, line: str) -> None:
        assert self._process is not None  # all callers have checked
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it was killed; the next mount starts another
            self._process.stdin.write(line.encode() + b"\n")


def _start(program: Path) -> subprocess.Popen[bytes]:
    # All signals are blocked, which is inherited: a signal that ends this process gracefully must
    # not end the watchdog before it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        return subprocess.Popen(
            # Without the package: that takes a tenth of the memory.
            interpreter.bare_command(str(program), str(os.getpid()), str(locks.LOCKS)),
            bufsize=0,
            stdin=subprocess.PIPE,
            # A program that reads this process's output must not wait for the watchdog as well.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            process_group=0,  # Ctrl-Z at a terminal must not stop it
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


watchdog = Watchdog()
"""The one of this process."""

os.register_at_fork(after_in_child=watchdog.reset_after_fork)
