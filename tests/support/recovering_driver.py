"""A ublk driver that can recover: its control commands, and the files that show its devices."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from aiovblk.kernel import locks
from aiovblk.ublk import (
    attaching,
    attachment,
    control,
    identified,
    identities,
    served_device,
    takeover,
)
from aiovblk.ublk.commands import RECOVERY, ControlCommand, Feature, State, UblkDeviceInfo

from .fake_ublk import start_no_process
from .kernel_tree import KernelTree

SOUND = Feature.CMD_IOCTL_ENCODE | Feature.USER_COPY | RECOVERY | Feature.SAFE_STOP_DEV


class RecordingWatchdog:
    """In place of the watchdog: what it is asked to do, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.survive = 0.0
        self.owner_token = ""

    def watch_device(self, number: int, mark: int, survive: float, owner_token: str) -> None:
        self.asked.append(("watch", number))
        self.survive, self.owner_token = survive, owner_token

    def forget(self, number: int) -> None:
        self.asked.append(("forget", number))

    def release_to_successor(self, number: int) -> None:
        self.asked.append(("release", number))


class RecoveringDriver:
    """The driver.

    Attributes:
        root: a directory for its nodes.
        features: what it says that it can do.
        grants: the flags that it leaves a device.
        devices: by number.
        sent: the commands that change a device, by name.
        failures: by command, the error numbers of the next answers; 0 for none.

    """

    def __init__(self, root: Path, tree: KernelTree) -> None:
        self.root = root
        self.features = SOUND
        self.grants = ~Feature(0)
        self.devices: dict[int, UblkDeviceInfo] = {}
        self.sent: list[str] = []
        self.failures: dict[ControlCommand, list[int]] = {}
        self._tree = tree

    def node(self, number: int) -> str:
        return str(self.root / f"ublkb{number}")

    def char_node(self, number: int) -> str:
        return str(self.root / f"ublkc{number}")

    def make(self, info: UblkDeviceInfo, size: int = 0) -> None:
        """Have a device, of a size in bytes; of 0 if it was not started."""
        assert info.number is not None
        self.devices[info.number] = info
        (self._tree.block.parent / f"class/ublk-char/ublkc{info.number}").mkdir(parents=True)
        Path(self.char_node(info.number)).touch()
        if size:
            Path(self.node(info.number)).touch()
            name = f"ublkb{info.number}"
            self._tree.device(name, f"259:{info.number}", sectors=size // 512)

    def change(self, number: int, state: State) -> None:
        """Change a device's state."""
        self.devices[number] = replace(self.devices[number], state=state)

    def send(
        self,
        command: ControlCommand,
        number: int | None,
        *,
        content: bytes = b"",
        data: int = 0,
        path: str | None = None,
        seconds: float = 0,
    ) -> bytes:
        """Answer a command, in place of the function that sends it."""
        if command not in (ControlCommand.GET_FEATURES, ControlCommand.GET_DEV_INFO2):
            self.sent.append(command.name)
        if failures := self.failures.get(command):
            _refuse_if(failures.pop(0))
        if command is ControlCommand.GET_FEATURES:
            return struct.pack("<Q", self.features)
        if command is ControlCommand.ADD_DEV:
            return self._add(UblkDeviceInfo.unpack(content), number)
        if number not in self.devices:
            _refuse_if(errno.ENODEV)
        assert number is not None
        match command:
            case ControlCommand.GET_DEV_INFO2:
                return _answer(self.devices[number])
            case ControlCommand.START_USER_RECOVERY:
                _refuse_if(self.devices[number].state != State.QUIESCED and errno.EBUSY)
            case ControlCommand.START_DEV | ControlCommand.END_USER_RECOVERY:
                Path(self.node(number)).touch()
                self.devices[number] = replace(self.devices[number], state=State.LIVE, server=data)
            case ControlCommand.TRY_STOP_DEV | ControlCommand.STOP_DEV:
                is_open = command is ControlCommand.TRY_STOP_DEV and self._is_open(number)
                _refuse_if(is_open and errno.EBUSY)
                self.change(number, State.DEAD)
            case ControlCommand.DEL_DEV_ASYNC:
                del self.devices[number]
                (self._tree.block.parent / f"class/ublk-char/ublkc{number}").rmdir()
        return content

    def _add(self, wanted: UblkDeviceInfo, number: int | None) -> bytes:
        number = len(self.devices) if number is None else number
        _refuse_if(number in self.devices and errno.EEXIST)
        self.make(replace(wanted, number=number, flags=wanted.flags & self.grants))
        return _answer(self.devices[number])

    def _is_open(self, number: int) -> bool:
        return self.node(number) in _open_files()


def _refuse_if(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


def _answer(info: UblkDeviceInfo) -> bytes:
    """The device as the driver shows it: with its state, which only the driver sets."""
    packed = bytearray(info.pack())
    struct.pack_into("<H", packed, 4, info.state)
    return bytes(packed)


def _open_files() -> Iterator[str]:
    for entry in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue


@contextmanager
def opened(path: str) -> Iterator[None]:
    """Have a file open, as another program."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        os.close(fd)


@pytest.fixture
def recording_watchdog(monkeypatch: pytest.MonkeyPatch) -> RecordingWatchdog:
    """Take the place of the watchdog."""
    made = RecordingWatchdog()
    monkeypatch.setattr(identified, "watchdog", made)
    return made


@pytest.fixture
def driver(
    tmp_path: Path,
    tree: KernelTree,
    recording_watchdog: RecordingWatchdog,
    monkeypatch: pytest.MonkeyPatch,
) -> RecoveringDriver:
    """Put a driver without devices in the place of the real one, for a privileged process."""
    made = RecoveringDriver(tmp_path, tree)
    monkeypatch.setattr(locks, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(control, "_send", made.send)
    monkeypatch.setattr(served_device, "start", start_no_process)
    monkeypatch.setattr(control, "char_node", made.char_node)
    for module in (attachment, identities, takeover):
        monkeypatch.setattr(module, "node", made.node)
    monkeypatch.setattr(attaching, "is_privileged", lambda: True)
    for module in (attaching, takeover):
        monkeypatch.setattr(module, "ensure_available", lambda: made.features)
    return made
