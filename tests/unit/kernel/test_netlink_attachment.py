"""A device by netlink: its node is not kept open, and nothing is done to another's device."""

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
from aiovblk.kernel.netlink import ClientFlag
from aiovblk.kernel.netlink_attachment import NetlinkMonitorThread

from ...support.kernel_tree import KernelTree

SERVER, ANOTHER = 4242, 4711
QUEUE = RequestQueue(max_sectors_kb=None, read_ahead_kb=None, scheduler=None)
TERMS = AttachConfig([], 4096, 256, 0, 0, QUEUE)


class FakeAnchor:
    """One that has attached nbd0."""

    index = 0

    def __init__(self) -> None:
        self.is_released = False
        self.on_death: Callable[[], None] = lambda: None

    def watch(self, signature: str) -> None:
        pass

    def release(self, *, leave: bool = False) -> None:
        self.is_released = True


class Machine:
    """A device, its link, and who had the node open when something was done to the device."""

    def __init__(self, tree: KernelTree, node: Path) -> None:
        self.node = node
        self.node.write_bytes(b"")
        self.directory = tree.device("nbd0", "43:0", sectors=2048, thread=SERVER)
        self.tree = tree
        self.asked: list[tuple[str, bool]] = []
        self.changed: dict[str, Any] = {}
        self.is_taken: Callable[[], bool] = lambda: True
        self.link = self.make()

    def make(self) -> NetlinkAttachment:
        lock = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return NetlinkAttachment(
            cast(NetlinkMonitorThread, FakeAnchor()), str(self.node), lock, TERMS
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

    def become_anothers(self) -> None:
        self.tree.write(self.directory / "pid", f"{ANOTHER}\n")

    def ask(self, what: str) -> None:
        self.asked.append((what, self.is_open))

    def reconfigure(self, index: int, identity: str | None, **changes: Any) -> None:
        self.ask("reconfigure")
        self.changed.update(changes)

    def disconnect(self, index: int, timeout: float) -> None:
        self.ask("disconnect")
        (self.directory / "pid").unlink()
        self.tree.write(self.directory / "size", "0\n")

    def offer_connection(
        self, index: int, identity: str | None, ours: socket.socket, theirs: socket.socket
    ) -> bool:
        theirs.close()
        self.ask("offer")
        return self.is_taken()


@pytest.fixture
def machine(tree: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tree, tmp_path / "node")
    for name in ("reconfigure", "disconnect", "offer_connection"):
        monkeypatch.setattr(netlink, name, getattr(made, name))
    yield made
    made.link.wait_until_free(0)


def test_the_node_is_open_only_while_the_kernel_scans_it(machine: Machine) -> None:
    machine.link.wait_until_live(10)
    assert machine.asked == [("reconfigure", True)]
    assert not machine.is_open


def test_the_last_close_of_anybody_does_not_disconnect_it(machine: Machine) -> None:
    machine.link.wait_until_live(10)
    assert machine.changed["client_flags"] == ClientFlag(0)


def test_a_resize_and_a_disconnect_keep_others_from_the_index_meanwhile(machine: Machine) -> None:
    machine.link.resize(512)
    machine.link.disconnect_kernel()
    assert machine.asked == [("reconfigure", True), ("disconnect", True)]
    assert machine.link.ended.result(0) == 0
    assert not machine.is_open


def test_a_claim_is_what_steps_are_taken_with(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.link.claim_exclusively()
    assert machine.is_open
    machine.node.unlink()
    done: list[str] = []
    monkeypatch.setattr(
        "aiovblk.kernel.attachment.ioctl", lambda fd, request: done.append(request.name)
    )
    machine.link.disconnect()
    machine.link.clear_socket()
    assert done == ["NBD_DISCONNECT", "NBD_CLEAR_SOCK"]
    machine.link.close()


def test_a_device_that_is_anothers_by_now_is_let_alone(machine: Machine) -> None:
    machine.become_anothers()
    steps: list[Callable[[], object]] = [
        machine.link.disconnect,
        machine.link.clear_socket,
        lambda: machine.link.resize(512),
        lambda: machine.link.replace_dead_connection(0),
        lambda: machine.link.wait_until_live(10),
    ]
    for step in steps:
        with pytest.raises(OSError, match="somebody else has disconnected the device") as caught:
            step()
        assert caught.value.errno == errno.ENODEV
    machine.link.force_disconnect()
    machine.link.disconnect_kernel()
    machine.link.close()
    assert machine.asked == []
    assert machine.link.ended.result(0) == 0


def test_a_connection_that_anothers_device_took_is_taken_from_it(machine: Machine) -> None:
    def taken() -> bool:
        machine.become_anothers()
        return True

    machine.is_taken = taken
    with pytest.raises(OSError, match="somebody else has disconnected"):
        machine.link.replace_dead_connection(0)


def test_what_was_detached_is_not_waited_for_any_more(machine: Machine) -> None:
    (machine.directory / "pid").unlink()
    machine.link.close()
    with pytest.raises(OSError, match="detached before it was live"):
        machine.link.wait_until_live(3600)


def test_without_its_node_all_is_written_and_it_is_disconnected(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "sync", lambda: synced.append("sync"))
    machine.node.unlink()
    machine.link.sync()
    machine.link.disconnect_kernel()
    assert synced == ["sync"]
    assert machine.asked == [("disconnect", False)]


def test_a_node_that_does_not_open_keeps_nobody_from_disconnecting(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.node.unlink()
    os.mkfifo(machine.node)  # opens when somebody opens its other end
    for name in ("OPEN_TIMEOUT", "CLOSE_TIMEOUT"):
        monkeypatch.setattr(netlink_attachment, name, 0.05)
    machine.link.disconnect_kernel()
    assert [what for what, _ in machine.asked] == ["disconnect"]
    os.close(os.open(machine.node, os.O_RDWR))


def test_it_is_closed_once(machine: Machine) -> None:
    machine.link.claim_exclusively()
    machine.link.close()
    machine.link.close()
    assert not machine.is_open
    with pytest.raises(OSError, match="already detached"):
        machine.link.disconnect()
