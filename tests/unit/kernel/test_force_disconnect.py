"""Forced disconnects: the order of the steps, and the report when the index stays taken."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest

from aiovblk import AttachError, DeviceBusyError, kernel
from aiovblk.kernel import netlink, unmounting, users

from ...support.kernel_tree import KernelTree

SERVER = 77
RECEIVER = 31


class Machine:
    """One device and its server; each step does what `when` says, or nothing."""

    def __init__(self, tree: KernelTree) -> None:
        self.tree = tree
        self.directory = tree.device("nbd0", "43:0", sectors=8, thread=SERVER)
        self.steps: list[str] = []
        self.when: dict[str, Callable[[], object]] = {}

    def serve(self) -> None:
        self.tree.process(SERVER, "python", opens=("/dev/nbd0",))
        self.tree.kernel_threads("nbd0")

    def disconnect(self) -> None:
        self.tree.write(self.tree.proc / f"{RECEIVER}/comm", "kworker/u8:1-nbd0-recv\n")

    def free(self) -> None:
        self.tree.write(self.directory / "size", "0\n")
        (self.directory / "pid").unlink()

    def step(self, name: str) -> None:
        self.steps.append(name)
        self.when.get(name, lambda: None)()

    def force_disconnect(self) -> list[str]:
        steps: list[str] = []
        unmounting.force_disconnect(0, "/dev/nbd0", steps.append)
        return steps


@pytest.fixture
def machine(tree: KernelTree, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tree)
    monkeypatch.setattr(unmounting, "_on_node", lambda path, step: step(-1))
    monkeypatch.setattr(unmounting, "sync", lambda index, fd: made.step("sync"))
    monkeypatch.setattr(unmounting, "ioctl", lambda fd, request: made.step(request.name))
    monkeypatch.setattr(
        netlink, "disconnect", lambda index, timeout: made.step("NBD_CMD_DISCONNECT")
    )
    for name in ("SETTLE_TIMEOUT", "KILL_TIMEOUT"):
        monkeypatch.setattr(unmounting, name, 0.05)
    monkeypatch.setattr(unmounting, "STEP_TIMEOUT", 0.3)
    return made


def refuse(number: int) -> Callable[[], None]:
    def step() -> None:
        raise OSError(number, os.strerror(number))

    return step


def test_server_that_answers_gets_the_first_step_only(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmounting, "STEP_TIMEOUT", 10.0)  # a slow machine makes no difference
    machine.serve()
    machine.when["NBD_DISCONNECT"] = machine.free
    assert machine.force_disconnect() == ["NBD_DISCONNECT"]
    assert machine.steps == ["sync", "NBD_DISCONNECT"]


def test_server_that_hangs_gets_stronger_steps(machine: Machine) -> None:
    machine.serve()
    machine.when["NBD_CMD_DISCONNECT"] = machine.free
    assert machine.force_disconnect() == ["NBD_DISCONNECT", "NBD_CLEAR_SOCK", "NBD_CMD_DISCONNECT"]
    assert machine.steps[0] == "sync"


def test_step_that_hangs_or_fails_is_reported_and_followed_by_the_next(machine: Machine) -> None:
    machine.serve()
    ended = threading.Event()
    machine.when["NBD_DISCONNECT"] = ended.wait
    machine.when["NBD_CLEAR_SOCK"] = refuse(errno.ENXIO)
    machine.when["NBD_CMD_DISCONNECT"] = machine.free
    reported = machine.force_disconnect()
    ended.set()
    assert reported == [
        "NBD_DISCONNECT",
        "NBD_DISCONNECT: no answer in 0.3 s",
        "NBD_CLEAR_SOCK",
        "NBD_CLEAR_SOCK: No such device or address",
        "NBD_CMD_DISCONNECT",
    ]


def test_dead_device_is_not_synced(machine: Machine) -> None:
    machine.tree.kernel_threads()
    machine.when["NBD_CLEAR_SOCK"] = machine.free
    machine.force_disconnect()
    assert machine.steps == ["NBD_CLEAR_SOCK"]


def test_mounted_file_system_is_what_keeps_the_index(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.serve()
    machine.when["NBD_DISCONNECT"] = machine.disconnect
    machine.tree.mount(SERVER, "43:0", "/mnt/my\\040disk", "/dev/nbd0")
    waits: list[float] = []
    monkeypatch.setattr(unmounting, "wait_until_free", lambda index, seconds: waits.append(seconds))
    with pytest.raises(DeviceBusyError) as caught:
        machine.force_disconnect()
    assert str(caught.value) == (
        "/dev/nbd0: disconnected, but its index stays taken until its file system is unmounted"
        " (`umount '/mnt/my disk'`, or `umount -l '/mnt/my disk'`): mounted at /mnt/my disk"
    )
    assert caught.value.holders == ("mounted at /mnt/my disk",)
    # Not waited for: it is not unmounted meanwhile.
    assert waits == [unmounting.SETTLE_TIMEOUT] * 3


def test_program_that_has_it_open_is_named_with_the_command_that_ends_it(machine: Machine) -> None:
    machine.tree.kernel_threads()
    machine.tree.process(99, "sleep", opens=("/dev/nbd0",))
    with pytest.raises(DeviceBusyError, match=r"until it is closed \(`kill 99`\): opened by"):
        machine.force_disconnect()


def test_holder_that_is_no_mount_is_named(machine: Machine) -> None:
    machine.tree.kernel_threads()
    machine.tree.write(machine.directory / "holders/dm-0/dm/name", "vault\n")
    with pytest.raises(DeviceBusyError, match=r"until they release it: held by dm-0 \(vault\)$"):
        machine.force_disconnect()


def test_process_that_is_not_visible_is_reported(machine: Machine) -> None:
    machine.tree.kernel_threads()
    with pytest.raises(DeviceBusyError, match="until a process closes it that cannot be seen"):
        machine.force_disconnect()


def test_kernel_that_does_not_free_it_is_reported(machine: Machine) -> None:
    machine.serve()
    with pytest.raises(AttachError, match="the kernel does not free it; see its log"):
        machine.force_disconnect()


def test_without_privileges_nothing_is_waited_for(machine: Machine) -> None:
    machine.serve()
    for name in ("NBD_DISCONNECT", "NBD_CLEAR_SOCK", "NBD_CMD_DISCONNECT"):
        machine.when[name] = refuse(errno.EPERM)
    with pytest.raises(AttachError, match="takes root") as caught:
        machine.force_disconnect()
    assert caught.value.errno == errno.EPERM


def test_forced_unmount_disconnects_the_device(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.serve()
    machine.when["NBD_DISCONNECT"] = machine.free
    monkeypatch.setattr(unmounting, "resolve", lambda path: 0)
    kernel.unmount("/dev/nbd0", force=True)
    assert machine.steps == ["sync", "NBD_DISCONNECT"]


# Programs that have a dead device open


def test_programs_get_sigterm_before_sigkill(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(unmounting, "wait_until_free", lambda index, seconds: False)
    with subprocess.Popen(["sleep", "1000"]) as gentle:
        found = [(1, "init"), (os.getpid(), "pytest"), (gentle.pid, "sleep")]
        monkeypatch.setattr(users, "openers", lambda index: found)
        unmounting.kill_openers(0, reported.append)
        assert gentle.wait(20) == -signal.SIGTERM
    assert reported == [
        f"SIGTERM to process {gentle.pid} (sleep), which has it open",
        f"SIGKILL to process {gentle.pid} (sleep), which has it open",
    ]


def test_no_process_is_killed_once_the_device_is_free(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(users, "openers", lambda index: [(99, "sleep")])
    monkeypatch.setattr(unmounting, "_send", lambda process, index, number: machine.free())
    unmounting.kill_openers(0, reported.append)
    assert reported == ["SIGTERM to process 99 (sleep), which has it open"]


def test_process_that_was_given_the_same_number_is_not_killed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    answers = [[(os.getppid(), "fio")], [], [], []]
    monkeypatch.setattr(users, "openers", lambda index: answers.pop(0))
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *arguments: sent.append(1))
    unmounting.kill_openers(0, lambda what: None)
    assert not sent


def test_index_that_another_server_has_attached_since_was_free(machine: Machine) -> None:
    machine.serve()
    unmounting.ensure_released(0, "/dev/nbd0")


def test_index_that_is_still_held_after_a_forced_unmount_is_an_error(machine: Machine) -> None:
    machine.serve()
    machine.disconnect()
    machine.tree.mount(SERVER, "43:0", "/mnt", "/dev/nbd0")
    with pytest.raises(DeviceBusyError, match="its index stays taken until its file system is"):
        unmounting.ensure_released(0, "/dev/nbd0")
