"""A device by netlink: its node is not kept open, and another server's device is left alone."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from aiovblk.kernel import (
    AttachConfig,
    NetlinkAttachment,
    RequestQueue,
    netlink,
    netlink_attachment,
)
from aiovblk.kernel.monitor import NetlinkMonitorThread
from aiovblk.kernel.netlink import ClientFlag
from aiovblk.kernel.reconnecting import replace_dead_connection

from ...support.kernel_tree import KernelTree

SERVER, OTHER_SERVER = 4242, 4711
QUEUE = RequestQueue(max_sectors_kb=None, read_ahead_kb=None, scheduler=None)
CONFIG = AttachConfig([], 4096, 256, 0, 0, QUEUE)


class FakeMonitor:
    """A monitor thread that has attached nbd0."""

    index = 0

    def __init__(self) -> None:
        self.is_released = False
        self.on_link_dead: Callable[[], None] = lambda: None

    def watch(self, owner_token: str) -> None:
        pass

    def release(self, *, leave: bool = False) -> None:
        self.is_released = True


class Machine:
    """A device, its attachment, and whether the node was open in each command."""

    def __init__(self, tree: KernelTree, node: Path) -> None:
        self.node = node
        self.node.write_bytes(b"")
        self.directory = tree.device("nbd0", "43:0", sectors=2048, thread=SERVER)
        self.tree = tree
        self.commands: list[tuple[str, bool]] = []
        self.changed: dict[str, Any] = {}
        self.is_taken: Callable[[], bool] = lambda: True
        self.attachment = self.make()

    def make(self) -> NetlinkAttachment:
        lock = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return NetlinkAttachment(
            cast(NetlinkMonitorThread, FakeMonitor()), str(self.node), lock, CONFIG
        )

    @property
    def is_open(self) -> bool:
        links = []
        for entry in os.scandir("/proc/self/fd"):
            try:
                links.append(os.readlink(entry.path))
            except FileNotFoundError:  # that of this scan
                continue
        return str(self.node) in links

    def give_to_other_server(self) -> None:
        self.tree.write(self.directory / "pid", f"{OTHER_SERVER}\n")

    def note(self, command: str) -> None:
        self.commands.append((command, self.is_open))

    def reconfigure(self, index: int, identity: str | None, **changes: Any) -> None:
        self.note("reconfigure")
        self.changed.update(changes)

    def disconnect(self, index: int, timeout: float) -> None:
        self.note("disconnect")
        (self.directory / "pid").unlink()
        self.tree.write(self.directory / "size", "0\n")

    def offer_connection(
        self, index: int, identity: str | None, ours: socket.socket, theirs: socket.socket
    ) -> bool:
        theirs.close()
        self.note("offer")
        return self.is_taken()


@pytest.fixture
def machine(tree: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tree, tmp_path / "node")
    for name in ("reconfigure", "disconnect", "offer_connection"):
        monkeypatch.setattr(netlink, name, getattr(made, name))
    yield made
    made.attachment.wait_until_free(0)


def test_the_node_is_open_only_while_the_kernel_scans_it(machine: Machine) -> None:
    machine.attachment.wait_until_live(10)
    assert machine.commands == [("reconfigure", True)]
    assert not machine.is_open


def test_the_last_close_by_any_user_does_not_disconnect_it(machine: Machine) -> None:
    machine.attachment.wait_until_live(10)
    assert machine.changed["client_flags"] == ClientFlag(0)


def test_a_resize_and_a_disconnect_keep_the_node_open_meanwhile(machine: Machine) -> None:
    machine.attachment.set_size(512)
    machine.attachment.disconnect_kernel()
    assert machine.commands == [("reconfigure", True), ("disconnect", True)]
    assert machine.attachment.ended.result(0) == 0
    assert not machine.is_open


def test_a_claim_is_used_for_the_steps_of_an_unmount(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.attachment.claim_exclusively()
    assert machine.is_open
    machine.node.unlink()
    done: list[str] = []
    monkeypatch.setattr(
        "aiovblk.kernel.attachment.ioctl", lambda fd, request: done.append(request.name)
    )
    machine.attachment.disconnect()
    machine.attachment.clear_socket()
    assert done == ["NBD_DISCONNECT", "NBD_CLEAR_SOCK"]
    machine.attachment.close()


def test_a_device_that_is_another_servers_by_now_is_left_alone(machine: Machine) -> None:
    machine.give_to_other_server()
    steps: list[Callable[[], object]] = [
        machine.attachment.disconnect,
        machine.attachment.clear_socket,
        lambda: machine.attachment.set_size(512),
        lambda: replace_dead_connection(machine.attachment, 0),
        lambda: machine.attachment.wait_until_live(10),
    ]
    for step in steps:
        with pytest.raises(OSError, match="another process has disconnected the device") as caught:
            step()
        assert caught.value.errno == errno.ENODEV
    machine.attachment.force_disconnect()
    machine.attachment.disconnect_kernel()
    machine.attachment.close()
    assert machine.commands == []
    assert machine.attachment.ended.result(0) == 0


def test_a_connection_that_another_servers_device_accepted_is_closed(machine: Machine) -> None:
    def taken() -> bool:
        machine.give_to_other_server()
        return True

    machine.is_taken = taken
    with pytest.raises(OSError, match="another process has disconnected"):
        replace_dead_connection(machine.attachment, 0)


def test_a_detached_device_is_not_waited_for(machine: Machine) -> None:
    (machine.directory / "pid").unlink()
    machine.attachment.close()
    with pytest.raises(OSError, match="detached before it was live"):
        machine.attachment.wait_until_live(3600)


def test_without_its_node_all_is_written_and_it_is_disconnected(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "sync", lambda: synced.append("sync"))
    machine.node.unlink()
    machine.attachment.sync()
    machine.attachment.disconnect_kernel()
    assert synced == ["sync"]
    assert machine.commands == [("disconnect", False)]


def test_a_node_that_does_not_open_does_not_prevent_a_disconnect(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.node.unlink()
    os.mkfifo(machine.node)  # opens when its other end is opened
    for name in ("OPEN_TIMEOUT", "CLOSE_TIMEOUT"):
        monkeypatch.setattr(netlink_attachment, name, 0.05)
    machine.attachment.disconnect_kernel()
    assert [what for what, _ in machine.commands] == ["disconnect"]
    os.close(os.open(machine.node, os.O_RDWR))


def test_it_is_closed_once(machine: Machine) -> None:
    machine.attachment.claim_exclusively()
    machine.attachment.close()
    machine.attachment.close()
    assert not machine.is_open
    with pytest.raises(OSError, match="already detached"):
        machine.attachment.disconnect()
