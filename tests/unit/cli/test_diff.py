"""``aiovblk diff``: what differs between two states of a disk, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovblk.cli import main
from aiovblk.cli.diskspec import KEY_FILE

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]  # it chooses its own

KIB, MIB = 1 << 10, 1 << 20

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(KEY_FILE, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that is to end with a status; return what it prints."""

    def run(*words: str, status: int = 0) -> str:
        found = main([*words, "--loop", "asyncio"])
        output = capsys.readouterr()
        assert found == status, output
        return output.out + output.err

    return run


@pytest.fixture
def disk(run: Run) -> str:
    """A disk with a snapshot, after which a chunk was written, one was zeroed, and a block."""
    raw = Path("raw")
    raw.write_bytes(b"a" * MIB)
    run("copy", "file:raw", "folder:disk?chunk_size=64K")
    run("snapshot", "folder:disk", "one")
    with raw.open("r+b") as file:
        file.write(b"b" * 64 * KIB + bytes(64 * KIB))
    run("copy", "file:raw", "folder:disk")
    return "folder:disk"


def test_no_difference_is_said(run: Run, disk: str) -> None:
    run("snapshot", disk, "two")
    assert run("diff", f"{disk}?snapshot=two", disk) == "no difference\n"
    assert run("diff", f"{disk}?snapshot=two", f"{disk}?snapshot=two") == "no difference\n"
    run("resize", disk, "2M")
    line = run("diff", f"{disk}?snapshot=two", disk)
    assert line == "no difference; the size is 2M, it was 1M\n"


def test_json_is_one_object(run: Run, disk: str) -> None:
    found = json.loads(run("diff", f"{disk}?snapshot=one", disk, "--json"))
    sizes = {"size": MIB, "since_size": MIB, "block_size": 512, "chunk_size": 64 * KIB}
    assert {name: found[name] for name in sizes} == sizes
    assert found.keys() == sizes.keys() | {"extents", "totals"}
    # The copy has written all chunks anew.
    data = {"offset": 0, "length": 64 * KIB, "zero": False, "granularity": 64 * KIB}
    zero = {"offset": 64 * KIB, "length": 64 * KIB, "zero": True, "granularity": 64 * KIB}
    assert found["extents"][:2] == [data, zero]
    totals = found["totals"]
    assert totals["extents"] == len(found["extents"]) == 3
    assert (totals["data"], totals["zero"]) == (MIB - 64 * KIB, 64 * KIB)
    assert totals["changed"] == totals["by_chunk"] == MIB
    none = json.loads(run("diff", disk, disk, "--json"))
    assert none["extents"] == []
    assert none["totals"] == dict.fromkeys(totals, 0)


def test_text_says_what_json_does(run: Run, disk: str) -> None:
    header, *lines, sums = run("diff", f"{disk}?snapshot=one", disk).splitlines()
    assert header.split() == ["OFFSET", "LENGTH", "WHAT", "GRANULARITY"]
    assert [line.split() for line in lines] == [
        ["0", f"{64 * KIB}", "data", "64K"],
        [f"{64 * KIB}", f"{64 * KIB}", "zero", "64K"],
        [f"{128 * KIB}", f"{MIB - 128 * KIB}", "data", "64K"],
    ]
    assert len({line.index(line.split()[2]) for line in lines}) == 1
    assert sums == (
        "1M differ in 3 extents: 960K of data, 64K of zeroes; 1M known only by chunks of 64K"
    )


def test_clone_is_compared_with_its_origin(run: Run, disk: str) -> None:
    run("clone", f"{disk}?snapshot=one", "folder:copy")
    assert run("diff", f"{disk}?snapshot=one", "folder:copy") == "no difference\n"
    assert "1M differ in 3 extents" in run("diff", "folder:copy", disk)


@pytest.mark.parametrize(
    ("earlier", "later", "status", "reason"),
    [
        ("folder:disk", "folder:other", 1, "share no origin"),
        ("folder:disk?snapshot=two", "folder:disk", 1, "no snapshot 'two'; there are: one"),
        ("folder:disk", "folder:none", 1, "there is no disk in"),
        ("folder:disk", "s3://bucket/disk", 2, "both must be in the same bucket"),
        ("file:raw", "folder:disk", 2, "'file:raw' is no disk in an object store"),
        ("folder:disk", "memory:1M", 2, "'memory:1M' is no disk in an object store"),
        ("folder:disk?size", "folder:disk", 2, "is no size"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    run: Run, disk: str, earlier: str, later: str, status: int, reason: str
) -> None:
    run("create", "folder:other?size=1M")
    assert reason in run("diff", earlier, later, status=status)


def test_encrypted_disk_is_compared_with_its_key(
    run: Run, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    Path("key").write_text("ab" * 32)
    Path("key").chmod(0o600)
    monkeypatch.setenv(KEY_FILE, "key")
    run("create", "folder:secret?size=1M")
    run("snapshot", "folder:secret", "one")
    assert run("diff", "folder:secret?snapshot=one", "folder:secret") == "no difference\n"
    monkeypatch.delenv(KEY_FILE)
    reason = run("diff", "folder:secret?snapshot=one", "folder:secret", status=1)
    assert "is encrypted; give its key" in reason
