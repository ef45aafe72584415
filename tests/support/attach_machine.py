"""A machine with four NBD devices, to be attached and taken over without a kernel.

The fixtures: ``machine`` replaces the ioctl attachment, the clock, and the directory of the locks;
``by_netlink`` replaces netlink's commands as well.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aiovblk.kernel import AttachConfig, RequestQueue, attaching, locks, sysfs, takeover

from .clocks import patch_time
from .kernel_tree import KernelTree

OTHER_SERVER = 4242
"""The process id of ``fio``, a server of other devices."""

CONFIG = AttachConfig([], 4096, 1, 0, 0, RequestQueue())


class FakeAttachment:
    """An attachment whose node is never opened."""

    def __init__(self, index: int, path: str, lock: int) -> None:
        self.index = index
        self.path = path
        self.lock = lock
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def undo(self) -> None:
        self.close()
        os.close(self.lock)


class AttachMachine:
    """Four free devices, /dev/nbd0 to /dev/nbd3.

    Attributes:
        attachments: what was attached by ioctl, in order.
        when_opened: errors of opening a node, by index.
        when_configured: errors after that, by index.
        while_waiting: called in each sleep.
        now: the clock.

    """

    def __init__(self, tree: KernelTree, locks: Path) -> None:
        self.tree = tree
        self.locks = locks
        self.attachments: list[FakeAttachment] = []
        self.when_opened: dict[int, OSError] = {}
        self.when_configured: dict[int, Exception] = {}
        self.while_waiting: Callable[[], None] = lambda: None
        self.now = 1000.0
        tree.process(OTHER_SERVER, "fio")
        for index in range(4):
            tree.device(f"nbd{index}", f"43:{index * 32}")

    def open(self, index: int, path: str, lock: int, config: AttachConfig) -> FakeAttachment:
        """Attach by ioctl."""
        if index in self.when_opened:
            raise self.when_opened[index]
        self.attachments.append(FakeAttachment(index, path, lock))
        if index in self.when_configured:
            self.attachments[-1].close()
            raise self.when_configured[index]
        return self.attachments[-1]

    def attach(self, path: str | None = None) -> FakeAttachment:
        return cast(FakeAttachment, attaching.attach(path, CONFIG, by_netlink=False))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.while_waiting()

    def serve(self, index: int, thread: int = OTHER_SERVER) -> None:
        """Have another process attach a device."""
        self.tree.write(self.tree.block / f"nbd{index}/pid", f"{thread}\n")

    def detach(self, index: int) -> None:
        """Have that process detach it."""
        (self.tree.block / f"nbd{index}/pid").unlink()

    def is_locked(self, index: int) -> bool:
        lock = os.open(self.locks / f"nbd{index}.lock", os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False


class FakeNetlink:
    """Netlink's answers to CONNECT.

    Attributes:
        connected: the index of each command, None for any.
        refusals: errors of the next commands.
        free: the index that the kernel chooses.
        nodes: the device nodes that exist.

    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connected: list[int | None] = []
        self.refusals: list[OSError] = []
        self.free = 2
        self.nodes = {f"/dev/nbd{index}" for index in range(4)}
        for module in (attaching, takeover):
            monkeypatch.setattr(
                module, "NetlinkMonitorThread", lambda attach, _: SimpleNamespace(index=attach())
            )
            monkeypatch.setattr(module, "NetlinkAttachment", self.open)
        monkeypatch.setattr(attaching, "_send_connect", self.connect)
        monkeypatch.setattr(os.path, "exists", lambda path: path in self.nodes)

    def attach(self, path: str | None = None) -> FakeAttachment:
        return cast(FakeAttachment, attaching.attach(path, CONFIG, by_netlink=True))

    def connect(self, index: int | None, config: AttachConfig) -> int:
        self.connected.append(index)
        if self.refusals:
            raise self.refusals.pop(0)
        return self.free if index is None else index

    def open(self, monitor: Any, path: str, lock: int, config: AttachConfig) -> FakeAttachment:
        return FakeAttachment(monitor.index, path, lock)


@pytest.fixture
def machine(
    tree: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AttachMachine]:
    made = AttachMachine(tree, tmp_path / "locks")
    monkeypatch.setattr(locks, "LOCKS", made.locks)
    monkeypatch.setattr(attaching, "IoctlAttachment", made.open)
    for module in (attaching, takeover):
        patch_time(monkeypatch, module, sleep=made.sleep, monotonic=lambda: made.now)
    monkeypatch.setattr(sysfs, "index_of_node", lambda path: int(path.removeprefix("/dev/nbd")))
    yield made
    for attachment in made.attachments:
        if not attachment.closed:
            os.close(attachment.lock)


@pytest.fixture
def by_netlink(machine: AttachMachine, monkeypatch: pytest.MonkeyPatch) -> FakeNetlink:
    return FakeNetlink(monkeypatch)
