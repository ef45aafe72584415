"""Ordinary users serve by ublk, once an administrator has done what docs/how-to/ublk.md says."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import pytest

from .support import PATIENCE, ROOT, as_user, ensure_user, run, until

ROUNDS = 10
UUID = "7c6ee2cc-4bb3-4c3a-9b0f-3b1f0e7f2a55"


@pytest.fixture(scope="module", autouse=True)
def before() -> str:
    """Do what the page says; return what the doctor said to alice before."""
    if subprocess.run(["modprobe", "--dry-run", "--quiet", "ublk_drv"]).returncode:
        pytest.skip(f"Linux {os.uname().release} has no driver ublk_drv")
    for user in ("alice", "bob"):
        ensure_user(user)
    said = doctor("alice")
    page = (ROOT / "docs/how-to/ublk.md").read_text()
    commands = re.search(r"## Without root\n.*?```\n(.*?)```", page, re.DOTALL)
    assert commands
    for line in commands[1].splitlines():
        run("sh", "-c", f"cd {ROOT} && {line}")
    return said


@pytest.fixture(autouse=True)
def nothing_is_left(before: str) -> Iterator[None]:
    """No device, and no process of a user's, is left after a test."""
    yield
    run("udevadm", "settle")
    until(lambda: not remaining(), f"devices that are still there: {remaining()}")
    for user in ("alice", "bob"):
        assert run("pgrep", "--list-full", "--uid", user, status=None) == ""


def doctor(user: str) -> str:
    """What the doctor says of ublk; other findings may make it fail."""
    command = [*as_user(user), "aiovblk", "doctor"]
    said = run(*command, status=None, patience=3 * PATIENCE)  # it imports most of the package
    return "\n".join(line for line in said.splitlines() if re.match(r"\w+ +ublk:", line))


def remaining() -> list[str]:
    nodes = glob("/dev/ublk[bc]*")
    return nodes + glob("/sys/class/ublk-char/*") + glob("/sys/block/ublkb*")


def owner(path: str) -> tuple[str, int]:
    status = os.stat(path)
    return pwd.getpwuid(status.st_uid).pw_name, stat.S_IMODE(status.st_mode)


def char(node: str) -> str:
    return node.replace("ublkb", "ublkc")


def refused(user: str, path: str) -> bool:
    """Whether a user may not read a node, and not because of anything else."""
    said = run(*as_user(user), "dd", f"if={path}", "of=/dev/null", "count=1", status=None)
    return "Permission denied" in said or "Operation not permitted" in said


def properties(node: str) -> dict[str, str]:
    """What udev has noted of a device."""
    lines = run("udevadm", "info", "--query=property", f"--name={node}").splitlines()
    return dict(line.split("=", 1) for line in lines)


def links(node: str) -> list[str]:
    return [link for link in glob("/dev/disk/*/*") if os.path.realpath(link) == node]


def listed(user: str) -> dict[str, Any]:
    """The only device, as `aiovblk list` shows it to a user."""
    (found,) = json.loads(run(*as_user(user), "aiovblk", "list", "--json"))
    assert isinstance(found, dict)
    return found


