"""Whether a device is served, from what /proc and /sys tell of it."""

from __future__ import annotations

import pytest

from aiovblk.kernel import status
from aiovblk.kernel.status import DeviceState

from ...support.kernel_tree import KERNEL_THREAD, KernelTree

SERVER = 77


def test_device_that_the_kernel_receives_for_is_alive_whoever_attached_it(
    tree: KernelTree,
) -> None:
    tree.device("nbd0", "43:0", sectors=8, thread=SERVER)  # gone, as netlink lets it be
    tree.kernel_threads("nbd0")
    assert status.state(0) is DeviceState.ALIVE


def test_device_without_connection_and_server_is_dead(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0", sectors=8, thread=SERVER)
    tree.kernel_threads("nbd1", "nbd10", "nbd00x")
    tree.process(50, "kworker/u8:7-nbd0-recv")  # it has ended
    assert status.state(0) is DeviceState.DEAD


def test_device_whose_server_is_there_without_connection_is_lost(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0", sectors=8, thread=SERVER)
    tree.process(SERVER, "python")
    tree.kernel_threads()
    assert status.state(0) is DeviceState.LOST


def test_device_with_an_identity_waits_for_its_server(tree: KernelTree) -> None:
    device = tree.device("nbd0", "43:0", sectors=8, thread=SERVER)
    tree.write(device / "backend", "disk 7\n")
    tree.kernel_threads()
    assert status.identity(0) == "disk 7"
    assert status.state(0) is DeviceState.LOST


def test_a_device_without_an_identity_waits_for_nobody(tree: KernelTree) -> None:
    device = tree.device("nbd0", "43:0", sectors=8, thread=100)
    tree.kernel_threads()
    tree.write(device / "backend", "\n")  # as by netlink
    assert status.state(0) is DeviceState.DEAD


@pytest.mark.parametrize(
    ("is_there", "state"), [(True, DeviceState.ALIVE), (False, DeviceState.UNKNOWN)]
)
def test_without_the_kernels_threads_only_the_server_tells(
    tree: KernelTree, is_there: bool, state: DeviceState
) -> None:
    tree.device("nbd0", "43:0", sectors=8, thread=SERVER)
    tree.process(2, "sh")  # a container's
    if is_there:
        tree.process(SERVER, "python")
    assert status.state(0) is state


def test_connections_are_counted_on_old_kernels_too(tree: KernelTree) -> None:
    tree.kernel_threads("nbd0", "nbd0", "knbd3")
    assert status.count_receivers() == {0: 2, 3: 1}


@pytest.mark.parametrize(
    ("parent", "own", "hears"),
    [
        ("kthreadd", "net:[1]", True),
        ("kthreadd", "net:[2]", False),
        ("sh", "net:[1]", False),  # a container's, of which nothing can be told
    ],
)
def test_deaths_are_told_to_the_network_namespace_of_the_kernel(
    tree: KernelTree, parent: str, own: str, hears: bool
) -> None:
    assert not status.receives_link_dead_events()
    for process, namespace in (("2", "net:[1]"), ("self", own)):
        folder = tree.proc / process / "ns"
        folder.mkdir(parents=True)
        (folder / "net").symlink_to(namespace)
    tree.write(tree.proc / "2/comm", f"{parent}\n")
    tree.write(tree.proc / "2/stat", f"2 ({parent}) S 0 0 0 0 -1 {KERNEL_THREAD}\n")
    assert status.receives_link_dead_events() is hears


@pytest.mark.parametrize("name", ["kworker/u8:1+nbd0-recv", "evil) S 2 +nbd0-recv"])
def test_a_name_that_anybody_can_take_is_no_receiver(tree: KernelTree, name: str) -> None:
    tree.device("nbd0", "43:0", sectors=8, thread=SERVER)
    tree.kernel_threads()
    tree.process(666, name)
    assert status.count_receivers() == {}
    assert status.state(0) is DeviceState.DEAD


def test_a_process_that_calls_itself_the_kernels_first_is_not_believed(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0", sectors=8, thread=SERVER)
    tree.process(2, "kthreadd")  # a container's
    assert not status.sees_kernel_threads()
    assert status.state(0) is DeviceState.UNKNOWN


def test_a_receiver_that_ends_while_it_is_looked_at_is_none(tree: KernelTree) -> None:
    tree.kernel_threads("nbd0")
    (tree.proc / "31/stat").unlink()
    assert status.count_receivers() == {}
