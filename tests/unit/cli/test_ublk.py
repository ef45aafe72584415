"""ublk devices in the commands: list, top, info, unmount, resize, limit, bitmap, mount."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aiovblk
from aiovblk import AttachError, DeviceBusyError, cli, kernel, ublk
from aiovblk.cli import attached, mount
from aiovblk.cli.control import control_path, request_command, taking_commands
from aiovblk.cli.device_rates import activities, samples
from aiovblk.cli.errors import SpecError
from aiovblk.cli.top import table
from aiovblk.kernel import driver, locks, users
from aiovblk.ublk import identities
from aiovblk.ublk.commands import State

from ...support.kernel_tree import KernelTree
from ...support.ublk_tree import UblkTree

STAT = "100 0 800 50 20 0 160 10 0 40 60"


@pytest.fixture
def served(ublk_tree: UblkTree) -> UblkTree:
    """A device that process 77 serves for user 1000, with a file system."""
    ublk_tree.add(3, owner=1000)
    tree, disk = ublk_tree.tree, ublk_tree.tree.block / "ublkb3"
    tree.process(77, "python")
    tree.write(disk / "queue/write_cache", "write back\n")
    tree.write(disk / "queue/discard_max_bytes", "4096\n")
    tree.write(disk / "inflight", "       2        1\n")
    tree.write(disk / "stat", f"{STAT}\n")
    tree.mount(77, "259:3", "/mnt", "/dev/ublkb3")
    return ublk_tree


# What is shown


def test_list_shows_devices_of_both_drivers(
    served: UblkTree, capsys: pytest.CaptureFixture[str]
) -> None:
    served.tree.device("nbd0", "43:0", sectors=8, thread=77)
    assert cli.main(["list", "--json"]) == 0
    nbd, found = json.loads(capsys.readouterr().out)
    assert (nbd["driver"], nbd["path"], nbd["owner"]) == ("nbd", "/dev/nbd0", None)
    assert found == {
        "driver": "ublk",
        "index": 3,
        "path": "/dev/ublkb3",
        "size": 1 << 20,
        "block_size": 512,
        "read_only": False,
        "rotational": False,
        "flags": ["HAS_FLAGS", "SEND_FLUSH", "SEND_TRIM"],
        "server_pid": 77,
        "server_name": "python",
        "state": "alive",
        "identity": None,
        "owner": 1000,
        "in_flight": 3,
        "partitions": [],
        "holders": [],
        "used": ["mounted at /mnt"],
    }


def test_table_has_what_is_left_of_a_device_without_a_server(
    ublk_tree: UblkTree, capsys: pytest.CaptureFixture[str]
) -> None:
    ublk_tree.add(5, state=State.DEAD, server=-1)
    assert cli.main(["list"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["/dev/ublkb5", "0B", "512", "rw", "gone", "dead", "0", *"---"]


def test_server_of_another_users_device_is_not_visible(
    served: UblkTree, capsys: pytest.CaptureFixture[str]
) -> None:
    served.refusal = OSError(errno.EPERM, "no")
    assert cli.main(["list"]) == 0
    assert "  not visible  unknown  " in capsys.readouterr().out
    assert table(activities({}, samples())).endswith("  not visible")


def test_top_has_a_line_for_a_ublk_device(served: UblkTree) -> None:
    (sample,) = samples().values()
    assert sample.generation == 13
    line = table(activities({}, {"ublkb3": sample})).splitlines()[1]
    assert line.split() == [
        *("/dev/ublkb3", "1M", *"----", "3", "-"),
        *("77", "(python)"),
    ]


def test_disk_that_is_made_anew_has_no_rates_yet(served: UblkTree) -> None:
    before = samples()
    served.tree.write(served.tree.block / "ublkb3/diskseq", "14\n")
    (found,) = activities(before, samples())
    assert found.rates is None
    assert found.path == "/dev/ublkb3"


def test_dead_device_has_no_rates(ublk_tree: UblkTree) -> None:
    ublk_tree.add(5, state=State.DEAD, server=-1)
    assert samples() == {}


def test_info_is_that_of_the_list(served: UblkTree, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "/dev/ublkb3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["path"]) == ("attached device", "/dev/ublkb3")
    assert cli.main(["info", "/dev/ublkb4"]) == 1
    assert "/dev/ublkb4 is not attached" in capsys.readouterr().err


def test_program_that_has_the_node_of_a_device_that_is_gone_is_found(served: UblkTree) -> None:
    served.tree.process(99, "dd", opens=("/dev/ublkb3 (deleted)",))
    assert users.openers("ublkb3") == [(99, "dd")]


# Which device a path names


def test_node_is_found_by_its_number_whatever_it_is_called(
    served: UblkTree, tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"/dev/vdisk": os.makedev(259, 3), "/dev/vdisk1": os.makedev(259, 99)}
    tree.partition("ublkb3p1", "259:99")
    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_rdev=numbers[path]))
    assert attached.resolve("/dev/vdisk") == "ublkb3"
    with pytest.raises(AttachError, match="a partition; use the whole device, /dev/ublkb3"):
        attached.resolve("/dev/vdisk1")


def test_device_without_a_node_is_found_by_its_name(tree: KernelTree) -> None:
    assert attached.resolve("/dev/ublkb7") == "ublkb7"
    assert not attached.is_attached("ublkb7")
    with pytest.raises(aiovblk.NBDUnavailableError, match="NBD devices are called"):
        attached.resolve("/tmp/ublkb7")


def test_mount_by_nbd_says_what_a_ublk_device_takes(tree: KernelTree) -> None:
    with pytest.raises(AttachError, match='a ublk device, which takes attach="ublk"'):
        kernel.attach("/dev/ublkb7", None)  # type: ignore[arg-type]  # it is not looked at


def test_mount_by_ublk_says_that_it_takes_no_device_of_nbd() -> None:
    with pytest.raises(AttachError, match="ublk devices are called /dev/ublkb0 to /dev/ublkb10485"):
        ublk.attach("/dev/nbd0", None, None)  # type: ignore[arg-type]  # they are not looked at


# Commands


def test_unmount_takes_devices_of_both_drivers(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(ublk, "unmount", lambda path, **options: calls.append((path, options)))
    monkeypatch.setattr(kernel, "unmount", lambda path, **options: calls.append((path, options)))
    monkeypatch.setattr(driver, "resolve", lambda path: 0)
    assert cli.main(["unmount", "/dev/ublkb3", "--force", "--timeout", "5"]) == 0
    assert cli.main(["unmount", "/dev/nbd0"]) == 0
    assert calls == [
        ("/dev/ublkb3", {"force": True, "timeout": 5.0}),
        ("/dev/nbd0", {"force": False, "timeout": 30.0}),
    ]


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where control sockets are; it is not there yet."""
    monkeypatch.setattr(locks, "LOCKS", tmp_path / "run")
    return tmp_path / "run"


