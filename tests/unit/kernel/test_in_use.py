from __future__ import annotations

import pytest

from aiovblk.kernel.status import wait_until_free

from ...support.kernel_tree import KernelTree


def test_a_device_that_nobody_has_is_free(tree: KernelTree) -> None:
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
