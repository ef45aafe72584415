"""The state of a device, as /proc and /sys show it: has it a server, and is it free."""

from __future__ import annotations

import pytest

from aiovblk.kernel import status
from aiovblk.kernel.status import DeviceState
from aiovblk.kernel.sysfs import wait_until_free

from ...support.kernel_tree import KERNEL_THREAD, KernelTree

SERVER = 77


def test_device_that_the_kernel_receives_for_is_alive_without_the_thread_that_attached_it(
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


def test_device_whose_server_has_process_without_connection_is_lost(tree: KernelTree) -> None:
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


def test_a_device_without_an_identity_waits_for_no_server(tree: KernelTree) -> None:
    device = tree.device("nbd0", "43:0", sectors=8, thread=100)
    tree.kernel_threads()
    tree.write(device / "backend", "\n")  # as by netlink
    assert status.state(0) is DeviceState.DEAD


@pytest.mark.parametrize(
    ("has_process", "state"), [(True, DeviceState.ALIVE), (False, DeviceState.UNKNOWN)]
)
def test_without_kernel_threads_only_the_server_shows(
    tree: KernelTree, has_process: bool, state: DeviceState
) -> None:
    tree.device("nbd0", "43:0", sectors=8, thread=SERVER)
    tree.process(2, "sh")  # a container's
    if has_process:
        tree.process(SERVER, "python")
    assert status.state(0) is state


def test_connections_are_counted_on_old_kernels_too(tree: KernelTree) -> None:
    tree.kernel_threads("nbd0", "nbd0", "knbd3")
    assert status.count_receivers() == {0: 2, 3: 1}


@pytest.mark.parametrize(
    ("parent", "own", "received"),
    [
        ("kthreadd", "net:[1]", True),
        ("kthreadd", "net:[2]", False),
        ("sh", "net:[1]", False),  # a container's: nothing is known
    ],
)
def test_dead_connections_are_reported_in_the_network_namespace_of_the_kernel(
    tree: KernelTree, parent: str, own: str, received: bool
) -> None:
    assert not status.receives_link_dead_events()
    for process, namespace in (("2", "net:[1]"), ("self", own)):
        folder = tree.proc / process / "ns"
        folder.mkdir(parents=True)
        (folder / "net").symlink_to(namespace)
    tree.write(tree.proc / "2/comm", f"{parent}\n")
    tree.write(tree.proc / "2/stat", f"2 ({parent}) S 0 0 0 0 -1 {KERNEL_THREAD}\n")
    assert status.receives_link_dead_events() is received


@pytest.mark.parametrize("name", ["kworker/u8:1+nbd0-recv", "evil) S 2 +nbd0-recv"])
def test_a_name_that_any_process_can_take_is_no_receiver(tree: KernelTree, name: str) -> None:
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


# Free or not


def test_a_device_that_is_not_attached_is_free(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    assert wait_until_free(0, 0, server=4242)


@pytest.mark.parametrize(("sectors", "thread"), [(2048, 4242), (0, 4242), (2048, None)])
def test_a_device_that_its_server_still_has_is_not(
    tree: KernelTree, sectors: int, thread: int | None
) -> None:
    tree.device("nbd0", "43:0", sectors=sectors, thread=thread)
    assert not wait_until_free(0, 0, server=4242)
    assert not wait_until_free(0, 0)


def test_a_device_that_another_server_has_attached_since_was_free(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0", sectors=2048, thread=4711)
    assert wait_until_free(0, 0, server=4242)
    assert not wait_until_free(0, 0)
