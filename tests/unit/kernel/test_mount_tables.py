"""Mount tables are read once for all threads that ask meanwhile, and after they have asked."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future

import pytest

from aiovblk.kernel import mount_tables
from aiovblk.threads import run_in_daemon_thread


class Scans:
    """Stands for the look at all processes: each scan waits until it may go on."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.proceed = threading.Semaphore(0)
        self.count = 0

    def read(self) -> list[bytes]:
        self.count += 1
        self.begun.release()
        self.proceed.acquire()
        return [b"%d" % self.count]


class CountingLock:
    """A lock that says when another thread has come to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.arrived = threading.Semaphore(0)

    def __enter__(self) -> None:
        self.arrived.release()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Scans:
    made = Scans()
    monkeypatch.setattr(mount_tables, "_read_tables", made.read)
    return made


@pytest.fixture
def shared() -> mount_tables._SharedScan:
    made = mount_tables._SharedScan()
    made._scanning = CountingLock()  # type: ignore[assignment]  # of which it needs no more
    return made


def ask(shared: mount_tables._SharedScan) -> Future[list[bytes]]:
    """Have a thread ask, and wait until it waits for its turn."""
    asking = run_in_daemon_thread(shared.tables)
    assert isinstance(shared._scanning, CountingLock)
    shared._scanning.arrived.acquire()
    return asking


def test_those_who_ask_during_a_scan_share_the_next(
    scans: Scans, shared: mount_tables._SharedScan
) -> None:
    first = ask(shared)
    scans.begun.acquire()
    others = [ask(shared) for _ in range(20)]
    scans.proceed.release(2)
    assert first.result() == [b"1"]
    assert {each.result()[0] for each in others} == {b"2"}
    assert scans.count == 2


def test_what_was_read_before_is_read_again(scans: Scans, shared: mount_tables._SharedScan) -> None:
    scans.proceed.release(2)
    assert [ask(shared).result() for _ in range(2)] == [[b"1"], [b"2"]]
    assert shared._last == (0, [])  # nothing is kept that no thread waits for


def test_scan_that_fails_is_made_again_by_the_next_thread(
    scans: Scans, shared: mount_tables._SharedScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[bytes]:
        monkeypatch.setattr(mount_tables, "_read_tables", scans.read)
        scans.begun.release()
        scans.proceed.acquire()
        raise OSError("/proc is not there")

    monkeypatch.setattr(mount_tables, "_read_tables", fail)
    first = ask(shared)
    scans.begun.acquire()
    second = ask(shared)
    scans.proceed.release(2)
    with pytest.raises(OSError, match="is not there"):
        first.result()
    assert second.result() == [b"1"]


def test_child_of_a_fork_during_a_scan_scans_by_itself(
    scans: Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanning = run_in_daemon_thread(mount_tables._scan.tables)
    scans.begun.acquire()
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(mount_tables, "_read_tables", lambda: [b"the child's"])
        os._exit(mount_tables._scan.tables() != [b"the child's"])
    assert os.waitpid(child, 0)[1] == 0
    scans.proceed.release()
    assert scanning.result() == [b"1"]
