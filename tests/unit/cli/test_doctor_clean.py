"""Devices without a server are freed by ``aiovblk doctor --clean``."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from aiovblk import AttachError, DeviceBusyError, cli
from aiovblk.cli.doctor import clean, devices
from aiovblk.kernel import unmounting

from ...support.doctor_host import Host


class Taking:
    """Disconnects devices by force, or fails with a given error."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.error: AttachError | None = None
        self.ended: list[int] = []

    def take_away(self, index: int, path: str, tell: Callable[[str], Any]) -> None:
        tell("NBD_CLEAR_SOCK")
        if self.error is not None:
            raise self.error
        self.free(index)

    def end_openers(self, index: int, tell: Callable[[str], Any]) -> None:
        tell("SIGTERM to process 98 (sleep), which has it open")
        self.ended.append(index)
        self.free(index)

    def free(self, index: int) -> None:
        directory = self.host.tree.block / f"nbd{index}"
        self.host.tree.write(directory / "size", "0\n")
        (directory / "pid").unlink()


@pytest.fixture
def taking(host: Host, monkeypatch: pytest.MonkeyPatch) -> Taking:
    made = Taking(host)
    monkeypatch.setattr(unmounting, "force_disconnect", made.take_away)
    monkeypatch.setattr(unmounting, "kill_openers", made.end_openers)
    host.tree.kernel_threads("nbd0")
    host.attach(0)
    host.attach(1)
    return made


def run_clean(*options: str) -> int:
    return cli.main(["doctor", "--clean", *options])


def test_zombie_is_freed_and_a_live_device_is_not(
    taking: Taking, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_clean() == 0
    assert capsys.readouterr().out.splitlines() == [
        "info  clean: /dev/nbd1: NBD_CLEAR_SOCK",
        "ok    clean: /dev/nbd1 is free",
    ]
    assert run_clean() == 0
    assert capsys.readouterr().out == "ok    clean: no device without a server\n"


def test_program_that_holds_a_zombie_is_ended(
    taking: Taking, capsys: pytest.CaptureFixture[str]
) -> None:
    taking.error = DeviceBusyError(errno.EBUSY, "disconnected, but", "/dev/nbd1")
    assert run_clean() == 0
    assert taking.ended == [1]
    assert "SIGTERM to process 98 (sleep)" in capsys.readouterr().out


def test_mounted_zombie_is_left_to_its_user(
    taking: Taking, capsys: pytest.CaptureFixture[str]
) -> None:
    taking.host.tree.mount(77, "43:32", "/mnt", "/dev/nbd1")
    taking.error = DeviceBusyError(errno.EBUSY, "stays taken: mounted at /mnt", "/dev/nbd1")
    assert run_clean() == 1
    assert taking.ended == []
    assert capsys.readouterr().out.splitlines()[-1] == (
        "fail  clean: /dev/nbd1: stays taken: mounted at /mnt; run `umount /mnt`"
    )


@pytest.mark.parametrize("option", [["--dry-run"], ["--dry-run", "--json"]])
def test_dry_run_says_what_would_be_done_and_does_nothing(
    taking: Taking, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    taking.host.tree.process(98, "sleep", opens=("/dev/nbd1",))
    assert run_clean(*option) == 0
    output = capsys.readouterr().out
    assert "/dev/nbd1: would try NBD_CLEAR_SOCK, then NBD_CMD_DISCONNECT" in output
    assert "would end process 98 (sleep), which has it open" in output
    assert devices.zombies() == [1]


def test_device_that_is_just_being_attached_is_no_zombie(
    taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [[1], []]
    monkeypatch.setattr(clean, "zombies", lambda: looks.pop(0))
    assert [str(each) for each in clean.clean_devices(dry_run=False)] == [
        "ok    clean: no device without a server"
    ]
