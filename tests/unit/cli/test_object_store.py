"""Disks in an object store, by commands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aiovblk.cli import main
from aiovblk.cli.diskspec import KEY_FILE, DiskSpec
from aiovblk.cli.errors import SpecError
from aiovblk.cli.spec import load_device

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]  # they choose their own

MIB = 1 << 20

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(KEY_FILE, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; return what it prints, be it the error that it is to fail with.

    A call that cannot be, which is status 2, is a failure as well.
    """

    def run(*words: str, fails: bool = False) -> str:
        status = main([words[0], *words[1:], "--loop", "asyncio"])
        output = capsys.readouterr()
        assert status in ((1, 2) if fails else (0,)), output
        return output.out + output.err if fails else output.out

    return run


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A file to copy to a disk, without zeroes."""
    path = tmp_path / "raw"
    path.write_bytes(os.urandom(MIB))
    return path


def chunks(folder: str = "disk") -> list[Path]:
    return sorted(Path(folder, "chunks").iterdir())


# SPECs


def test_disk_is_made_and_is_not_made_again(run: Run) -> None:
    run("create", "folder:disk?size=1G&chunk_size=64K&block_size=512&compress=yes")
    assert [str(path) for path in Path("disk").rglob("*")] == ["disk/disk.json"]
    error = run("create", "folder:disk?size=1G", fails=True)
    assert error == f"aiovblk: {Path.cwd()}/disk: there is a disk already; it was left as it is\n"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("folder:", "names no folder; write folder:PATH"),
        ("folder:disk", r"size missing: add \?size=10G to folder:disk"),
        ("folder:disk?sise=1G", r"unknown options \(sise\); there are: block_size, chunk_size,"),
        ("folder:disk?size=big", "'big' is no size; write a number of bytes, or one like 64M"),
        ("folder:disk?size=1G&compress=lz4", "compress= is yes or no, not 'lz4'"),
        ("folder:disk?size=1000", "the size must be a multiple of 4096 bytes, not 1000"),
        ("folder:disk?size=1G&chunk_size=3M", "chunk_size must be a power of two"),
        ("folder:disk?size=1P&chunk_size=4K", "choose a larger chunk_size"),
        ("http://host/disk?size=1G", "is no object store; write s3://BUCKET/FOLDER"),
    ],
)
def test_spec_that_is_no_disk_is_refused(run: Run, spec: str, reason: str) -> None:
    assert re.search(reason, run("create", spec, fails=True))
    assert not Path("disk").exists()


@pytest.mark.parametrize("text", ["yes", "no", "true", "false", "1", "0", "", "zstd", "YES"])
def test_flag_is_yes_or_no(text: str) -> None:
    expected = text.lower() not in ("no", "false", "0")
    assert DiskSpec.parse(f"folder:disk?compress={text}").compress == expected


@pytest.mark.parametrize("option", ["snapshot=x", "size=1M", "compress=yes", "block_size=512"])
@pytest.mark.parametrize("command", ["check", "snapshot", "convert", "gc", "delete", "resize"])
def test_option_that_a_command_would_ignore_is_refused(run: Run, command: str, option: str) -> None:
    run("create", "folder:disk?size=1M")
    more = ["2M"] if command == "resize" else []
    output = run(command, f"folder:disk?{option}", *more, fails=True)
    name = option.partition("=")[0]
    if (command, name) == ("delete", "snapshot"):
        assert "write the disk without ?snapshot= to delete all of it" in output
    else:
        assert f"write the disk alone, without ?{name}=: folder:disk" in output
    assert "all is well" in run("check", "folder:disk")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["folder:disk?snapshot=x&size=1M", "folder:copy"], "without ?size=: folder:disk"),
        (["folder:disk?snapshot=x", "folder:copy?size=1M"], "without ?size=: folder:copy"),
        (["folder:disk?snapshot=x", "folder:copy?snapshot=x"], "without ?snapshot=: folder:copy"),
    ],
)
def test_clone_has_no_other_options(run: Run, words: list[str], reason: str) -> None:
    run("create", "folder:disk?size=1M")
    assert f"write the disk alone, {reason}" in run("clone", *words, fails=True)
    assert not Path("copy").exists()


def test_error_names_the_disk_as_the_user_did(run: Run) -> None:
    for words in (["check"], ["gc"], ["snapshot"]):
        error = run(*words, "folder:disk", fails=True)
        where = os.path.abspath("disk")
        assert error.startswith(f"aiovblk: there is no disk in {where}; create one first")
    run("create", "folder:disk?size=1M")
    error = run("clone", "folder:disk", "folder:other", fails=True)
    assert error == "aiovblk: snapshot missing: write folder:disk?snapshot=NAME\n"


async def test_disk_is_made_when_it_is_opened_with_a_size_and_only_then() -> None:
    with pytest.raises(FileNotFoundError, match="create one first"):
        await load_device("folder:disk")
    with pytest.raises(FileNotFoundError, match="create one first"):
        await load_device("folder:disk?size=1M", read_only=True)
    for _ in range(2):
        device = await load_device("folder:disk?size=1M")
        assert device.size == MIB
        await device.unmount()
    with pytest.raises(SpecError, match="the disk has 1M, not what size= says; leave it out"):
        await load_device("folder:disk?size=2M")
    await (await load_device("folder:disk")).unmount()  # nothing holds it


async def test_special_characters_name_a_folder_of_their_own() -> None:
    for name in ("a#b", "a", "a%41", "a b", "ä", "a~b", "x=y"):
        await (await load_device(f"folder:{name}?size=1M")).unmount()
        assert Path(name, "disk.json").exists()
        assert Path(name, "log").exists()


# Snapshots and clones


def test_snapshot_is_taken_listed_mounted_and_dropped(run: Run, raw: Path) -> None:
    run("copy", f"file:{raw}", "folder:disk?chunk_size=64K")
    run("snapshot", "folder:disk", "one+1")
    header, line = run("snapshot", "folder:disk").splitlines()
    assert header.split() == ["SNAPSHOT", "TIME", "SIZE", "CLONES"]
    assert re.fullmatch(r"one\+1 +\d+-\d+-\d+ \d+:\d+:\d+ +1M +-", line)
    (found,) = json.loads(run("snapshot", "folder:disk", "--json"))
    assert (found["name"], found["size"], found["clones"]) == ("one+1", MIB, [])
    assert datetime.fromisoformat(found["time"]).tzinfo is UTC
    Path("zeroes").write_bytes(bytes(MIB))
    run("copy", "file:zeroes", "folder:disk")
    run("copy", "folder:disk?snapshot=one+1", "file:back")
    assert Path("back").read_bytes() == raw.read_bytes()
    assert "there is a snapshot 'one+1' already" in run(
        "snapshot", "folder:disk", "one+1", fails=True
    )
    assert "'a/b' is no name for a snapshot" in run("snapshot", "folder:disk", "a/b", fails=True)
    run("snapshot", "folder:disk", "one+1", "--drop")
    assert run("snapshot", "folder:disk") == "SNAPSHOT  TIME  SIZE  CLONES\n"
    assert json.loads(run("snapshot", "folder:disk", "--json")) == []
    assert "there is no snapshot 'one+1'; there are: none" in run(
        "copy", "folder:disk?snapshot=one+1", "file:other", fails=True
    )


def test_snapshot_to_be_dropped_must_be_named(run: Run) -> None:
    run("create", "folder:disk?size=1M")
    assert "snapshot name missing: add NAME" in run("snapshot", "folder:disk", "--drop", fails=True)
    assert "there is no snapshot 'x'" in run("snapshot", "folder:disk", "x", "--drop", fails=True)


def test_clone_has_what_the_snapshot_has_and_keeps_it(run: Run, raw: Path) -> None:
    run("copy", f"file:{raw}", "folder:disk?chunk_size=64K")
    run("snapshot", "folder:disk", "one")
    run("clone", "folder:disk?snapshot=one", "folder:deep/copy")
    run("copy", "folder:deep/copy", "file:back")
    assert Path("back").read_bytes() == raw.read_bytes()
    assert run("snapshot", "folder:disk").endswith("deep/copy\n")
    assert "is needed by clones" in run("snapshot", "folder:disk", "one", "--drop", fails=True)
    assert "there is a disk already" in run(
        "clone", "folder:disk?snapshot=one", "folder:deep/copy", fails=True
    )


def test_disk_is_deleted_with_its_snapshots_unless_a_clone_needs_one(run: Run, raw: Path) -> None:
    run("copy", f"file:{raw}", "folder:disk?chunk_size=64K")
    run("snapshot", "folder:disk", "one")
    run("clone", "folder:disk?snapshot=one", "folder:copy")
    assert "needs the snapshot 'one'" in run("delete", "folder:disk", fails=True)
    assert re.fullmatch(r"deleted \d+ objects, .*\n", run("delete", "folder:copy"))
    reason = run("delete", "folder:disk?snapshot=one", fails=True)
    assert "`aiovblk snapshot folder:disk one --drop` drops a snapshot" in reason
    assert re.fullmatch(r"deleted \d+ objects, 1\..*M\n", run("delete", "folder:disk"))
    assert "there is no disk in" in run("info", "folder:disk", fails=True)
    assert "there is no disk in" in run("delete", "folder:disk", fails=True)
    run("create", "folder:disk?size=1M")


@pytest.mark.parametrize("target", ["s3://bucket/copy", "gs://bucket/copy"])
def test_clone_in_another_bucket_is_refused(run: Run, target: str) -> None:
    error = run("clone", "s3://other/disk?snapshot=one", target, fails=True)
    assert "a clone must be in the same bucket; `aiovblk copy` copies to another one" in error


# Upkeep


def test_garbage_is_counted_and_then_deleted(run: Run, raw: Path) -> None:
    run("copy", f"file:{raw}", "folder:disk?chunk_size=64K")
    run("snapshot", "folder:disk", "one")
    Path("zeroes").write_bytes(bytes(MIB))
    run("copy", "file:zeroes", "folder:disk")
    run("gc", "folder:disk")
    run("snapshot", "folder:disk", "one", "--drop")
    before = len(chunks())
    assert before == 16
    assert run("gc", "folder:disk", "--dry-run").startswith("would delete 17 objects, 1")
    assert len(chunks()) == before
    assert run("gc", "folder:disk").startswith("deleted 17 objects, 1")
    assert chunks() == []
    assert run("gc", "folder:disk") == "deleted 0 objects, 0B\n"


def test_disk_that_is_intact_passes_the_check(run: Run, raw: Path) -> None:
    run("copy", f"file:{raw}", "folder:disk?chunk_size=64K")
    assert re.fullmatch(r"16 chunks, 1(\.\d+)?M stored: all is well\n", run("check", "folder:disk"))


def test_damage_is_reported_by_the_check(run: Run, raw: Path) -> None:
    run("copy", f"file:{raw}", "folder:disk?chunk_size=64K")
    run("snapshot", "folder:disk", "one")
    missing, damaged = chunks()[:2]
    missing.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    lines = run("check", "folder:disk", "--no-progress", fails=True).splitlines()
    assert lines[0] == f"chunks/{missing.name} is missing"
    assert lines[1].endswith(f"{damaged.name} is damaged: its checksum does not match")
    assert lines[2] == "aiovblk: 2 problems; 15 chunks were checked"
    lines = run("check", "folder:disk", "--quick", fails=True).splitlines()
    assert lines[1] == "aiovblk: 1 problems; 15 chunks were checked"


def test_snapshot_without_its_state_is_reported_by_the_check(run: Run, raw: Path) -> None:
    run("copy", f"file:{raw}", "folder:disk?chunk_size=64K")
    run("snapshot", "folder:disk", "one")
    state = max(Path("disk/map").iterdir())
    run("copy", f"file:{raw}", "folder:disk")
    state.unlink()
    lines = run("check", "folder:disk", fails=True).splitlines()
    assert lines[0] == f"snapshot one: map/{state.name} is missing"
    assert state.name in run("gc", "folder:disk", fails=True)


# Keys


def test_key_is_that_of_the_disk_or_nothing_is_read(
    run: Run, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("key").write_text("ab" * 32 + "\n")
    Path("binary").write_bytes(bytes([0xAB]) * 32)
    Path("other").write_text("cd" * 32)
    Path("malformed").write_text("no key at all\n")
    monkeypatch.setenv(KEY_FILE, "key")
    run("copy", f"file:{raw}", "folder:disk?chunk_size=64K")
    data = raw.read_bytes()
    assert all(data[:16] not in each.read_bytes() for each in chunks())
    monkeypatch.setenv(KEY_FILE, "binary")
    run("copy", "folder:disk", "file:back")
    assert Path("back").read_bytes() == data
    for name, reason in (
        ("other", "this is not the key of the disk"),
        ("malformed", "malformed contains no key; `openssl rand -hex 32 > FILE` makes one"),
        ("missing", "missing: No such file or directory"),
        ("", "the disk is encrypted; give its key"),
    ):
        monkeypatch.setenv(KEY_FILE, name)
        assert reason in run("check", "folder:disk", fails=True)


def test_key_of_a_disk_without_encryption_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("create", "folder:disk?size=1M")
    Path("key").write_text("ab" * 32)
    monkeypatch.setenv(KEY_FILE, "key")
    assert "not encrypted; give no key" in run("check", "folder:disk", fails=True)


# Copies


def test_copy_makes_a_disk_of_the_size_of_its_source(run: Run, raw: Path) -> None:
    run("copy", f"file:{raw}", "folder:disk?compress=yes")
    run("copy", "folder:disk", "file:back")
    assert Path("back").read_bytes() == raw.read_bytes()


def test_copy_goes_to_the_beginning_of_a_larger_disk(run: Run, raw: Path) -> None:
    run("create", "folder:disk?size=2M")
    run("copy", f"file:{raw}", "folder:disk")
    run("copy", "folder:disk", "file:back")
    assert Path("back").read_bytes() == raw.read_bytes() + bytes(MIB)


def test_copy_to_a_disk_of_another_size_than_is_said_is_refused(run: Run, raw: Path) -> None:
    run("create", "folder:disk?size=2M")
    error = run("copy", f"file:{raw}", "folder:disk?size=1M", fails=True)
    assert error == "aiovblk: the disk has 2M, not what size= says; leave it out\n"
    Path("small").write_bytes(bytes(4096))
    assert "do not fit" in run("copy", "folder:disk", "file:small", fails=True)
    run("copy", "folder:disk", "file:new")  # it was unlocked
