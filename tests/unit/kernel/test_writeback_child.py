"""Write-back in a process of its own."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovblk.kernel import users
from aiovblk.kernel.writeback_child import sync_in_child

DISK = "ublkb1048575"  # of which no test has one


@pytest.fixture
def null() -> Iterator[int]:
    """A descriptor whose fsync fails."""
    fd = os.open("/dev/null", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_what_can_be_synced_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "stacked_mount_points", lambda disk: [str(tmp_path)])
    path = tmp_path / "node"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    sync_in_child(DISK, str(path), fd)
    os.close(fd)


def test_its_error_is_raised(null: int) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)) as caught:
        sync_in_child(DISK, "/dev/null", null)
    assert caught.value.errno == errno.EINVAL


def test_what_cannot_be_opened_there_is_left_out(null: int, tmp_path: Path) -> None:
    sync_in_child(DISK, str(tmp_path / "missing"), null)


def test_without_an_interpreter_it_is_done_here(
    null: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        sync_in_child(DISK, "/dev/null", null)


def test_one_that_dies_has_not_written(null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_in_child(DISK, "/dev/null", null)