class Served:
    """A device, and the process that serves it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        until(lambda: "mounted " in self.said() or process.poll() is not None, "the mount")
        assert self.said().startswith("mounted /dev/ublkb"), self.said()
        self.node = self.said().split()[1]

    def said(self) -> str:
        return self._log.read_text()


@contextmanager
def serving(folder: Path, user: str = "alice", node: str = "") -> Iterator[Served]:
    """Have a user mount a device, until the end of the block or until it is unmounted."""
    command = [*as_user(user), "aiovblk", "mount", "memory:64M", *([node] if node else [])]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--attach", "ublk"], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        served = Served(process, log)
        yield served
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert served.said().splitlines()[1:] == []
    finally:
        if process.poll() is None:  # the failure of one test is not to be that of the next ones
            process.kill()
            process.wait()
            run("aiovblk", "doctor", "--clean", status=None)


def test_doctor_says_what_is_missing_and_then_that_nothing_is(before: str) -> None:
    assert before == "info  ublk: its driver is not loaded; run `sudo modprobe ublk_drv`"
    assert doctor("alice").startswith("ok    ublk: can be used by this user")
    said = doctor("bob")
    assert said.startswith("info  ublk: cannot be used: ")
    assert "an administrator allow it (docs/how-to/ublk.md)" in said
    assert doctor("root").startswith("ok    ublk: can be used, by ordinary users too")


def test_driver_is_open_to_the_group_alone() -> None:
    status = os.stat("/dev/ublk-control")
    assert grp.getgrgid(status.st_gid).gr_name == "ublk"
    assert owner("/dev/ublk-control") == ("root", 0o660)
    assert Path("/etc/modules-load.d/ublk.conf").read_text() == "ublk_drv\n"


def test_user_outside_the_group_sees_what_to_do() -> None:
    command = [*as_user("bob"), "aiovblk", "mount", "memory:64M", "--attach", "ublk"]
    said = run(*command, status=1)
    assert "takes access to /dev/ublk-control: run as root, or have an administrator" in said
    assert "(docs/how-to/ublk.md)" in said
    assert len(said.splitlines()) == 1


def test_nodes_are_the_users_from_the_start_and_stay_so(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        nodes = [served.node, char(served.node)]
        assert [owner(node) for node in nodes] == [("alice", 0o600)] * 2
        status = Path(f"/proc/{served.process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000\n" in status
        assert "CapPrm:\t0000000000000000\n" in status
        assert all(refused("bob", node) for node in nodes)
        assert not refused("alice", served.node)
        for action in ("change", "add"):
            run("udevadm", "trigger", f"--action={action}", "--sysname-match=ublk*", "--settle")
            assert [owner(node) for node in nodes] == [("alice", 0o600)] * 2


def test_user_formats_writes_and_unmounts(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        node = served.node
        run(*as_user("alice"), "/usr/sbin/mke2fs", "-q", "-t", "ext4", node)
        run(*as_user("alice"), "/usr/sbin/e2fsck", "-f", "-n", node)
        data = "dd if=/dev/urandom of=/tmp/data bs=1M count=4"
        write = f"dd if=/tmp/data of={node} bs=1M conv=fsync"
        read = f"dd if={node} bs=1M count=4 iflag=direct | cmp - /tmp/data && rm /tmp/data"
        run(*as_user("alice"), "sh", "-c", f"{data} && {write} && {read}")
        theirs, others = listed("alice"), listed("bob")
        assert (theirs["path"], theirs["server_pid"]) == (node, served.process.pid)
        assert theirs["owner"] == pwd.getpwnam("alice").pw_uid
        assert (theirs["state"], others["state"]) == ("alive", "unknown")
        said = run(*as_user("bob"), "aiovblk", "unmount", node, status=1)
        assert "unmounting takes root, or the user who has mounted it" in said
        unmount = ["aiovblk", "unmount", "--timeout", f"{PATIENCE:.0f}", node]
        run(*as_user("alice"), *unmount, patience=2 * PATIENCE)
        assert served.process.wait(PATIENCE) == 0
        assert remaining() == []


def test_nothing_of_the_machine_looks_into_a_users_disk(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        run(*as_user("alice"), "/usr/sbin/mke2fs", "-q", "-t", "ext4", "-U", UUID, served.node)
        # As it does with other disks after that: it is told of each that a writer has closed.
        run("udevadm", "trigger", "--action=change", "--sysname-match=ublkb*", "--settle")
        noted = properties(served.node)
        assert noted["UDISKS_IGNORE"] == "1"
        assert not [name for name in noted if name.startswith("ID_FS_")]
        assert links(served.node) == []


def test_roots_device_of_the_same_number_is_roots(tmp_path: Path) -> None:
    with serving(tmp_path, node="/dev/ublkb3") as served:
        assert owner(served.node) == ("alice", 0o600)
    with serving(tmp_path, "root", "/dev/ublkb3") as served:
        run("mke2fs", "-q", "-t", "ext4", "-U", UUID, served.node)
        run("udevadm", "trigger", "--action=change", "--sysname-match=ublk*", "--settle")
        assert owner(served.node) == ("root", 0o660)
        assert grp.getgrgid(os.stat(served.node).st_gid).gr_name == "disk"
        assert owner(char(served.node)) == ("root", 0o600)
        assert all(refused("alice", node) for node in (served.node, char(served.node)))
        # And is looked into, as any other.
        noted = properties(served.node)
        assert "UDISKS_IGNORE" not in noted
        assert noted["ID_FS_UUID"] == UUID
        assert f"/dev/disk/by-uuid/{UUID}" in links(served.node)


IN_A_ROW = """
import asyncio, os, sys
sys.path[:0] = {path!r}
import aiovblk
from aiovblk.storage import MemoryDevice

def use(path):
    with open(path, "r+b") as file:  # when it is closed, udev has a look
        file.write(b"served" * 100)
    for node in (path, path.replace("ublkb", "ublkc")):
        status = os.stat(node)
        print(status.st_uid == os.getuid(), oct(status.st_mode & 0o777))

async def main():
    for _ in range({rounds}):
        async with aiovblk.mounted(MemoryDevice(1 << 20), attach="ublk") as mount:
            await asyncio.to_thread(use, mount.path)

asyncio.run(main())
"""


def test_many_in_a_row_are_the_users_when_they_are_mounted() -> None:
    script = IN_A_ROW.format(path=glob("/srv/python/*"), rounds=ROUNDS)
    command = [*as_user("alice"), sys.executable, "-W", "error", "-c", script]
    # Each starts two programs of udev's, one after the other.
    said = run(*command, patience=5 * PATIENCE)
    assert said.splitlines() == ["True 0o600"] * 2 * ROUNDS
