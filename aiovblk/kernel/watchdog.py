"""A process that outlives this one by as long as it takes to disconnect its devices.

The kernel keeps a device that was attached by netlink when its server dies, and whoever waits for
it hangs, immune to SIGKILL. Nobody else would free it. (One that was attached by ioctl goes with
the thread in NBD_DO_IT.) One that is to survive its server gets so many seconds for another to
come.
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
    """One for all devices of this process.

    Concurrency: any method may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._watched: dict[int, str] = {}
        self._may_outlive = False
        self._outliving: list[subprocess.Popen[bytes]] = []
        atexit.register(self._outlive)

    def reset_after_fork(self) -> None:
        """Know of nothing, in a child that a fork has made: what was watched is its parent's."""
        if self._process is not None:
            assert self._process.stdin is not None  # it was made with a pipe
            self._process.stdin.close()
            self._process.returncode = 0  # it is no child of this process, and not to be missed
        self._lock = threading.Lock()  # another thread may have had it
        self._process = None
        self._watched = {}
        self._may_outlive = False

    def watch_pending(self, thread: int) -> None:
        """Watch over the device that a thread is about to attach, whichever it will be."""
        self._set(thread, f"+{thread}")

    def watch(self, thread: int, index: int, survive: float, signature: str = "") -> None:
        """Watch over the device that a thread has attached.

        Args:
            thread: whose it is.
            index: N of /dev/nbdN.
            survive: seconds for another server to come when this one is gone.
            signature: that of the lock, which another server changes.

        """
        # The thread as /sys knows it: in a container it has another number; and of a device that
        # was taken over it is another thread.
        self._set(thread, f"+{thread} {index} {sysfs.server_thread(index)} {survive} {signature}")

    def forget(self, thread: int) -> None:
        """Watch no longer over what a thread has attached; the last one ends the watchdog."""
        self._end(f"-{thread}", thread)

    def release_to_successor(self, thread: int) -> None:
        """Act as if this process had ended now, as to what a thread has attached."""
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
                # Said, since some child may keep the pipe open that was forked when it was made.
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
            process.returncode = 0  # it was not forgotten, as Popen would complain

    def _set(self, thread: int, line: str) -> None:
        with self._lock:
            self._outliving = [each for each in self._outliving if each.poll() is None]
            self._watched[thread] = line
            if self._process is not None and self._process.poll() is None:
                self._send(line)
                return
            self._process = _start()
            for each in self._watched.values():
                self._send(each)

    def _send(self, line: str) -> None:
        assert self._process is not None  # whoever calls this has looked
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # somebody has killed it; the next mount starts another
            self._process.stdin.write(line.encode() + b"\n")


def _start() -> subprocess.Popen[bytes]:
    # Inherited: what ends this process in order must not end the watchdog before.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        return subprocess.Popen(
            # Without the package: that takes a tenth of the memory.
            interpreter.bare_command(str(_PROGRAM), str(os.getpid()), str(locks.LOCKS)),
            bufsize=0,
            stdin=subprocess.PIPE,
            # Whoever reads what this process prints must not wait for the watchdog as well.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            process_group=0,  # Ctrl-Z at a terminal is not for it
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


watchdog = Watchdog()
"""That of this process."""

os.register_at_fork(after_in_child=watchdog.reset_after_fork)
