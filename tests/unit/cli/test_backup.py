"""Backups by commands."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovblk.cli import main, make_parser
from aiovblk.cli.backup import BACKUP_KEY, parse_keep, run_backup, run_backups, run_restore
from aiovblk.cli.diskspec import KEY_FILE
from aiovblk.server import Export
from aiovblk.storage import FileDevice, MemoryDevice, Tracked
from aiovblk.storage.backup import Keep, ObjectTarget

from ...support.network_client import serve

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]  # they choose their own

MIB = 1 << 20

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (KEY_FILE, BACKUP_KEY):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; return what it prints, be it the error that it is to fail with."""

    def run(*words: str, fails: int = 0, out: bool = False) -> str:
        try:
            status = main([*words, "--loop", "asyncio"])
        except SystemExit as exc:  # of argparse
            status = int(str(exc.code))
        output = capsys.readouterr()
        assert status == fails, output
        return output.err if fails and not out else output.out

    return run


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A file to back up: data, and a hole behind it."""
    path = tmp_path / "raw"
    path.write_bytes(os.urandom(MIB))
    os.truncate(path, 4 * MIB)
    return path


def change(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(4096))


def test_disk_is_backed_up_and_restored(run: Run, raw: Path) -> None:
    run("copy", "file:raw", "folder:disk")
    printed = run("backup", "folder:disk", "folder:backups")
    (first,) = re.findall(r"^(\w+): in full; 1M read, 1M written\n$", printed)
    printed = run("backup", "folder:disk", "folder:backups")
    (second,) = re.findall(rf"^([\w-]+): by what differs from {first}; 0B read, 0B ", printed)
    table = run("backups", "folder:backups")
    assert table.split()[:4] == ["BACKUP", "TIME", "SIZE", "POINT"]
    assert re.findall(r"^\d\w+Z(?:-2)?", table, re.MULTILINE) == [first, second]
    found = json.loads(run("backups", "folder:backups", "--json"))
    assert [each["name"] for each in found["backups"]] == [first, second]
    assert run("backups", "folder:backups", "--verify") == "2 backups: all is well\n"
    run("restore", "folder:backups", "file:new", "--name", first)
    assert Path("new").read_bytes() == raw.read_bytes()
    assert not Path("new.restoring").exists()
    change(Path("new"), 8192)
    facts = json.loads(run("restore", "folder:backups", "file:new", "--json"))
    assert (facts["name"], facts["base"], facts["written"]) == (second, None, 4096)
    assert Path("new").read_bytes() == raw.read_bytes()
    run("restore", "folder:backups", "folder:another")
    run("copy", "folder:another", "file:copied")
    assert Path("copied").read_bytes() == raw.read_bytes()
    facts = json.loads(run("restore", "folder:backups", "folder:disk", "--json"))
    assert (facts["base"], facts["read"]) == (second, 0)


def test_retention(run: Run, raw: Path) -> None:
    run("copy", "file:raw", "folder:disk")
    names = []
    for _ in range(3):
        facts = json.loads(
            run("backup", "folder:disk", "folder:backups", "--keep", "last=2", "--json")
        )
        names.append(facts["name"])
    assert facts["dropped"] == names[:1]
    found = json.loads(run("backups", "folder:backups", "--json"))
    assert [each["name"] for each in found["backups"]] == names[1:]
    printed = run("backup", "folder:disk", "folder:backups", "--keep", "daily=7,weekly=4")
    assert f"\ndropped {names[1]}, {names[2]}; " in printed


def test_file_is_compared_with_its_backup_in_a_file(run: Run, raw: Path) -> None:
    run("backup", "file:raw", "file:backup")
    change(raw, 4096)
    facts = json.loads(run("backup", "file:raw", "file:backup", "--json", "--rate", "1G"))
    assert (facts["compared"] > 0, facts["written"], facts["point"]) == (True, 4096, None)
    assert Path("backup").read_bytes() == raw.read_bytes()
    assert run("backups", "file:backup", "--verify") == "1 backups: all is well\n"
    run("restore", "file:backup", "file:new")
    assert Path("new").read_bytes() == raw.read_bytes()
    change(Path("backup"), 12288)
    error = run("backups", "file:backup", "--verify", fails=1)
    assert error == "aiovblk: 1 problems in 1 backups\n"
    found = json.loads(run("backups", "file:backup", "--verify", "--json", fails=1, out=True))
    assert found["problems"] == ["the bytes from 0 to 1048576 are damaged"]
    assert "are damaged" in run("restore", "file:backup", "file:other", fails=1)
    assert not Path("other").exists()


async def test_export_is_the_target_and_the_source(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = MemoryDevice(8 * MIB)
    uri = f"nbd+unix:///x?socket={os.getcwd()}/s"
    parse = make_parser().parse_args
    async with serve({"x": Export(device)}, unix="s"):
        for _ in range(2):
            await run_backup(parse(["backup", "file:raw", uri, "--state", "state", "--json"]))
            assert await device.read(0, 4 * MIB) == raw.read_bytes()
            change(raw, 4096)
        await run_backup(parse(["backup", uri, "folder:copy", "--identity", "the export"]))
        capsys.readouterr()
        await run_backups(parse(["backups", uri, "--state", "state", "--json"]))
        (found,) = json.loads(capsys.readouterr().out)["backups"]
        assert found["source"] == f"file {raw}"
        await run_restore(parse(["restore", uri, "file:new", "--state", "state"]))
    assert Path("new").read_bytes() == bytes(await device.read(0, 4 * MIB))
    assert raw.read_bytes() != Path("new").read_bytes()
    (found,) = await ObjectTarget(f"file://{os.getcwd()}/copy").backups()
    assert (found.size, found.source) == (8 * MIB, "the export")


def test_snapshot_is_its_own_point(run: Run, raw: Path) -> None:
    run("copy", "file:raw", "folder:disk")
    for name in ("monday", "tuesday"):
        run("snapshot", "folder:disk", name)
        facts = json.loads(
            run("backup", f"folder:disk?snapshot={name}", "folder:backups", "--json")
        )
        assert re.fullmatch(rf"{name}@\d+", facts["point"])
    assert facts["compared"] == facts["read"] == 0
    names = re.findall("^[a-z]+", run("snapshot", "folder:disk"), re.MULTILINE)
    assert names == ["monday", "tuesday"]  # none was taken


@pytest.mark.parametrize("layers", [(), ("--layer", "read-only")])
def test_snapshot_that_was_taken_again_is_another_state(
    run: Run, raw: Path, layers: tuple[str, ...]
) -> None:
    run("copy", "file:raw", "folder:disk")
    run("snapshot", "folder:disk", "nightly")
    run("backup", "folder:disk?snapshot=nightly", "folder:backups", *layers)
    change(raw, MIB // 2)
    run("copy", "file:raw", "folder:disk")
    run("snapshot", "folder:disk", "nightly", "--drop")
    run("snapshot", "folder:disk", "nightly")
    printed = run("backup", "folder:disk?snapshot=nightly", "folder:backups", *layers)
    assert ": by comparing; 1M read, 4K written\n" in printed
    run("restore", "folder:backups", "file:new")
    assert Path("new").read_bytes() == raw.read_bytes()


def test_each_side_has_a_key_of_its_own(
    run: Run, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("key", "other"):
        Path(name).write_text(os.urandom(32).hex())
        Path(name).chmod(0o600)
    monkeypatch.setenv(KEY_FILE, "key")
    run("copy", "file:raw", "folder:disk")
    run("backup", "folder:disk", "folder:same")
    run("backup", "folder:disk", "folder:plain", "--backup-key", "none")
    run("backup", "folder:disk", "folder:others", "--backup-key", "other")
    monkeypatch.setenv(BACKUP_KEY, "other")
    run("restore", "folder:others", "file:restored")
    assert Path("restored").read_bytes() == raw.read_bytes()
    assert "is not the key" in run("backups", "folder:same", fails=1)
    run("backups", "folder:same", "--backup-key", "key")
    run("backups", "folder:plain", "--backup-key", "none")
    run("backup", "file:raw", "folder:from-a-file", "--backup-key", "other")
    assert "is not encrypted" in run("backup", "file:raw", "file:b", fails=2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("folder:disk", "nbd://host/disk"), "add --state FOLDER"),
        (("folder:disk", "memory:1G"), "cannot hold backups; write s3://BUCKET/FOLDER"),
        (("folder:disk", "disk"), "cannot hold backups"),
        (("folder:disk", "folder:b?size=1G"), "a target has the size and the blocks of its source"),
        (("folder:disk", "folder:b?snapshot=x"), "--name names a backup"),
        (("folder:disk", "folder:b", "--state", "x"), "--state is for a file or an export"),
        (("folder:disk", "folder:b", "--point", "x"), "--point is not for a disk in an object"),
        (("folder:disk", "folder:b", "--layer", "read-only"), "--layer is not for a disk in an"),
        (("folder:disk", "folder:b", "--keep", "daily"), "must be a whole number"),
        (("folder:disk", "folder:b", "--keep", "never=1"), "must be rules such as daily=7,weekly"),
        (("folder:disk", "folder:b", "--keep", "last=0"), "say how many backups"),
        (("folder:disk", "folder:b", "--rate", "0"), "must be more than 0 bytes"),
    ],
)
def test_call_that_cannot_be_is_refused(run: Run, words: tuple[str, ...], reason: str) -> None:
    run("create", "folder:disk?size=1M")
    assert reason in run("backup", *words, fails=2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("backup", "file:raw", "folder:b", "--point", "x"), "no bitmap 'x'; there are: none"),
        (("backup", "file:raw", "file:raw"), "raw exists and is no backup"),
        (("backup", "file:raw", "file:b", "--keep", "daily=1"), "holds the newest backup only"),
        (("backup", "file:nothing", "file:b"), "nothing"),
        (("backups", "file:nothing"), "there is no backup"),
        (("backups", "folder:nothing"), "there is no disk in"),
        (("restore", "file:nothing", "file:new"), "there is no backup"),
    ],
)
def test_what_fails_is_said(run: Run, raw: Path, words: tuple[str, ...], reason: str) -> None:
    assert reason in run(*words, fails=1)
    assert not Path("new").exists()


def test_backup_that_is_not_there_is_said(run: Run, raw: Path) -> None:
    run("backup", "file:raw", "folder:b")
    error = run("restore", "folder:b", "file:new", "--name", "monday", fails=1)
    assert re.fullmatch(r"aiovblk: there is no backup 'monday'; there are: 2\w+Z\n", error)


def test_restore_into_a_disk_whose_changes_are_recorded(run: Run, raw: Path) -> None:
    layer = ("--layer", "tracked:path=bitmaps")

    def add_point(name: str) -> None:
        async def add() -> None:
            tracked = Tracked(FileDevice(raw), "bitmaps")
            await tracked.add(name)
            await tracked.unmount()

        asyncio.run(add())

    def back_up(point: str) -> str:
        add_point(point)
        printed = run("backup", "file:raw", "folder:b", "--point", point, "--json", *layer)
        return str(json.loads(printed)["name"])

    first = back_up("one")
    before = raw.read_bytes()

    async def write() -> None:
        tracked = Tracked(FileDevice(raw), "bitmaps")
        await tracked.write(MIB, memoryview(bytes([7]) * 4096))
        await tracked.unmount()

    asyncio.run(write())
    back_up("two")
    facts = json.loads(run("restore", "folder:b", "file:raw", "--name", first, "--json", *layer))
    assert facts["compared"] == 0
    assert raw.read_bytes() == before
    back_up("three")
    run("restore", "folder:b", "file:new")
    assert Path("new").read_bytes() == before


def test_restore_of_another_size_that_was_interrupted_is_not_continued(run: Run, raw: Path) -> None:
    run("backup", "file:raw", "folder:b")
    unfinished = Path("new.restoring")
    unfinished.write_bytes(b"x" * 8 * MIB)
    error = run("restore", "folder:b", "file:new", fails=1)
    assert f"new.restoring has {8 * MIB} bytes, and the backup {4 * MIB}: " in error
    assert not Path("new").exists()
    os.truncate(unfinished, 4 * MIB)
    run("restore", "folder:b", "file:new")
    assert Path("new").read_bytes() == raw.read_bytes()


def test_rules_are_parsed() -> None:
    assert parse_keep("daily=7,weekly=4") == Keep(daily=7, weekly=4)
    assert parse_keep("last=1,hourly=2,monthly=3,yearly=4") == Keep(
        last=1, hourly=2, monthly=3, yearly=4
    )
