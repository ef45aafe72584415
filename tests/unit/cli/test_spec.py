"""SPECs and sizes: what opens a SPEC, and which ones are refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiovblk
from aiovblk.cli.errors import SpecError
from aiovblk.cli.sizes import parse_size
from aiovblk.cli.spec import ATTRIBUTE, SCHEMES, find_scheme, load_device
from aiovblk.client import RemoteDevice
from aiovblk.storage import FileDevice, Layer, MemoryDevice

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


# The table of schemes


@pytest.mark.parametrize(
    ("spec", "scheme"),
    [
        ("memory:1M", "memory"),
        ("file:disk.img", "file"),
        ("folder:disk", "folder"),
        ("s3://bucket/disk", "s3"),
        ("http://host/disk.img", "http"),
        ("HTTPS://host/disk.img", "https"),
        ("nbd+unix:///?socket=s", "nbd+unix"),
        ("NBDS://host", "nbds"),
    ],
)
def test_scheme_is_found_by_the_word_before_the_colon(spec: str, scheme: str) -> None:
    assert find_scheme(spec) is SCHEMES[scheme]


@pytest.mark.parametrize("spec", ["package.module:disk", "file.py:disk", "Memory:disk", "S3:disk"])
def test_all_else_is_an_attribute_of_a_module(spec: str) -> None:
    assert find_scheme(spec) is ATTRIBUTE


def test_schemes_that_copy_can_make() -> None:
    assert SCHEMES.keys() - {name for name, each in SCHEMES.items() if each.create} == {
        "memory",
        "http",
        "https",
        "nbd",
        "nbds",
        "nbd+unix",
        "nbds+unix",
    }


async def test_unmount_closes_the_connections_of_a_loaded_device(tmp_path: Path) -> None:
    async with aiovblk.serve(MemoryDevice(1 << 20), unix=f"{tmp_path}/socket") as server:
        device = await load_device(server.uris[0])
        assert isinstance(device, Layer)
        remote = device.inner
        assert isinstance(remote, RemoteDevice)
        assert repr(device) == repr(remote)
        await device.unmount()
        assert remote.connections == 0
