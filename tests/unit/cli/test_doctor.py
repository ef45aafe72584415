"""Findings of the doctor on machines with and without problems."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from aiovblk import cli
from aiovblk.cli import doctor
from aiovblk.cli.doctor import devices, environment, machine
from aiovblk.cli.doctor.findings import Finding

from ...support.doctor_host import ALL, Host, lines


def refuse(number: int) -> Callable[[str], None]:
    def opening(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    return opening


# The report


def test_machine_in_order_is_all_ok_and_status_0(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 0
    report = capsys.readouterr().out.splitlines()
    assert report[0].startswith("ok    versions: Linux 6.12.1, Python 3.")
    assert report[1:] == [
        "ok    driver: loaded, 2 of 2 devices are free",
        "ok    nodes: /dev/nbd0 to /dev/nbd1 exist",
        "ok    privileges: devices can be attached",
        "ok    namespaces: the host's, as far as is visible",
        "ok    netlink: the driver's family is available",
        "ok    udev: running; it probes devices that are added or changed",
        "ok    ublk: can be used",
        "ok    devices: none is attached",
        "ok    stuck: no program waits for a device",
    ]


def test_json_has_a_finding_each_and_failing_is_status_1(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.capabilities(0)
    assert cli.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (failed,) = [each for each in found if each["level"] == "fail"]
    assert failed["topic"] == "privileges"
    assert "CAP_SYS_ADMIN is missing" in failed["text"]
    assert failed["fix"] == "sudo aiovblk mount ..."


def test_check_that_hangs_fails_and_the_others_are_made(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: Future[None] = Future()

    def hanging() -> list[Finding]:
        ended.result()
        return []

    def broken() -> list[Finding]:
        raise LookupError("no metadata")

    monkeypatch.setattr(doctor, "CHECKS", (hanging, broken, machine.udev))
    monkeypatch.setattr(doctor, "CHECK_TIMEOUT", 0.05)
    findings = doctor.diagnose()
    assert str(next(findings)) == "fail  hanging: no answer in 0.05 s"
    monkeypatch.setattr(doctor, "CHECK_TIMEOUT", 60)
    assert [str(finding) for finding in findings] == [
        "warn  broken: cannot be checked: LookupError('no metadata')",
        "ok    udev: running; it probes devices that are added or changed",
    ]
    ended.set_result(None)


# The machine


def test_driver_without_a_free_device_is_warned_of(host: Host) -> None:
    host.attach(0)
    host.attach(1)
    host.tree.write(host.parameters / "max_part", "0\n")
    assert lines(machine.driver) == [
        "warn  driver: loaded, 0 of 2 devices are free; unmount all of them first; run"
        " `modprobe -r nbd && modprobe nbd nbds_max=4`",
        "info  driver: max_part is 0: partitions do not appear by themselves; run"
        " `partprobe /dev/nbdN`",
    ]


@pytest.mark.parametrize(
    ("capabilities", "line"),
    [
        (ALL, "info  driver: not loaded yet; a mount loads it; run `modprobe nbd`"),
        (0, "fail  driver: not loaded; run `sudo modprobe nbd`"),
    ],
)
def test_driver_that_can_be_loaded_is_reported(host: Host, capabilities: int, line: str) -> None:
    host.remove_driver()
    host.capabilities(capabilities)
    modules = host.root / "lib/modules/6.12.1/modules.dep"
    host.tree.write(modules, "kernel/drivers/block/nbd.ko.xz:\n")
    assert lines(machine.driver) == [line]
    assert lines(machine.nodes) == lines(machine.netlink_family) == []


@pytest.mark.parametrize(
    ("modules", "words"),
    [(None, "in a container load it on the host"), ("fs/ext4.ko:", "this kernel (6.12.1)")],
)
def test_driver_that_is_not_there_fails(host: Host, modules: str | None, words: str) -> None:
    host.remove_driver()
    if modules is not None:
        host.tree.write(host.root / "lib/modules/6.12.1/modules.dep", modules)
    (line,) = lines(machine.driver)
    assert line.startswith("fail")
    assert words in line


def test_some_missing_nodes_are_warned_of_and_all_fail(host: Host) -> None:
    del host.nodes[1]
    (line,) = lines(machine.nodes)
    assert line.startswith("warn  nodes: 1 of 2 devices have no node here, such as /dev/nbd1")
    assert line.endswith("--device /dev/nbd1 adds it); run `mknod /dev/nbd1 b 43 32`")
    host.nodes[0] = "8:0"  # the number of another driver
    (line,) = lines(machine.nodes)
    assert line.startswith("fail  nodes: 2 of 2")


def test_node_that_is_served_is_never_opened(host: Host) -> None:
    opened: list[str] = []
    host.opening = opened.append
    assert lines(machine.nodes) == ["ok    nodes: /dev/nbd0 to /dev/nbd1 exist"]
    host.attach(1)
    lines(machine.nodes)
    host.attach(0)
    lines(machine.nodes)
    assert opened == ["/dev/nbd1", "/dev/nbd0"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "info  nodes: /dev/nbd1: no permission to open it"),
        (errno.EPERM, "fail  nodes: /dev/nbd1 may not be opened: the device cgroup forbids it"),
        (errno.ENXIO, "fail  nodes: /dev/nbd1 cannot be opened: No such device or address"),
    ],
)
def test_node_that_may_not_be_opened_is_reported(host: Host, number: int, words: str) -> None:
    host.opening = refuse(number)
    assert lines(machine.nodes)[1].startswith(words)


def test_node_whose_opening_hangs_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: Future[None] = Future()
    host.opening = lambda path: ended.result()
    monkeypatch.setattr(machine, "OPEN_TIMEOUT", 0.05)
    assert lines(machine.nodes)[1:] == [
        "fail  nodes: opening /dev/nbd1 hangs; run `aiovblk unmount --force /dev/nbd1`"
    ]
    ended.set_result(None)


def test_node_number_is_that_of_a_block_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "DEV", tmp_path)
    (tmp_path / "nbd0").touch()
    assert machine.node_number(0) is None
    assert machine.node_number(1) is None


def test_missing_netlink_family_and_udev_are_reported(host: Host) -> None:
    host.has_netlink = False
    (host.root / "run/udev/control").unlink()
    (line,) = lines(machine.netlink_family)
    assert line.startswith("warn  netlink: no NBD family in this network namespace")
    (line,) = lines(machine.udev)
    assert line.startswith("info  udev: not running")


# The place


def test_other_user_namespace_fails_whatever_its_capabilities(host: Host) -> None:
    host.namespace("user", 4026532000)
    assert lines(environment.privileges)[0].startswith(
        "fail  privileges: not in the initial user name"
    )


def test_missing_capabilities_are_reported_with_what_needs_them(host: Host) -> None:
    host.capabilities(1 << 21)  # CAP_SYS_ADMIN alone
    assert lines(environment.privileges) == [
        "ok    privileges: devices can be attached",
        "warn  privileges: CAP_NET_ADMIN is missing, so socket buffers have 212992 bytes at most,"
        " and large requests take more system calls; run `sysctl net.core.wmem_max=4194304`",
        "info  privileges: CAP_SYS_RESOURCE is missing, which --memory-safe needs",
        "info  privileges: CAP_IPC_LOCK is missing, which --memory-safe needs",
    ]
    host.tree.write(host.tree.proc / "sys/net/core/wmem_max", "8388608\n")
    assert len(lines(environment.privileges)) == 3


def test_other_namespaces_are_warned_of(host: Host) -> None:
    host.namespace("pid", 4026532001)
    host.namespace("net", 10)
    assert lines(environment.namespaces) == [
        "warn  namespaces: not the host's pid namespace: servers and users of devices are"
        " not visible",
        "warn  namespaces: not the host's net namespace: before Linux 6.12 it has no NBD netlink"
        " family",
    ]


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        (".dockerenv", "", "docker"),
        ("run/.containerenv", "", "podman"),
        ("run/systemd/container", "systemd-nspawn\n", "systemd-nspawn"),
    ],
)
def test_container_and_its_limits_are_reported(host: Host, name: str, text: str, kind: str) -> None:
    assert lines(environment.container) == []
    host.tree.write(host.root / name, text)
    host.sys_flags = os.ST_RDONLY
    first, second = lines(environment.container)
    assert first.startswith(f"info  container: running in one ({kind})")
    assert second.startswith("warn  container: /sys is read-only")


# Devices


def test_device_is_served_lost_dead_or_unknown(host: Host) -> None:
    host.attach(0)
    host.attach(1, thread=98)
    assert lines(devices.attached)[0].startswith("info  devices: /dev/nbd0: whether it is served")
    host.tree.kernel_threads("nbd0")
    host.tree.process(98, "python")
    assert lines(devices.attached) == [
        "ok    devices: /dev/nbd0 is served",
        "warn  devices: /dev/nbd1 has no connection; its server may reconnect, or unmount it by"
        " force; run `aiovblk unmount --force /dev/nbd1`",
    ]


def test_zombie_is_named_with_who_holds_it_and_what_frees_it(host: Host) -> None:
    host.attach(0)
    host.tree.kernel_threads()
    host.tree.process(98, "sleep", opens=("/dev/nbd0",))
    assert lines(devices.attached) == [
        "fail  devices: /dev/nbd0 is a zombie: its server is gone, opened by process 98 (sleep);"
        " run `aiovblk doctor --clean`"
    ]
    host.tree.mount(77, "43:0", "/mnt", "/dev/nbd0")
    assert lines(devices.attached) == [
        "fail  devices: /dev/nbd0 is a zombie: its server is gone, mounted at /mnt;"
        " run `umount /mnt; aiovblk doctor --clean`"
    ]


@pytest.mark.parametrize(
    ("opens", "stack", "where"),
    [
        (("/dev/nbd0",), "", "/dev/nbd0"),
        (("/mnt/file",), "", "/dev/nbd0"),
        ((), "[<0>] blkdev_open+0x1/0x2\n", "a block device to open"),
        ((), "[<0>] nbd_ioctl+0x1/0x2 [nbd]\n", "an NBD device"),
    ],
)
def test_task_that_hangs_is_named_with_its_device(
    host: Host, opens: tuple[str, ...], stack: str, where: str
) -> None:
    host.attach(0)
    host.tree.process(98, "dd", opens=opens)
    host.tree.mount(77, "43:0", "/mnt", "/dev/nbd0")
    host.tree.task(98, "dd", state="D", stack=stack)
    (line,) = lines(devices.hung_tasks)
    assert line.startswith(f"warn  stuck: task 98 (dd) waits for {where}; if its server")


def test_task_that_waits_elsewhere_or_for_a_moment_is_let_pass(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.attach(0)
    host.tree.process(98, "dd", opens=("/dev/sda",))
    host.tree.task(98, "dd", state="D", stack="[<0>] io_schedule+0x1/0x2\n")
    host.tree.process(97, "kworker/u8:0", opens=("/dev/nbd0",))
    host.tree.task(97, "kworker/u8:0", state="D", flags=0x00200000)
    host.tree.process(96, "dd", opens=("/dev/nbd0",))
    host.tree.task(96, "dd", state="D")
    stat = host.tree.proc / "96/task/96/stat"
    monkeypatch.setattr(
        time, "sleep", lambda seconds: host.tree.write(stat, "96 (dd) S 1 1 1 0 -1 0 0\n")
    )
    assert lines(devices.hung_tasks) == ["ok    stuck: no program waits for a device"]
