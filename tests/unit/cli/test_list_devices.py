"""``aiovblk list``: the table and JSON of attached devices."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from aiovblk import cli
from aiovblk.cli import list_devices
from aiovblk.cli.list_devices import AttachedDevice
from aiovblk.kernel.status import DeviceState

from ...support.kernel_tree import KernelTree

DISK = AttachedDevice(
    driver="nbd",
    index=0,
    path="/dev/nbd0",
    size=64 << 20,
    block_size=4096,
    read_only=False,
    rotational=False,
    flags=["HAS_FLAGS", "SEND_FLUSH", "SEND_TRIM"],
    server_pid=123,
    server_name="python",
    state=DeviceState.ALIVE,
    identity="disk 7",
    owner=None,
    in_flight=3,
    partitions=["/dev/nbd0p1"],
    holders=["dm-0"],
    used=["mounted at /mnt", "held by dm-0 (vault)"],
)
LOST = AttachedDevice(
    driver="nbd",
    index=12,
    path="/dev/nbd12",
    size=3 << 29,
    block_size=512,
    read_only=True,
    rotational=True,
    flags=["HAS_FLAGS", "READ_ONLY"],
    server_pid=None,
    server_name=None,
    state=DeviceState.DEAD,
    identity=None,
    owner=None,
    in_flight=0,
    partitions=[],
    holders=[],
    used=[],
)


def test_table_has_a_line_per_device() -> None:
    head, disk, lost = list_devices.as_table([DISK, LOST]).splitlines()
    assert head == (
        "DEVICE      SIZE  BLOCK  ACCESS  SERVER        STATE  INFLIGHT  IDENTITY  FLAGS       USED"
    )
    assert disk == (
        "/dev/nbd0   64M   4096   rw      123 (python)  alive  3         disk 7    flush,trim  "
        "mounted at /mnt, held by dm-0 (vault)"
    )
    assert lost == (
        "/dev/nbd12  1.5G  512    ro      gone          dead   0         -         -           -"
    )


def test_table_of_nothing_is_its_head() -> None:
    assert list_devices.as_table([]) == "  ".join(list_devices.COLUMNS)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (512, "512B"), (1024, "1K"), (1 << 20, "1M"), (5 << 40, "5T"), (2 << 60, "2E")],
)
def test_size_is_shown_in_its_unit(size: int, text: str) -> None:
    assert list_devices.as_table([replace(DISK, size=size)]).splitlines()[1].split()[1] == text


def test_json_has_all_fields_and_sizes_in_bytes() -> None:
    first, second = json.loads(list_devices.as_json([DISK, LOST]))
    assert first == {
        "driver": "nbd",
        "index": 0,
        "path": "/dev/nbd0",
        "size": 67108864,
        "block_size": 4096,
        "read_only": False,
        "rotational": False,
        "flags": ["HAS_FLAGS", "SEND_FLUSH", "SEND_TRIM"],
        "server_pid": 123,
        "server_name": "python",
        "state": "alive",
        "identity": "disk 7",
        "owner": None,
        "in_flight": 3,
        "partitions": ["/dev/nbd0p1"],
        "holders": ["dm-0"],
        "used": ["mounted at /mnt", "held by dm-0 (vault)"],
    }
    assert (second["server_pid"], second["server_name"], second["used"]) == (None, None, [])
    assert json.loads(list_devices.as_json([])) == []


def test_list_shows_what_the_kernel_knows(
    tree: KernelTree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.device("nbd0", "43:0")
    attached = tree.device("nbd1", "43:32", sectors=2048, thread=77)
    tree.write(attached / "ro", "1\n")
    tree.write(attached / "inflight", "       2        1\n")
    tree.write(attached / "backend", "disk 7\n")
    tree.write(attached / "queue/rotational", "1\n")
    (tree.partition("nbd1p1", "43:33") / "holders/dm-0").mkdir()
    tree.process(77, "python", opens=("/dev/nbd1",))
    tree.mount(77, "43:33", "/mnt", "/dev/nbd1p1")
    tree.device("nbd2", "43:64", sectors=8, thread=88)  # its server is gone
    tree.kernel_threads("nbd1")
    assert cli.main(["list", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "driver": "nbd",
        "index": 1,
        "path": "/dev/nbd1",
        "size": 1 << 20,
        "block_size": 512,
        "read_only": True,
        "rotational": True,
        "flags": ["HAS_FLAGS", "READ_ONLY", "ROTATIONAL"],
        "server_pid": 77,
        "server_name": "python",
        "state": "alive",
        "identity": "disk 7",
        "owner": None,
        "in_flight": 3,
        "partitions": ["/dev/nbd1p1"],
        "holders": ["dm-0"],
        "used": ["mounted at /mnt", "held by dm-0"],
    }
    assert (second["path"], second["server_pid"], second["used"]) == ("/dev/nbd2", None, [])
    assert second["state"] == "dead"
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "/dev/nbd1  1M    512    ro      77 (python)  alive  3         disk 7    rotational  "
        "mounted at /mnt, held by dm-0"
    )


def test_flags_are_those_of_debugfs(tree: KernelTree) -> None:
    device = tree.device("nbd0", "43:0", sectors=8, thread=77)
    tree.write(device / "queue/write_zeroes_max_bytes", "4294966784\n")  # of an earlier server
    debug = tree.block.parent / "kernel/debug/nbd/nbd0/flags"
    tree.write(debug, "Hex: 0x0000010d\n\nKnown flags:\nNBD_FLAG_HAS_FLAGS\n")
    (shown,) = list_devices.attached()
    assert shown.flags == ["HAS_FLAGS", "SEND_FLUSH", "SEND_FUA", "CAN_MULTI_CONN"]


def test_flags_are_read_off_the_queue_where_debugfs_is_hidden(tree: KernelTree) -> None:
    device = tree.device("nbd0", "43:0", sectors=8, thread=77)
    attributes = {"write_cache": "write back", "fua": 1, "discard_max_bytes": 4096}
    for name, value in attributes.items():
        tree.write(device / "queue" / name, f"{value}\n")
    (shown,) = list_devices.attached()
    assert shown.flags == ["HAS_FLAGS", "SEND_FLUSH", "SEND_FUA", "SEND_TRIM"]


def test_server_is_no_user_of_its_device(tree: KernelTree) -> None:
    tree.device("nbd0", "43:0", sectors=8, thread=77)
    tree.process(77, "python", opens=("/dev/nbd0",))
    tree.process(99, "fio", opens=("/dev/nbd0",))
    (device,) = list_devices.attached()
    assert device.used == ["opened by process 99 (fio)"]
