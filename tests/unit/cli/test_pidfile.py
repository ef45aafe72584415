"""``--pidfile``: written, replaced by others, and removed."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovblk.cli import pidfile as pidfiles
from aiovblk.cli.errors import SpecError

from ...support.command_process import end, line, running

pytestmark = [pytest.mark.deadline(120), pytest.mark.one_loop]  # they choose their own


async def test_pidfile_is_there_while_clients_can_connect(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1234567\n")
    path.chmod(0o600)
    arguments = ("serve", "memory:1M", "--socket", tmp_path / "s", "--pidfile", path)
    async with running(*arguments) as process:
        await line(process.stdout)
        assert path.read_text() == f"{process.pid}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        process.send_signal(signal.SIGTERM)
        assert (await end(process))[0] == 0
    assert list(tmp_path.iterdir()) == []


async def test_pidfile_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "pid"
    async with running("serve", "memory:1M", "--port", "0", "--pidfile", path) as process:
        status, output, errors = await end(process)
    assert (status, output) == (1, "")
    assert "No such file or directory" in errors


def test_pidfile_of_another_process_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pidfiles.pidfile(str(path)):
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_pidfile_that_is_gone_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pidfiles.pidfile(str(path)):
        path.unlink()


def test_pidfile_does_not_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("keep")
    (tmp_path / "pid").symlink_to(tmp_path / "target")
    with pidfiles.pidfile(str(tmp_path / "pid")):
        assert not (tmp_path / "pid").is_symlink()
    assert (tmp_path / "target").read_text() == "keep"


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pidfile_replaces_nothing_but_a_file(
    make: Callable[[Path], None], linked: bool, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    make(path)
    if linked:
        path = tmp_path / "link"
        path.symlink_to("pid")
    before = sorted(tmp_path.iterdir())
    with (
        pytest.raises(SpecError, match="which is no regular file: name another"),
        pidfiles.pidfile(str(path)),
    ):
        pass
    assert sorted(tmp_path.iterdir()) == before
    assert path.is_symlink() == linked


def test_pidfile_that_cannot_be_completed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with (
        pytest.raises(OSError, match="No space left"),
        pidfiles.pidfile(str(tmp_path / "pid")),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_mode_of_a_pidfile_is_not_set_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "chmod")
    with pidfiles.pidfile(str(tmp_path / "pid")):
        assert stat.S_IMODE((tmp_path / "pid").stat().st_mode) == 0o644


@pytest.mark.parametrize("replace", [os.mkfifo, lambda path: path.write_bytes(b"\xff\xfe")])
def test_whatever_has_replaced_a_pidfile_stays(
    replace: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    with pidfiles.pidfile(str(path)):
        path.unlink()
        replace(path)
    assert path.exists()


def test_pidfile_that_another_process_has_replaced_by_the_same_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pidfiles.pidfile(str(path)):
        (tmp_path / "other").write_text(path.read_text())
        (tmp_path / "other").replace(path)
    assert path.exists()
