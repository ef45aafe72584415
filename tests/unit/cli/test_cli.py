from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import aiovblk
from aiovblk import cli
from aiovblk.cli import list_devices
from aiovblk.cli.errors import SpecError
from aiovblk.cli.list_devices import AttachedDevice
from aiovblk.cli.sizes import parse_size
from aiovblk.cli.spec import load_device
from aiovblk.kernel.status import DeviceState
from aiovblk.storage import FileDevice, MemoryDevice

from ...support.kernel_tree import KernelTree

# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("0", 0),
        ("1K", 1 << 10),
        ("64M", 64 << 20),
        ("1G", 1 << 30),
        ("5T", 5 << 40),
        ("3P", 3 << 50),
        ("1.5G", 3 << 29),
        ("0.5k", 512),
        ("64MiB", 64 << 20),
        ("64MB", 64 << 20),
        ("4096B", 4096),
        (" 64 m ", 64 << 20),
        ("9007199254740993", (1 << 53) + 1),  # one more than a float can hold
    ],
)
def test_size_is_a_number_of_bytes_or_one_with_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "+1", "1E", "1e3", "1,5G", ".5G", "1.G", "1 G B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is no size; write"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0.3", "1.5", "0.1K", "0.3G"])
def test_size_with_a_part_of_a_byte_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is no whole number of bytes"):
        parse_size(text)


# SPECs

USERS_MODULE = """
import aiovblk

class Disk(aiovblk.BlockDevice):
    blocks = 3

class Shelf:
    disk = Disk()

disk = Disk()
number = 7

def make():
    return Disk()

async def make_later():
    return Disk()

def fail():
    raise LookupError("no such bucket")

def make_nothing():
    pass
"""


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user in the current directory, and no trace of it afterwards."""
    path = tmp_path / "users_module.py"
    path.write_text(USERS_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield path
    sys.modules.pop("users_module", None)


async def test_memory_has_the_size_that_was_asked_for() -> None:
    device = await load_device("memory:64M")
    assert isinstance(device, MemoryDevice)
    assert device.size == 64 << 20


async def test_file_is_opened_even_with_a_colon_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a:b.py"
    path.write_bytes(bytes(8192))
    device = await load_device(f"file:{path}")
    assert isinstance(device, FileDevice)
    assert (device.path, device.size, device.read_only) == (str(path), 8192, False)
    await device.unmount()


async def test_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        await load_device(f"file:{tmp_path}/missing")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="is empty; `truncate -s"):
        await load_device(f"file:{tmp_path}/empty")


@pytest.mark.parametrize("attribute", ["Disk", "disk", "Shelf.disk", "make", "make_later"])
@pytest.mark.parametrize("where", ["users_module", "users_module.py", "./users_module.py"])
async def test_attribute_is_a_device_or_makes_one(
    where: str, attribute: str, users_module: Path
) -> None:
    device = await load_device(f"{where}:{attribute}")
    assert type(device).__name__ == "Disk"
    assert device.blocks == 3


async def test_file_may_import_its_neighbour_and_lie_in_a_folder_with_a_colon(
    tmp_path: Path, users_module: Path
) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "neighbour.py").write_text(USERS_MODULE)
    (folder / "users_module.py").write_text("from neighbour import disk")
    try:
        assert (await load_device(f"{folder}/users_module.py:disk")).blocks == 3
    finally:
        del sys.modules["neighbour"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            "",
            "write memory:SIZE, file:PATH, nbd://HOST/EXPORT, s3://BUCKET/FOLDER, folder:PATH,"
            " https://HOST/FILE, package.module:attribute or file.py:attribute",
        ),
        ("file:", "'file:' names no file; write file:PATH"),
        ("users_module", "is no SPEC"),
        ("memory:much", "'much' is no size"),
        ("nowhere:disk", "there is no module 'nowhere'"),
        ("os.nowhere:disk", "there is no module 'os.nowhere'"),
        ("nowhere.py:disk", "there is no file nowhere.py"),
        ("users_module:nothing", "users_module has no attribute 'nothing'"),
        ("users_module.py:Disk.nothing", "users_module.py has no attribute 'Disk.nothing'"),
        ("users_module:number", "users_module:number is no BlockDevice but 7"),
        ("users_module:make_nothing", "users_module:make_nothing is no BlockDevice but None"),
    ],
)
async def test_spec_that_leads_nowhere_is_refused(
    spec: str, reason: str, users_module: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        await load_device(spec)
    assert reason in str(caught.value)


async def test_what_the_users_code_raises_comes_out(users_module: Path) -> None:
    with pytest.raises(LookupError, match="no such bucket"):
        await load_device("users_module:fail")
    users_module.write_text("import module_that_is_not_installed")
    with pytest.raises(ModuleNotFoundError, match="module_that_is_not_installed"):
        await load_device("users_module.py:disk")


# The command


@pytest.fixture(autouse=True)
def asyncio_log_level() -> Iterator[None]:
    logger = logging.getLogger("asyncio")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["format"],
        ["mount"],
        ["mount", "memory:1M", "/dev/nbd0", "/dev/nbd1"],
        ["mount", "memory:1M", "--concurrency", "many"],
        ["mount", "memory:1M", "--concurrency", "0"],
        ["mount", "memory:1M", "--unmount-timeout", "soon"],
        ["mount", "memory:1M", "--unmount-timeout", "-1"],
        ["mount", "memory:1M", "--handler-timeout", "0"],
        ["mount", "memory:1M", "--slow-request", "0"],
        ["mount", "memory:1M", "--timeout", "0"],
        ["mount", "memory:1M", "--loop", "twisted"],
        ["unmount"],
        ["unmount", "/dev/nbd0", "--hard"],
        ["list", "/dev/nbd0"],
    ],
)
def test_wrong_call_is_status_2_and_a_word_about_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    output, errors = capsys.readouterr()
    assert caught.value.code == 2
    assert output == ""
    assert errors.startswith("usage: aiovblk")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["mount", "memory:8000P"], "a process cannot address as much"),
        (["mount", "nowhere:disk"], "there is no module 'nowhere'"),
        (["mount", "aiovblk:BlockDevice"], "blocks must be at least 1, not 0"),
        (["unmount", "/dev/null"], "/dev/null: not a block device"),
        (["unmount", "--force", "/nowhere/nbd0"], "/nowhere/nbd0: no such device"),
    ],
)
def test_error_is_status_1_and_one_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(arguments)
    output, errors = capsys.readouterr()
    assert status == 1
    assert output == ""
    assert errors.startswith("aiovblk: ")
    assert errors.count("\n") == 1
    assert reason in errors


def test_interrupted_command_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[AttachedDevice]:
        raise KeyboardInterrupt

    monkeypatch.setattr(list_devices, "attached", interrupted)
    assert cli.main(["list"]) == 130


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"aiovblk {aiovblk.__version__}\n"


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiovblk", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_program_prints_errors_without_a_traceback_unless_it_is_verbose() -> None:
    done = run_program("unmount", "/dev/null")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "aiovblk: /dev/null: not a block device\n"
    verbose = run_program("--verbose", "unmount", "/dev/null")
    assert verbose.returncode == 1
    assert "Traceback (most recent call last)" in verbose.stderr
    assert verbose.stderr.endswith(done.stderr)


# Listing

DISK = AttachedDevice(
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
    in_flight=3,
    partitions=["/dev/nbd0p1"],
    holders=["dm-0"],
    used=["mounted at /mnt", "held by dm-0 (vault)"],
)
LOST = AttachedDevice(
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


def test_flags_are_those_that_debugfs_tells(tree: KernelTree) -> None:
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
