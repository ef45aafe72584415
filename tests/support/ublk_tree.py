"""ublk devices of other processes: what /sys shows of them, and what the driver answers.

The fixture ``ublk_tree`` puts them in the place of the real ones, above the fixture ``tree``.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest

from aiovblk.ublk import control
from aiovblk.ublk.commands import Feature, State, UblkDeviceInfo

from .kernel_tree import KernelTree


class UblkTree:
    """The devices, and a driver that knows them.

    Attributes:
        log: the commands that have changed something, in order.
        refusal: the error with which the driver answers whatever it is asked; None for none.
        stop_error: the same for STOP_DEV alone.
        delete_error: the same for DEL_DEV.
        server_removes: whether the server of a device that is stopped removes it.
        is_open: whether a program has the devices open, which keeps TRY_STOP_DEV from stopping any.

    """

    def __init__(self, tree: KernelTree) -> None:
        self.tree = tree
        self.log: list[str] = []
        self.refusal: OSError | None = None
        self.stop_error: OSError | None = None
        self.delete_error: OSError | None = None
        self.server_removes = True
        self.is_open = False
        self._infos: dict[int, UblkDeviceInfo] = {}

    def add(
        self,
        number: int,
        *,
        state: State = State.LIVE,
        server: int = 77,
        owner: int = 0,
        flags: Feature = Feature.USER_COPY,
        sectors: int = 2048,
    ) -> None:
        """Add a device; it has a disk unless it is dead."""
        info = UblkDeviceInfo(number=number, flags=flags, state=state, server=server, owner=owner)
        self._infos[number] = info
        char = self.tree.block.parent / f"class/ublk-char/ublkc{number}"
        self.tree.write(char / "dev", f"244:{number}\n")
        if state != State.DEAD:
            disk = self.tree.device(f"ublkb{number}", f"259:{number}", sectors=sectors)
            self.tree.write(disk / "diskseq", f"{number + 10}\n")

    def info(self, number: int) -> UblkDeviceInfo:
        if self.refusal is not None:
            raise self.refusal
        if number not in self._infos:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return self._infos[number]

    def stop(self, device: control.ControlledDevice, seconds: float) -> None:
        number = device.number
        self.log.append(f"stop {number}")
        if self.stop_error is not None:
            raise self.stop_error
        self._infos[number] = replace(self.info(number), state=State.DEAD, server=-1)
        self._remove(self.tree.block / f"ublkb{number}")
        if self.server_removes:
            self.delete(device)

    def stop_unused(self, device: control.ControlledDevice, seconds: float) -> None:
        self.log.append(f"try {device.number}")
        if self.is_open:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.stop(device, seconds)

    def delete(self, device: control.ControlledDevice) -> None:
        self.log.append(f"delete {device.number}")
        if self.delete_error is not None:
            raise self.delete_error
        self.info(device.number)
        del self._infos[device.number]
        self._remove(self.tree.block.parent / f"class/ublk-char/ublkc{device.number}")

    def _remove(self, directory: os.PathLike[str]) -> None:
        gone = self.tree.block.parent.parent / "gone"
        gone.mkdir(exist_ok=True)
        os.rename(directory, gone / f"{len(os.listdir(gone))}")


@pytest.fixture
def ublk_tree(tree: KernelTree, monkeypatch: pytest.MonkeyPatch) -> UblkTree:
    """ublk devices on the fake /sys, none at first."""
    made = UblkTree(tree)
    monkeypatch.setattr(control, "info", made.info)
    monkeypatch.setattr(control.ControlledDevice, "stop", lambda *args: made.stop(*args))
    unused = "stop_unused"
    monkeypatch.setattr(control.ControlledDevice, unused, lambda *args: made.stop_unused(*args))
    monkeypatch.setattr(control.ControlledDevice, "delete", lambda *args: made.delete(*args))
    return made
