"""What is read from /sys and /proc of NBD devices."""

from __future__ import annotations

import os
import stat
from types import SimpleNamespace

import pytest

from aiovblk.kernel import procfs, status, sysfs, users

from ...support.kernel_tree import KernelTree


def test_indices_are_those_of_nbd_devices_in_order(tree: KernelTree) -> None:
    for name in ("nbd10", "nbd2", "nbd0", "sda", "nbdx", "nbd1extra"):
        (tree.block / name).mkdir()
    assert sysfs.indices() == [0, 2, 10]


def test_without_the_driver_there_are_no_indices(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sysfs.indices() == []
    monkeypatch.setattr(sysfs, "SYS_BLOCK", tree.block / "missing")
    assert sysfs.indices() == []


def test_attached_device_shows_its_thread_and_size(tree: KernelTree) -> None:
    tree.device("nbd3", "43:96", sectors=2048, thread=4242)
    assert sysfs.server_thread(3) == 4242
    assert sysfs.size(3) == 1 << 20
    assert not sysfs.is_free(3)


def test_device_that_is_not_attached_is_free(tree: KernelTree) -> None:
    tree.device("nbd3", "43:96")
    assert sysfs.server_thread(3) is None
    assert sysfs.size(3) == 0
    assert sysfs.is_free(3)


@pytest.mark.parametrize(("sectors", "thread"), [(8, None), (0, 77)])
def test_half_detached_device_is_not_free(
    tree: KernelTree, sectors: int, thread: int | None
) -> None:
    tree.device("nbd3", "43:96", sectors=sectors, thread=thread)
    assert not sysfs.is_free(3)


def test_device_that_is_unknown_is_free_and_has_nothing(tree: KernelTree) -> None:
    assert sysfs.is_free(7)
    assert sysfs.partitions(7) == []
    assert users.mount_points(7) == []


def test_geometry_is_what_the_kernel_says(tree: KernelTree) -> None:
    directory = tree.device("nbd0", "43:0")
    assert (status.block_size(0), status.is_read_only(0)) == (512, False)
    tree.write(directory / "queue/logical_block_size", "4096\n")
    tree.write(directory / "ro", "1\n")
    assert (status.block_size(0), status.is_read_only(0)) == (4096, True)


def test_partitions_are_in_order_of_their_numbers(tree: KernelTree) -> None:
    directory = tree.device("nbd1", "43:32")
    for number in (10, 2, 1):
        tree.partition(f"nbd1p{number}", f"43:{32 + number}")
    (directory / "power").mkdir()
    assert sysfs.partitions(1) == ["nbd1p1", "nbd1p2", "nbd1p10"]


def test_thread_belongs_to_its_process(tree: KernelTree) -> None:
    tree.process(100, "fio")
    tree.write(tree.proc / "123/status", "Name:\taiovblk _do_it\nTgid:\t100\nPid:\t123\n")
    assert procfs.process_of(123) == (100, "aiovblk _do_it")
    assert procfs.process_of(100) == (100, "fio")
    assert procfs.process_of(999) is None


def test_process_name_cut_within_a_character_is_shown_all_the_same(tree: KernelTree) -> None:
    name = ("ü" * 8).encode()[:15]  # TASK_COMM_LEN
    tree.device("nbd0", "43:0")
    tree.process(100, name, opens=("/dev/nbd0",))
    process = procfs.process_of(100)
    assert process is not None
    assert process[1].startswith("ü" * 7)
    assert [number for number, _ in users.openers(0)] == [100]


def test_mount_points_of_device_and_partitions_are_found(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    tree.partition("nbd0p1", "43:1")
    tree.process(1, "init")
    tree.mount(1, "8:1", "/", "/dev/sda1")
    tree.mount(1, "43:0", "/mnt/whole", "/dev/nbd0")
    tree.mount(1, "43:1", "/mnt/part", "/dev/nbd0p1")
    tree.mount(1, "43:10", "/mnt/other", "/dev/nbd0p10")
    assert users.mount_points(0) == ["/mnt/whole", "/mnt/part"]


def test_mount_is_found_by_its_number_whatever_its_source(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    tree.process(1, "init")
    tree.mount(1, "43:0", "/mnt", "/dev/root")
    assert users.mount_points(0) == ["/mnt"]


def test_btrfs_is_found_by_its_source(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    tree.process(1, "init")
    tree.mount(1, "0:55", "/mnt/btrfs", "/dev/nbd0", kind="btrfs")
    tree.mount(1, "0:56", "/mnt/nfs", "server:/dev/nbd0", kind="nfs")
    assert users.mount_points(0) == ["/mnt/btrfs"]


def test_source_is_found_behind_any_number_of_optional_fields(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    tree.process(1, "init")
    tree.write(
        tree.proc / "1/mountinfo",
        "36 25 0:55 / /none rw - btrfs /dev/nbd0 rw\n"
        "37 25 0:55 / /three rw shared:1 master:2 unbindable - btrfs /dev/nbd0 rw\n",
    )
    assert users.mount_points(0) == ["/none", "/three"]


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        (rb"/mnt/my\040disk", "/mnt/my disk"),
        (rb"/a\011b\012c\134d", "/a\tb\nc\\d"),
        (rb"/back\134040slash", "/back\\040slash"),
        (rb"/mnt/a\040-\040b", "/mnt/a - b"),
        ("/mnt/größe".encode(), "/mnt/größe"),
        (b"/mnt/\xff", os.fsdecode(b"/mnt/\xff")),
        (b"/mnt/carriage\rreturn", "/mnt/carriage\rreturn"),
    ],
)
def test_mount_points_are_unescaped(tree: KernelTree, escaped: bytes, plain: str) -> None:
    tree.device("nbd0", "43:0")
    tree.process(1, "init")
    tree.write(tree.proc / "1/mountinfo", b"36 25 43:0 / %b rw - ext4 /dev/nbd0 rw\n" % escaped)
    assert users.mount_points(0) == [plain]


def test_mounts_of_other_namespaces_are_found_and_each_namespace_is_read_once(
    tree: KernelTree,
) -> None:
    tree.device("nbd0", "43:0")
    for number, namespace in ((1, 1), (2, 1), (3, 9)):
        tree.process(number, "program", namespace=namespace)
    tree.mount(1, "43:0", "/mnt", "/dev/nbd0")
    tree.mount(2, "43:0", "/never/read", "/dev/nbd0")
    tree.mount(3, "43:0", "/in/a/container", "/dev/nbd0")
    (tree.proc / "self").symlink_to("1")
    assert users.mount_points(0) == ["/mnt", "/in/a/container"]


def test_namespace_of_a_process_that_just_ended_is_read_from_another(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    for number in (1, 2):
        tree.process(number, "program")
    (tree.proc / "self").symlink_to("1")
    (tree.proc / "1/mountinfo").unlink()
    tree.mount(2, "43:0", "/mnt", "/dev/nbd0")
    assert users.mount_points(0) == ["/mnt"]


def test_mounts_come_first_among_holders(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    tree.process(77, "fio", opens=("/dev/nbd0",))
    tree.mount(77, "43:0", "/mnt", "/dev/nbd0")
    assert users.users(0) == ["mounted at /mnt"]


def test_swap_is_a_holder(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    tree.partition("nbd0p2", "43:2")
    tree.write(
        tree.proc / "swaps",
        b"Filename\t\tType\t\tSize\tUsed\tPriority\n"
        b"/swap\\040\xfffile    file\t\t8\t0\t-2\n"
        b"/dev/nbd0p2             partition\t1000\t0\t-3\n"
        b"/dev/nbd01              partition\t1000\t0\t-4\n",
    )
    assert users.users(0) == ["/dev/nbd0p2 is in use as swap"]


def test_device_mapper_is_a_holder_with_its_name(tree: KernelTree) -> None:
    directory = tree.device("nbd0", "43:0")
    partition = tree.partition("nbd0p1", "43:1")
    tree.write(directory / "holders/dm-0/dm/name", "vault\n")
    (partition / "holders/md127").mkdir()
    assert users.users(0) == ["held by dm-0 (vault)", "held by md127"]


def test_opener_is_a_holder_when_nothing_else_is(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    tree.partition("nbd0p1", "43:1")
    tree.process(os.getpid(), "pytest", opens=("/dev/nbd0",))
    tree.process(77, "fio", opens=("/dev/nbd0p1",))
    tree.process(78, "cat", opens=("/dev/nbd1",))
    assert users.users(0) == ["opened by process 77 (fio)"]


def test_openers_are_those_of_device_and_partitions(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    tree.partition("nbd0p1", "43:1")
    tree.process(77, "fio", opens=("/dev/nbd0", "/dev/nbd0"))
    tree.process(78, "dd", opens=("/dev/nbd0p1",))
    tree.process(79, "cat", opens=("/dev/nbd01", "/dev/nbd0p10"))
    assert sorted(users.openers(0)) == [(77, "fio"), (78, "dd")]


def test_opener_is_found_though_its_other_files_close_meanwhile(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    process = tree.process(77, "fio", opens=("/dev/nbd0",))
    for fd in range(10, 30):
        (process / "fd" / str(fd)).mkdir()  # readlink fails, as it does of a file that was closed
    assert users.openers(0) == [(77, "fio")]


def test_process_that_just_ended_is_passed_over(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0")
    (tree.proc / "76").mkdir()
    tree.process(77, "fio", opens=("/dev/nbd0",))
    assert users.openers(0) == [(77, "fio")]


def stat_as(monkeypatch: pytest.MonkeyPatch, mode: int, major: int, minor: int) -> None:
    status = SimpleNamespace(st_mode=mode | 0o660, st_rdev=os.makedev(major, minor))
    monkeypatch.setattr("aiovblk.kernel.sysfs.os.stat", lambda path: status)


def test_node_stands_for_the_device_of_its_number(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.device("nbd3", "43:96")
    stat_as(monkeypatch, stat.S_IFBLK, 43, 96)
    assert sysfs.index_of_node("/dev/any/name") == 3
    assert sysfs.name_of(os.makedev(43, 96)) == "nbd3"


def test_node_of_a_partition_is_refused_with_its_device(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.device("nbd3", "43:96")
    tree.partition("nbd3p1", "43:97")
    stat_as(monkeypatch, stat.S_IFBLK, 43, 97)
    with pytest.raises(ValueError, match="a partition; use the whole device, /dev/nbd3"):
        sysfs.index_of_node("/dev/nbd3p1")


@pytest.mark.parametrize(("number", "name"), [((8, 0), "sda"), ((99, 0), "unknown")])
def test_node_of_another_driver_is_refused_with_its_name(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch, number: tuple[int, int], name: str
) -> None:
    tree.device("sda", "8:0")
    stat_as(monkeypatch, stat.S_IFBLK, *number)
    with pytest.raises(ValueError, match=f"not an NBD device .*{name}"):
        sysfs.index_of_node("/dev/sda")


def test_file_and_missing_node_are_refused(tree: KernelTree) -> None:
    with pytest.raises(ValueError, match="not a block device"):
        sysfs.index_of_node(str(tree.proc / "swaps"))
    with pytest.raises(FileNotFoundError):
        sysfs.index_of_node(str(tree.proc / "missing"))
