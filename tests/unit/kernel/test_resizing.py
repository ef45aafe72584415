"""Which users keep a device from shrinking; ``held`` has the nodes that are claimed already."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovblk import DeviceBusyError, atfork
from aiovblk.kernel.resizing import ExclusiveClaims, claim_beyond

from ...support.kernel_tree import KernelTree

SECTORS = 2048  # of a mebibyte
MIB = 1 << 20


@pytest.fixture
def disk(tree: KernelTree) -> KernelTree:
    """nbd0 with two partitions of 16 MiB each."""
    tree.device("nbd0", "43:0", sectors=32 * SECTORS, thread=5)
    for number in (1, 2):
        partition = tree.partition(f"nbd0p{number}", f"43:{number}")
        tree.write(partition / "start", f"{(number - 1) * 16 * SECTORS}\n")
        tree.write(partition / "size", f"{16 * SECTORS}\n")
    return tree


class Recorded(ExclusiveClaims):
    def __init__(self, *held: str) -> None:
        super().__init__()
        self.held = held
        self.claimed: list[str] = []

    def add(self, path: str) -> bool:
        if path in self.held:
            return False
        self.claimed.append(path)
        return True


def test_device_without_users_is_claimed_as_a_whole(disk: KernelTree) -> None:
    claims = Recorded()
    claim_beyond(0, "/dev/nbd0", 4096, claims)
    assert claims.claimed == ["/dev/nbd0"]


def hold(disk: KernelTree, member: str) -> None:
    (disk.block / member / "holders/dm-3").mkdir()


def test_partition_in_use_that_stays_leaves_those_beyond_to_be_claimed(disk: KernelTree) -> None:
    hold(disk, "nbd0/nbd0p1")
    claims = Recorded("/dev/nbd0", "/dev/nbd0p1")
    claim_beyond(0, "/dev/nbd0", 16 * MIB, claims)
    assert claims.claimed == ["/dev/nbd0p2"]


def test_partition_in_use_that_ends_beyond_refuses(disk: KernelTree) -> None:
    hold(disk, "nbd0/nbd0p1")
    with pytest.raises(DeviceBusyError, match="cannot shrink to 16773120 bytes") as caught:
        claim_beyond(0, "/dev/nbd0", 16 * MIB - 4096, Recorded("/dev/nbd0", "/dev/nbd0p1"))
    assert caught.value.errno == errno.EBUSY
    assert caught.value.holders == ("held by dm-3",)


def test_whole_device_in_use_refuses(disk: KernelTree) -> None:
    hold(disk, "nbd0")
    every = ("/dev/nbd0", "/dev/nbd0p1", "/dev/nbd0p2")
    with pytest.raises(DeviceBusyError, match="held by dm-3"):
        claim_beyond(0, "/dev/nbd0", 20 * MIB, Recorded(*every))


def test_device_that_a_program_has_claimed_is_refused_with_its_name(disk: KernelTree) -> None:
    disk.process(77, "qemu", opens=("/dev/nbd0",))
    with pytest.raises(DeviceBusyError) as caught:
        claim_beyond(0, "/dev/nbd0", 20 * MIB, Recorded("/dev/nbd0"))
    assert caught.value.holders == ("opened by process 77 (qemu)",)


def test_partition_that_a_program_has_claimed_is_refused_with_its_name(disk: KernelTree) -> None:
    hold(disk, "nbd0/nbd0p1")
    disk.process(77, "qemu", opens=("/dev/nbd0p2",))
    with pytest.raises(DeviceBusyError) as caught:
        claim_beyond(0, "/dev/nbd0", 20 * MIB, Recorded("/dev/nbd0", "/dev/nbd0p2"))
    assert caught.value.holders == ("opened by process 77 (qemu)",)


def test_claim_that_comes_after_the_release_is_closed(tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    claims = ExclusiveClaims()
    assert claims.add(str(tmp_path / "node"))
    before = len(os.listdir("/proc/self/fd"))
    claims.release()
    assert claims.add(str(tmp_path / "node"))
    assert len(os.listdir("/proc/self/fd")) == before - 1
    with pytest.raises(FileNotFoundError):
        claims.add(str(tmp_path / "missing"))


class Contended:
    """A lock that another thread has just had, which has left something behind."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile

    def __enter__(self) -> None:
        self.meanwhile()

    def __exit__(self, *_: object) -> None:
        pass


def test_claim_that_is_made_just_before_all_are_released_is_released_too(tmp_path: Path) -> None:
    claims = ExclusiveClaims()
    fd = atfork.open_protected(str(tmp_path))
    claims._guard = Contended(lambda: claims._fds.append(fd))  # type: ignore[assignment]  # see it
    claims.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
