"""ublk devices as they are seen from outside."""

from __future__ import annotations

import errno

import pytest

from aiovblk.kernel.status import DeviceState
from aiovblk.ublk import status
from aiovblk.ublk.commands import State

from ...support.kernel_tree import KernelTree
from ...support.ublk_tree import UblkTree, ublk_tree

__all__ = ["ublk_tree"]


def test_devices_are_found_with_and_without_a_disk(ublk_tree: UblkTree) -> None:
    assert status.numbers() == []
    ublk_tree.add(12)
    ublk_tree.add(3, state=State.DEAD, server=-1)
    ublk_tree.tree.partition("ublkb12p1", "259:99")
    assert status.numbers() == [3, 12]
    assert [status.has_disk(number) for number in (3, 12)] == [False, True]
    assert [status.exists(number) for number in (3, 4)] == [True, False]


def test_live_device_has_its_server_and_its_owner(ublk_tree: UblkTree) -> None:
    ublk_tree.add(0, owner=1000)
    ublk_tree.tree.process(77, "python")
    found = status.status_of(0)
    assert (found.state, found.server, found.owner) == (DeviceState.ALIVE, (77, "python"), 1000)


@pytest.mark.parametrize(
    ("state", "server", "expected"),
    [
        (State.LIVE, 99, DeviceState.ALIVE),
        (State.QUIESCED, -1, DeviceState.LOST),
        (State.FAIL_IO, -1, DeviceState.LOST),
        (State.DEAD, -1, DeviceState.DEAD),
        (State.DEAD, 99, DeviceState.DEAD),  # its server ended before it started the device
        (State.DEAD, 77, DeviceState.ALIVE),  # which is about to be started
    ],
)
def test_state_is_that_of_the_driver_and_of_the_server(
    ublk_tree: UblkTree, state: State, server: int, expected: DeviceState
) -> None:
    ublk_tree.tree.process(77, "python")
    ublk_tree.add(0, state=state, server=server)
    assert status.status_of(0).state is expected


def test_server_of_another_container_may_be_about_to_start(
    ublk_tree: UblkTree, tree: KernelTree
) -> None:
    tree.process(77, "python")
    (tree.proc / "77/ns/pid").symlink_to("pid:[4026532000]")
    (tree.proc / "self").symlink_to("77")
    ublk_tree.add(0, state=State.DEAD, server=12)
    assert status.status_of(0).state is DeviceState.UNKNOWN


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENODEV])
def test_what_the_driver_does_not_say_is_unknown(ublk_tree: UblkTree, number: int) -> None:
    ublk_tree.add(0)
    ublk_tree.refusal = OSError(number, "no")
    found = status.status_of(0)
    assert (found.state, found.server, found.owner) == (DeviceState.UNKNOWN, None, None)
