"""A fake machine for the checks of the doctor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from aiovblk.cli.doctor.findings import Finding
from aiovblk.ublk.commands import Feature

from .kernel_tree import KernelTree

ALL = (1 << 41) - 1


class Host:
    """A machine in order: two devices, all privileges, udev."""

    def __init__(self, tree: KernelTree, root: Path) -> None:
        self.tree = tree
        self.root = root
        self.nodes: dict[int, str] = {}
        self.opening: Callable[[str], None] = lambda path: None
        self.sys_flags = 0
        self.has_netlink = True
        self.ublk_control = root / "dev/ublk-control"
        self.ublk_features: Feature | OSError = Feature.USER_COPY | Feature.UPDATE_SIZE
        self.io_uring_refusal: OSError | None = None
        tree.write(self.ublk_control, "")
        self.ublk_control.chmod(0o600)
        self.parameters = tree.block.parent / "module/nbd/parameters"
        for index in range(2):
            self.add_device(index)
        tree.write(self.parameters / "max_part", "31\n")
        tree.write(root / "run/udev/control", "")
        tree.write(tree.proc / "sys/net/core/wmem_max", "212992\n")
        for process in (1, 77):
            for kind, number in (("user", 0xEFFFFFFD), ("pid", 0xEFFFFFFC), ("net", 9)):
                if not (tree.proc / str(process)).exists():
                    tree.process(process, "python")
                (tree.proc / f"{process}/ns/{kind}").symlink_to(f"{kind}:[{number}]")
        (tree.proc / "self").symlink_to("77")
        self.capabilities(ALL)

    def add_device(self, index: int) -> None:
        self.tree.device(f"nbd{index}", f"43:{index * 32}")
        self.nodes[index] = f"43:{index * 32}"

    def attach(self, index: int, thread: int = 99) -> None:
        directory = self.tree.block / f"nbd{index}"
        self.tree.write(directory / "size", "8\n")
        self.tree.write(directory / "pid", f"{thread}\n")

    def capabilities(self, effective: int) -> None:
        text = f"Name:\tpython\nTgid:\t77\nCapEff:\t{effective:016x}\n"
        self.tree.write(self.tree.proc / "77/status", text)

    def ask_ublk(self) -> Feature:
        if isinstance(self.ublk_features, OSError):
            raise self.ublk_features
        return self.ublk_features

    def namespace(self, kind: str, number: int) -> None:
        link = self.tree.proc / f"77/ns/{kind}"
        link.unlink()
        link.symlink_to(f"{kind}:[{number}]")

    def remove_driver(self) -> None:
        for index in range(2):
            (self.tree.block / f"nbd{index}").rename(self.root / f"removed{index}")


def lines(check: Callable[[], Iterator[Finding]]) -> list[str]:
    return [str(finding) for finding in check()]
