"""The users of a device: some claim nothing, some are devices on top, some show nowhere."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aiovblk import DeviceBusyError, atfork
from aiovblk.kernel import resizing, users, writeback

from ...support.kernel_tree import KernelTree

SERVER = 77


@pytest.fixture
def disk(tree: KernelTree) -> Path:
    directory = tree.device("nbd0", "43:0", sectors=2048, thread=SERVER)
    tree.partition("nbd0p1", "43:1")
    tree.process(SERVER, "aiovblk")
    return directory


def loop(tree: KernelTree, name: str, number: str, backing: str) -> Path:
    directory = tree.device(name, number, sectors=8)
    tree.write(directory / "loop/backing_file", f"{backing}\n")
    return directory


def stack(tree: KernelTree, below: Path, name: str, number: str, label: str = "") -> Path:
    """Add a device mapper or md device on top of another."""
    directory = tree.device(name, number, sectors=8)
    if label:
        tree.write(directory / "dm/name", f"{label}\n")
    (below / "holders" / name).symlink_to(directory)
    return directory


@pytest.mark.parametrize("backing", ["/dev/nbd0", "/dev/nbd0p1"])
def test_a_loop_device_is_a_user_that_claims_nothing(
    tree: KernelTree, disk: Path, backing: str
) -> None:
    loop(tree, "loop3", "7:3", backing)
    assert users.exclusive_users(0) == users.shared_users(0) == users.users(0) == ["held by loop3"]
    assert users.holding_devices(0) == ["loop3"]
    with pytest.raises(DeviceBusyError, match=r"in use: held by loop3$"):
        users.refuse_if_unclaimed_users(0, "/dev/nbd0")


def test_a_loop_device_of_another_file_is_no_user(
    tree: KernelTree, disk: Path, tmp_path: Path
) -> None:
    for number, backing in enumerate(["/dev/nbd01", "/srv/dev/nbd0", str(tmp_path), "/dev/null"]):
        loop(tree, f"loop{number}", f"7:{number}", backing)
    assert users.exclusive_users(0) == []
    users.refuse_if_unclaimed_users(0, "/dev/nbd0")


def test_a_loop_device_of_another_node_of_the_device_is_found_by_its_number(
    tree: KernelTree, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop(tree, "loop0", "7:0", "/dev/disk")
    monkeypatch.setattr(users, "_number_of", {"/dev/disk": "43:0"}.get)
    assert users.shared_users(0) == ["held by loop0"]


def test_users_of_a_loop_device_are_named(tree: KernelTree, disk: Path) -> None:
    loop(tree, "loop3", "7:3", "/dev/nbd0")
    tree.mount(SERVER, "7:3", "/mnt", "/dev/loop3")
    assert users.users(0) == ["held by loop3 (mounted at /mnt)"]
    assert users.mount_points(0) == []
    assert users.stacked_mount_points(0) == ["/mnt"]


def test_a_stack_of_devices_is_described_to_the_top(tree: KernelTree, disk: Path) -> None:
    raid = stack(tree, disk, "md127", "9:127")
    vault = stack(tree, raid, "dm-0", "253:0", "vault")
    loop(tree, "loop0", "7:0", "/dev/dm-0")
    (vault / "holders/dm-0").symlink_to(vault)  # whatever /sys shows, this ends
    tree.mount(SERVER, "253:0", "/srv", "/dev/mapper/vault")
    tree.mount(SERVER, "7:0", "/mnt", "/dev/loop0")
    (user,) = users.users(0)
    assert user.startswith("held by md127 (held by dm-0 (vault; mounted at /srv; held by dm-0 (")
    assert "held by loop0 (mounted at /mnt)" in user
    assert users.stacked_mount_points(0) == ["/mnt", "/srv"]


@pytest.mark.parametrize(("levels", "scans"), [(0, 1), (2, 3)])
def test_stack_is_searched_no_further_than_to_its_top(
    tree: KernelTree, disk: Path, monkeypatch: pytest.MonkeyPatch, levels: int, scans: int
) -> None:
    below = disk
    for level in range(levels):
        below = stack(tree, below, f"dm-{level}", f"254:{level}")
    searched: list[object] = []

    def no_loops(directories: object) -> list[Path]:
        searched.append(directories)
        return []

    monkeypatch.setattr(users, "_loops", no_loops)
    assert users.stacked_devices(0) == [f"dm-{level}" for level in reversed(range(levels))]
    assert len(searched) == scans


def test_swap_on_top_of_a_loop_device_is_named(tree: KernelTree, disk: Path) -> None:
    loop(tree, "loop0", "7:0", "/dev/nbd0")
    tree.write(tree.proc / "swaps", "Filename\n/dev/loop0 partition 1000 0 -2\n")
    assert users.users(0) == ["held by loop0 (/dev/loop0 is in use as swap)"]


def test_what_exports_a_device_is_a_user_that_claims_nothing(tree: KernelTree, disk: Path) -> None:
    config = tree.block.parent / "kernel/config"
    tree.write(config / "nvmet/subsystems/one/namespaces/1/device_path", "/dev/nbd0\n")
    tree.write(config / "target/core/iblock_0/two/udev_path", "/dev/nbd0p1\n")
    tree.write(config / "usb_gadget/g/functions/mass_storage.0/lun.0/file", "/dev/nbd0\n")
    tree.write(config / "nvmet/subsystems/one/namespaces/2/device_path", "/dev/sda\n")
    assert users.shared_users(0) == [
        "exported by an NVMe target (nvmet/subsystems/one/namespaces/1)",
        "exported by a SCSI target (target/core/iblock_0/two)",
        "exported by a USB gadget (usb_gadget/g/functions/mass_storage.0/lun.0)",
    ]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("ext4", "ext4/nbd0"),
        ("xfs", "xfs/nbd0p1"),
        ("f2fs", "f2fs/nbd0"),
        ("btrfs", "btrfs/5fd1-22/devices/nbd0"),
    ],
)
def test_a_file_system_that_was_unmounted_lazily_is_named(
    tree: KernelTree, disk: Path, kind: str, place: str
) -> None:
    tree.write(tree.block.parent / "fs" / place / "delayed_allocation_blocks", "0\n")
    (user,) = users.exclusive_users(0)
    assert user.startswith(f"held by a file system ({kind}) that is mounted nowhere to be seen")
    assert "umount -l" in user
    tree.mount(SERVER, "43:0", "/mnt", "/dev/nbd0")
    tree.mount(SERVER, "43:1", "/mnt", "/dev/nbd0p1")
    assert users.exclusive_users(0) == ["mounted at /mnt"]


def test_an_external_log_is_part_of_a_file_system(tree: KernelTree, disk: Path) -> None:
    with (tree.proc / str(SERVER) / "mountinfo").open("a") as table:
        table.write("36 25 8:1 / /x rw - xfs /dev/sda1 rw,attr2,logdev=/dev/nbd0p1,noquota\n")
    assert users.mount_points(0) == ["/x"]


def test_a_cache_of_the_block_layer_is_a_holder(tree: KernelTree, disk: Path) -> None:
    (disk / "bcache").mkdir()
    assert users.exclusive_users(0) == ["held by bcache"]


def test_user_that_shows_nowhere_is_described(tree: KernelTree, disk: Path) -> None:
    busy = users.busy_error(0, "/dev/nbd0")
    assert busy.errno == errno.EBUSY
    assert "shows nowhere" in str(busy)
    assert "umount -l" in str(busy)


def test_the_server_is_no_user_of_its_own_device(tree: KernelTree, disk: Path) -> None:
    (tree.proc / str(SERVER) / "fd/9").symlink_to("/dev/nbd0")
    assert users.openers(0) == [(SERVER, "aiovblk")]
    assert users.users(0) == []
    (tree.proc / str(SERVER) / "fd/10").symlink_to(
        "/dev/nbd0"
    )  # opened once more by the same process
    assert users.users(0) == ["opened by process 77 (aiovblk)"]


def test_protected_descriptors_of_this_process_do_not_make_it_a_user(
    tree: KernelTree, disk: Path
) -> None:
    own = tree.process(os.getpid(), "pytest")
    protected = atfork.open_protected(os.devnull)
    try:
        (own / "fd" / str(protected)).unlink(missing_ok=True)
        (own / "fd" / str(protected)).symlink_to("/dev/nbd0")
        assert users.users(0) == []
        (own / "fd/1000").symlink_to("/dev/nbd0")
        assert users.users(0) == ["opened by this process"]
    finally:
        atfork.close_protected(protected)


def test_a_loop_device_keeps_a_device_from_shrinking(tree: KernelTree, disk: Path) -> None:
    tree.write(disk / "nbd0p1/start", "1024\n")
    tree.write(disk / "nbd0p1/size", "1024\n")
    loop(tree, "loop3", "7:3", "/dev/nbd0p1")
    with pytest.raises(DeviceBusyError, match="held by loop3"):
        resizing.claim_beyond(0, "/dev/nbd0", 4096, resizing.ExclusiveClaims())


def test_what_lies_on_top_is_written_back_first(
    tree: KernelTree, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop(tree, "loop3", "7:3", "/dev/nbd0")
    stack(tree, tree.block / "loop3", "dm-1", "253:1")
    tree.mount(SERVER, "253:1", "/mnt", "/dev/mapper/data")
    done: list[str] = []

    def sync(path: str, *, file_system: bool) -> None:
        done.append(f"syncfs {path}" if file_system else path)

    monkeypatch.setattr(writeback, "_sync_path", sync)
    monkeypatch.setattr("aiovblk.kernel.writeback.os.fsync", lambda fd: done.append("fsync"))
    writeback.sync(0, 0)
    assert done == ["syncfs /mnt", "/dev/dm-1", "/dev/loop3", "/dev/nbd0p1", "fsync"]