async def test_server_of_a_ublk_device_takes_commands(run_directory: Path) -> None:
    async def limit(text: str) -> str:
        return f"limit {text}"

    async with taking_commands("ublkb3", {"limit": limit}):
        assert control_path("ublkb3") == run_directory / "ublkb3.control"
        assert run_directory.stat().st_mode & 0o777 == 0o755
        assert await request_command("ublkb3", "limit", text="none") == "limit none"
    with pytest.raises(SpecError, match="/dev/ublkb3 is not served by root's `aiovblk mount`"):
        await request_command("ublkb3", "limit", text="none")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("resize /dev/ublkb3 2M", "/dev/ublkb3 is not served by root's `aiovblk mount`"),
        ("resize /dev/ublkb4 2M", "/dev/ublkb4 is not mounted"),
        ("resize /dev/ublkb3 512K", "add --shrink"),
        ("limit /dev/ublkb3", "/dev/ublkb3 is not served by root's `aiovblk mount`"),
        ("bitmap /dev/ublkb3", "/dev/ublkb3 is not served by root's `aiovblk mount`"),
    ],
)
def test_commands_to_a_server_take_ublk_devices(
    served: UblkTree,
    run_directory: Path,
    capsys: pytest.CaptureFixture[str],
    words: str,
    error: str,
) -> None:
    assert cli.main(words.split()) in (1, 2)
    assert error in capsys.readouterr().err


# aiovblk mount


@pytest.mark.parametrize("path", [[], ["/dev/ublkb3"]])
def test_mount_by_ublk_passes_its_options_on(
    monkeypatch: pytest.MonkeyPatch, path: list[str]
) -> None:
    given: dict[str, Any] = {}

    def mounted(device: object, path: str | None, **options: Any) -> object:
        given.update(options, path=path)
        raise AttachError(errno.EPERM, "no")

    monkeypatch.setattr(mount, "mounted", mounted)
    assert cli.main(["mount", "memory:1M", *path, "--attach", "ublk", "--partitions"]) == 1
    assert (given["attach"], given["path"]) == ("ublk", path[0] if path else None)
    assert given["partitions"]


def test_forced_unmount_names_the_file_system_that_stays(tree: KernelTree) -> None:
    tree.process(77, "python")
    tree.mount(77, "259:3", "/mnt", "/dev/ublkb3")
    with pytest.raises(DeviceBusyError, match="until its file system is unmounted"):
        ublk.ensure_released(3, "/dev/ublkb3")


def test_device_that_was_made_again_is_not_what_was_unmounted(served: UblkTree) -> None:
    ublk.ensure_released(3, "/dev/ublkb3")


# Names


@pytest.mark.parametrize("path", ["/dev/ublkb007", "/dev/ublkb00", "/dev/ublkb12345678"])
@pytest.mark.usefixtures("served")
def test_name_that_no_device_has_is_not_another_devices(path: str) -> None:
    assert not attached.is_named_as_ublk(path)
    for look in (identities.number_of, attached.resolve):
        with pytest.raises(AttachError):
            look(path)
    assert identities.number_of("/dev/ublkb0") == 0
    assert attached.resolve("/dev/ublkb3") == "ublkb3"
