"""A process that outlives this one by as long as it takes to disconnect its devices.

The kernel keeps a device that was attached by netlink when its server dies, and whoever waits for
it hangs, immune to SIGKILL. Nobody else would free it. (One that was attached by ioctl goes with
the thread in NBD_DO_IT.)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from . import sysfs

_PROGRAM = Path(__file__).with_name("watchdog_main.py")


class Watchdog:
    """One for all devices of this process.

    Concurrency: any method may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._watched: dict[int, str] = {}

    def expect(self, thread: int) -> None:
        """Watch over the device that a thread is about to attach, whichever it will be."""
        self._set(thread, f"+{thread}")

    def watch(self, thread: int, index: int) -> None:
        """Watch over the device that a thread has attached."""
        # The thread as /sys knows it: in a container it has another number.
        self._set(thread, f"+{thread} {index} {sysfs.server_thread(index)}")

    def forget(self, thread: int) -> None:
        """Watch no longer over what a thread has attached; the last one ends the watchdog."""
        with self._lock:
            self._watched.pop(thread, None)
            if self._process is None:
                return
            self._tell(f"-{thread}")
            if not self._watched:
                process, self._process = self._process, None
                assert process.stdin is not None  # it was made with a pipe
                process.stdin.close()
                process.wait()

    def _set(self, thread: int, line: str) -> None:
        with self._lock:
            self._watched[thread] = line
            if self._process is not None and self._process.poll() is None:
                self._tell(line)
                return
            self._process = _start()
            for each in self._watched.values():
                self._tell(each)

    def _tell(self, line: str) -> None:
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
            [sys.executable, "-IS", str(_PROGRAM), str(os.getpid())],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            process_group=0,  # Ctrl-Z at a terminal is not for it
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


watchdog = Watchdog()
"""That of this process."""
