"""The capabilities of a process, in the initial user namespace."""

from __future__ import annotations

import pytest

from aiovblk.kernel import capabilities
from aiovblk.kernel.capabilities import Capability

from ...support.kernel_tree import KernelTree

INITIAL = 0xEFFFFFFD


@pytest.mark.parametrize(
    ("effective", "namespace", "has"),
    [
        ("0000000000200000", INITIAL, True),
        ("0000000000200000", 4026532000, False),
        ("ffffffffffdfffff", INITIAL, False),
        ("0000000000200000", None, True),  # a kernel without user namespaces
    ],
)
def test_capability_counts_in_the_initial_user_namespace(
    tree: KernelTree, effective: str, namespace: int | None, has: bool
) -> None:
    process = tree.process(77, "python")
    tree.write(process / "status", f"Name:\tpython\nCapEff:\t{effective}\n")
    if namespace is not None:
        (process / "ns/user").symlink_to(f"user:[{namespace}]")
    (tree.proc / "self").symlink_to("77")
    assert capabilities.has_capability(Capability.CAP_SYS_ADMIN) is has


def test_without_proc_nothing_is_known(tree: KernelTree) -> None:
    assert not capabilities.has_capability(Capability.CAP_SYS_ADMIN)
    assert capabilities.is_initial("user") is None


@pytest.mark.parametrize(("own", "initial"), [(9, True), (10, False)])
def test_other_namespaces_are_compared_with_those_of_process_1(
    tree: KernelTree, own: int, initial: bool
) -> None:
    tree.process(77, "python")
    (tree.proc / "self").symlink_to("77")
    (tree.proc / "77/ns/net").symlink_to(f"net:[{own}]")
    assert capabilities.is_initial("net") is None  # process 1 is not visible
    tree.process(1, "init")
    (tree.proc / "1/ns/net").symlink_to("net:[9]")
    assert capabilities.is_initial("net") is initial
