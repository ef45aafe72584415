"""A device is stopped by another process than that which serves it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from aiovblk.ublk import control, served_device
from aiovblk.ublk.commands import ControlCommand, Feature
from aiovblk.ublk.control import ControlledDevice
from aiovblk.ublk.served_device import ServedDevice

NONE = 1048575  # a number that no device has
DRIVERLESS = (errno.ENOENT, errno.ENODEV, errno.EACCES, errno.EPERM, errno.ENXIO)

stops = pytest.mark.parametrize("stop", [ServedDevice.stop, ServedDevice.stop_unused])


def refuse(*arguments: object, **options: object) -> NoReturn:
    pytest.fail("the command is sent by this process")


@stops
def test_another_process_sends_the_command_and_its_error_is_raised(
    monkeypatch: pytest.MonkeyPatch, stop: Callable[[ServedDevice, float], None]
) -> None:
    monkeypatch.setattr(control, "_send", refuse)
    with pytest.raises(OSError, match=r".") as caught:
        stop(ServedDevice(NONE, Feature.UNPRIVILEGED_DEV), 5.0)
    assert caught.value.errno in DRIVERLESS


@stops
@pytest.mark.parametrize("is_gone", [True, False])
def test_where_no_process_can_be_started_or_its_files_are_gone_this_one_sends_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stop: Callable[[ServedDevice, float], None],
    is_gone: bool,
) -> None:
    sent: list[tuple[object, ...]] = []

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EAGAIN, "no more processes")

    if is_gone:
        monkeypatch.setattr(served_device, "PACKAGE", tmp_path)
    else:
        monkeypatch.setattr(os, "posix_spawn", fail)

    def send(command: ControlCommand, number: int, *, seconds: float, path: str | None) -> None:
        sent.append((command in (ControlCommand.STOP_DEV, ControlCommand.TRY_STOP_DEV), number))

    monkeypatch.setattr(control, "_send", send)
    stop(ServedDevice(3, Feature(0)), 5.0)
    assert sent == [(True, 3)]


def test_other_commands_are_sent_by_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[ControlCommand] = []
    monkeypatch.setattr(served_device, "start", refuse)
    monkeypatch.setattr(control, "_send", lambda command, number, **_: sent.append(command))
    device: ControlledDevice = ServedDevice(3, Feature(0))
    device.start(1.0)
    device.delete()
    assert sent == [ControlCommand.START_DEV, ControlCommand.DEL_DEV_ASYNC]


def test_forked_child_does_not_stop_what_its_parent_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = ServedDevice(3, Feature(0))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(served_device, "start", refuse)
    with pytest.raises(OSError, match="the parent process's"):
        device.stop(5.0)
