"""The lock of a Unix socket's path, with several processes that bind it at once."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiovblk import socketfile
from aiovblk.server import listeners


def leave_over(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


def test_lock_leaves_nothing_behind(path: Path) -> None:
    with socketfile.locked(str(path)):
        assert [each.name for each in path.parent.iterdir()] == ["socket.lock"]
        assert (path.parent / "socket.lock").stat().st_mode & 0o777 == 0o600
    assert not list(path.parent.iterdir())


def test_lock_is_had_by_one_at_a_time(path: Path) -> None:
    lock = f"{path}.lock"
    with socketfile.locked(str(path)):
        assert socketfile.try_to_take(lock) is None
    descriptor = socketfile.try_to_take(lock)
    assert descriptor is not None
    os.close(descriptor)
    os.unlink(lock)


def test_lock_whose_file_is_gone_is_no_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder removes the file while another process waits for it."""
    original = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        original(descriptor, operation)
        os.unlink(f"{path}.lock")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert socketfile.try_to_take(f"{path}.lock") is None


def test_lock_that_is_never_given_back_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketfile, "LOCK_TIMEOUT", 0)
    with (
        socketfile.locked(str(path)),
        pytest.raises(TimeoutError, match="cannot listen there: another process holds"),
    ):
        listeners.listen_unix(str(path))


def test_of_two_that_find_the_same_socket_left_over_one_listens(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_over(path)
    decided, may_go_on = threading.Event(), threading.Event()
    is_left_over, try_to_take = listeners._is_stale, socketfile.try_to_take

    def look(name: str) -> bool:
        found = is_left_over(name)
        if found:
            decided.set()
            assert may_go_on.wait(60)
        return found

    def try_in_vain(lock: str) -> int | None:
        taken = try_to_take(lock)
        if taken is None:
            may_go_on.set()  # the second is held up
        return taken

    monkeypatch.setattr(listeners, "_is_stale", look)
    monkeypatch.setattr(socketfile, "try_to_take", try_in_vain)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(listeners.listen_unix, str(path))
        assert decided.wait(60)
        second = threads.submit(listeners.listen_unix, str(path))
        with first.result(60), socket.socket(socket.AF_UNIX) as client:
            with pytest.raises(OSError, match="cannot listen there: Address already in use"):
                second.result(60)
            client.connect(str(path))


def test_socket_that_is_bound_and_does_not_listen_yet_is_not_taken_for_left_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, may_listen = threading.Event(), threading.Event()
    bind, try_to_take = listeners._bind, socketfile.try_to_take

    def bind_and_wait(sock: socket.socket, name: str) -> None:
        bind(sock, name)
        bound.set()
        assert may_listen.wait(60)

    def try_in_vain(lock: str) -> int | None:
        taken = try_to_take(lock)
        if taken is None:
            may_listen.set()
        return taken

    monkeypatch.setattr(listeners, "_bind", bind_and_wait)
    monkeypatch.setattr(socketfile, "try_to_take", try_in_vain)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(listeners.listen_unix, str(path))
        assert bound.wait(60)
        second = threads.submit(listeners.listen_unix, str(path))
        with first.result(60), pytest.raises(OSError, match="Address already in use"):
            second.result(60)


def test_of_many_that_race_one_listens(path: Path) -> None:
    def listen(_: int) -> socket.socket | None:
        try:
            return listeners.listen_unix(str(path))
        except OSError:
            return None

    with ThreadPoolExecutor(4) as threads:
        for _ in range(25):
            leave_over(path)
            listening_now = [each for each in threads.map(listen, range(4)) if each is not None]
            assert len(listening_now) == 1
            listening_now[0].close()
            path.unlink()
