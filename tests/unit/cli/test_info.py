"""``aiovblk info``: what a SPEC, or an attached device, is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from aiovblk.cli import info, main
from aiovblk.cli.diskspec import KEY_FILE, DiskSpec
from aiovblk.cli.errors import SpecError
from aiovblk.cli.info import as_text, describe
from aiovblk.cli.spec import load_device
from aiovblk.kernel import sysfs
from aiovblk.server import Export
from aiovblk.storage import FileDevice, MemoryDevice, objects

from ...support.kernel_tree import KernelTree
from ...support.network_client import serve
from ...support.stream_server import serving
from ...support.web_server import CONTENT, Web

pytestmark = pytest.mark.one_loop  # of no account here

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_FILE, raising=False)
    monkeypatch.chdir(tmp_path)


async def test_memory() -> None:
    found = await describe("memory:1M?block_size=512")
    assert (found["kind"], found["size"], found["block_size"]) == ("MemoryDevice", MIB, 512)
    assert {"read", "write", "trim"} <= set(found["operations"])  # type: ignore[call-overload]


async def test_file_that_no_process_has_locked() -> None:
    Path("disk").write_bytes(bytes(4096))
    os.truncate("disk", MIB)
    found = await describe("file:disk")
    assert (found["kind"], found["size"], found["writer"]) == ("file", MIB, None)
    assert found["allocated"] == Path("disk").stat().st_blocks * 512
    await FileDevice("disk").unmount()  # it is not locked


async def test_file_that_a_process_writes_to_names_that_process() -> None:
    Path("disk").write_bytes(bytes(MIB))
    device = FileDevice("disk")
    found = await describe("file:disk?block_size=512")
    assert (found["size"], found["writer"]) == (MIB, f"process {os.getpid()}")
    await device.unmount()


async def test_export_has_what_its_server_tells() -> None:
    exports = {"x": Export(MemoryDevice(MIB), read_only=True, description="my disk")}
    async with serve(exports, unix="s"):
        found = await describe(f"nbd+unix:///x?socket={os.getcwd()}/s")
    assert (found["kind"], found["size"], found["description"]) == ("NBD export", MIB, "my disk")
    assert "READ_ONLY" in found["flags"]  # type: ignore[operator]
    assert (found["minimum_block"], found["preferred_block"]) == (1, 4096)


async def test_file_on_a_web_server_is_shown_without_its_query() -> None:
    async with serving(Web(CONTENT)) as web:
        found = await describe(web.url("/disk.img?token=1"))
    assert (found["kind"], found["size"]) == ("HTTPDevice", len(CONTENT))
    assert "token" not in json.dumps(found)


async def test_disk_in_a_store_has_its_snapshots_and_its_writer() -> None:
    await DiskSpec.parse("folder:disk?size=1M&chunk_size=64K&compress=yes").create()
    device = await load_device("folder:disk")
    await objects.snapshot(f"file://{os.getcwd()}/disk", name="one")
    found = await describe("folder:disk")
    await device.unmount()
    assert (found["size"], found["chunk_size"], found["compressed"]) == (MIB, 1 << 16, True)
    assert str(found["writer"]).startswith(f"process {os.getpid()} on ")
    snapshots: Any = found["snapshots"]
    assert [each["name"] for each in snapshots] == ["one"]
    lines = as_text(found).splitlines()
    assert lines[-2].split() == ["SNAPSHOT", "TIME", "SIZE", "CLONES"]
    assert lines[-1].startswith("one ")
    snapshot = await describe("folder:disk?snapshot=one")
    assert (snapshot["kind"], snapshot["size"]) == ("ObjectStoreDevice", MIB)


async def test_description_changes_nothing() -> None:
    await DiskSpec.parse("folder:disk?size=1M").create()
    before = sorted(Path("disk").rglob("*"))
    await describe("folder:disk")
    with pytest.raises(FileNotFoundError, match="there is no disk in"):
        await describe("folder:other?size=1M")
    assert sorted(Path("disk").rglob("*")) == before
    assert not Path("other").exists()


async def test_attached_device_is_that_of_the_list(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.device("nbd0", "43:0")
    tree.device("nbd1", "43:32", sectors=2048, thread=77)
    tree.process(77, "python")
    monkeypatch.setattr(info, "resolve", lambda path: int(path[-1]))
    found = await describe("/dev/nbd1")
    assert (found["kind"], found["size"]) == ("attached device", 2048 * sysfs.SECTOR)
    assert found["server_name"] == "python"
    with pytest.raises(SpecError, match="/dev/nbd0 is not attached"):
        await describe("/dev/nbd0")


def test_text_has_a_line_for_each_fact() -> None:
    facts = {"kind": "x\x1b[2J", "size": 1536, "multi_conn": True, "flags": ["A", "B"]}
    facts["writer"] = None
    assert as_text(facts).splitlines() == [
        r"kind        x\x1b[2J",
        "size        1.5K (1536 bytes)",
        "multi conn  yes",
        "flags       A, B",
        "writer      -",
    ]


def test_command_prints_text_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "memory:1M"]) == 0
    assert "size        1M (1048576 bytes)" in capsys.readouterr().out
    assert main(["info", "memory:1M", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == MIB
    assert main(["info", "file:missing"]) == 1
    assert capsys.readouterr().err == "aiovblk: missing: No such file or directory\n"
