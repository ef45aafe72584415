"""Making a device: numbers, paths, rights, and what is left after a refusal."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aiovblk import AttachError, BlockDevice, DeviceBusyError
from aiovblk.kernel import RequestQueue, procfs
from aiovblk.storage import MemoryDevice
from aiovblk.ublk import UblkAttachment, attaching, attachment, control
from aiovblk.ublk.attaching import attach, remove_dead
from aiovblk.ublk.commands import Feature, State, UblkDeviceInfo, parameters
from aiovblk.ublk.identities import number_of

from ...support.clocks import patch_time
from ...support.fake_ublk import FakeUblk

SIZE = 1 << 20
COPYING = Feature.CMD_IOCTL_ENCODE | Feature.USER_COPY
UNPRIVILEGED = Feature.CMD_IOCTL_ENCODE | Feature.UNPRIVILEGED_DEV


def make(
    path: str | None = None, device: BlockDevice | None = None, max_sectors_kb: int = 1024
) -> UblkAttachment:
    queue = RequestQueue(max_sectors_kb=max_sectors_kb)
    return attach(path, device or MemoryDevice(SIZE), queue)


@pytest.fixture
def ordinary_user(monkeypatch: pytest.MonkeyPatch, ublk_kernel: FakeUblk) -> None:
    monkeypatch.setattr(attaching, "is_privileged", lambda: False)


@pytest.mark.parametrize(
    ("path", "number"), [("/dev/ublkb0", 0), ("/dev/ublkb17", 17), ("/dev/ublkb1048575", 1048575)]
)
def test_path_is_a_number(path: str, number: int) -> None:
    assert number_of(path) == number


@pytest.mark.parametrize(
    "path",
    [
        "/dev/ublkb",
        "/dev/ublkb-1",
        "/dev/ublkb1048576",
        "/dev/ublkb0p1",
        "/dev/ublkc0",
        "/dev/nbd0",
        "ublkb0",
        "/dev/ublkb0\n",
        "/dev/ublkb\u0663",
        "",
    ],
)
def test_other_paths_are_refused_before_anything_is_done(ublk_kernel: FakeUblk, path: str) -> None:
    with pytest.raises(AttachError, match="are called /dev/ublkb0 to /dev/ublkb1048575") as caught:
        make(path)
    assert caught.value.errno == errno.EINVAL
    assert ublk_kernel.log == []


def test_any_number(ublk_kernel: FakeUblk) -> None:
    one, other = make(), make()
    assert [one.path, other.path] == ["/dev/ublkb0", "/dev/ublkb1"]
    assert ublk_kernel.log == ["ADD_DEV", "SET_PARAMS"] * 2
    assert one.info == UblkDeviceInfo(number=0, flags=COPYING, server=os.getpid(), state=State.DEAD)
    assert ublk_kernel.devices[0].parameters == parameters(MemoryDevice(SIZE), 1 << 20)
    one.undo()
    other.undo()
    assert ublk_kernel.leaks() == []
    one.undo()
    one.close()
    assert ublk_kernel.log.count("DEL_DEV_ASYNC") == 2


def test_this_number(ublk_kernel: FakeUblk) -> None:
    attachment = make("/dev/ublkb7")
    assert (attachment.index, attachment.disk) == (7, "ublkb7")
    assert not attachment.wait_until_free(0)
    attachment.undo()
    assert attachment.wait_until_free(0)


def test_number_that_is_served_is_refused_and_stays(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "process_of", lambda thread: (thread, "qemu"))
    served = make("/dev/ublkb3")
    with pytest.raises(DeviceBusyError, match=r"the device exists, served by process \d+ \(qemu\)"):
        make("/dev/ublkb3")
    assert ublk_kernel.log == ["ADD_DEV", "SET_PARAMS", "ADD_DEV", "ADD_DEV"]
    assert 3 in ublk_kernel.devices
    served.undo()


def test_number_whose_server_is_gone_is_made_anew(
    ublk_kernel: FakeUblk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    control.add(UblkDeviceInfo(number=3, flags=COPYING, server=1 << 22))
    attachment = make("/dev/ublkb3")
    assert ublk_kernel.log == [
        "ADD_DEV",
        "ADD_DEV",
        "DEL_DEV_ASYNC",
        "free",
        "ADD_DEV",
        "SET_PARAMS",
    ]
    assert "removed the ublk device 3, whose server was gone" in caplog.text
    attachment.undo()


@pytest.mark.parametrize("state", [State.LIVE, State.QUIESCED, 9])
def test_device_that_is_not_dead_is_not_removed(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch, state: int
) -> None:
    monkeypatch.setattr(attaching, "STOP_TIMEOUT", 0.05)
    control.add(UblkDeviceInfo(number=3, flags=COPYING, server=-1))
    ublk_kernel.devices[3].fields[2] = state
    assert not remove_dead(3)
    assert not remove_dead(4)  # there is none
    assert 3 in ublk_kernel.devices


def test_device_that_its_server_has_not_started_yet_is_not_removed(ublk_kernel: FakeUblk) -> None:
    control.add(UblkDeviceInfo(number=3, flags=COPYING, server=-1))
    ublk_kernel.devices[3].hides_char = errno.EBUSY  # only one process may have it open
    assert not remove_dead(3)
    assert 3 in ublk_kernel.devices
    ublk_kernel.devices[3].hides_char = 0
    assert remove_dead(3)


def test_device_that_waits_for_udev_to_give_its_user_the_node_is_not_removed(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deleted: list[int] = []
    node = tmp_path / "ublkc3"
    node.touch()
    control.add(UblkDeviceInfo(number=3, flags=UNPRIVILEGED, server=-1))
    ublk_kernel.devices[3].fields[10] = node.stat().st_uid + 1
    monkeypatch.setattr(control, "char_node", lambda number: str(node))
    monkeypatch.setattr(
        control.ControlledDevice, "delete", lambda device: deleted.append(device.number)
    )
    assert not remove_dead(3)
    os.utime(node, (0, 0))  # there are no such rules of udev
    assert remove_dead(3)
    ublk_kernel.devices[3].fields[10] = node.stat().st_uid  # it has the node, and is gone
    node.touch()
    assert remove_dead(3)
    assert deleted == [3, 3]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "refuses to make a device for this user"),
        (errno.EPERM, "refuses to make a device for this user"),
        (errno.ENOSPC, "too many devices of ordinary users .the module's option ublks_max"),
        (errno.EINVAL, "ADD_DEV: Invalid argument"),
    ],
)
def test_driver_that_refuses_the_device(ublk_kernel: FakeUblk, number: int, words: str) -> None:
    ublk_kernel.failing["ADD_DEV"] = number
    for path in (None, "/dev/ublkb3"):
        with pytest.raises(AttachError, match=words) as caught:
            make(path)
        assert (caught.value.errno, caught.value.path) == (number, path)
    assert ublk_kernel.log == ["ADD_DEV"] * 2
    assert ublk_kernel.leaks() == []


def test_parameters_that_are_refused_leave_nothing(ublk_kernel: FakeUblk) -> None:
    ublk_kernel.failing["SET_PARAMS"] = errno.EINVAL
    with pytest.raises(AttachError, match="SET_PARAMS: Invalid argument"):
        make()
    assert ublk_kernel.log == ["ADD_DEV", "SET_PARAMS", "DEL_DEV_ASYNC", "free"]
    assert ublk_kernel.leaks() == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOENT, "/dev/ublkc0 does not appear; .*`mknod /dev/ublkc0 c 240 0`"),
        (errno.EACCES, "does not become this user's .*an administrator has to install udev"),
        (errno.EIO, "no node"),
    ],
)
def test_node_that_cannot_be_opened_leaves_nothing(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    monkeypatch.setattr(attaching, "NODE_TIMEOUT", 0.01)
    monkeypatch.setattr("aiovblk.ublk.attachment.OWNER_TIMEOUT", 0.01)
    ublk_kernel.char_error = number
    with pytest.raises(AttachError, match=words) as caught:
        make()
    assert caught.value.errno == number
    assert ublk_kernel.leaks() == []


def test_node_that_udev_makes_late_is_waited_for(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ublk_kernel.char_error = errno.ENOENT
    errors = iter([errno.EACCES, errno.EBUSY, 0])

    def pause(seconds: float) -> None:
        ublk_kernel.device.hides_char = next(errors)

    patch_time(monkeypatch, attachment, sleep=pause)
    make().undo()
    assert list(errors) == []


def test_blocks_larger_than_a_page_are_refused(ublk_kernel: FakeUblk) -> None:
    with pytest.raises(AttachError, match=r"blocks of up to \d+ bytes, not 65536"):
        make(device=MemoryDevice(SIZE, block_size=65536))
    assert ublk_kernel.log == []


@pytest.mark.parametrize(
    ("features", "drops", "flags", "kilobytes", "max_io"),
    [
        (0x1FE, 0, COPYING, 1024, 1 << 20),
        (0x1FE, 0, COPYING, 32768, 32 << 20),
        (0x1FE, 0, COPYING, 64, 64 << 10),
        (0x17E, 0, Feature.CMD_IOCTL_ENCODE, 1024, 512 << 10),
        (0x17E, 0, Feature.CMD_IOCTL_ENCODE, 64, 64 << 10),
        # It is served as the driver has granted it.
        (0x1FE, Feature.USER_COPY, Feature.CMD_IOCTL_ENCODE, 1024, 1 << 20),
    ],
)
def test_flags_and_largest_request(
    ublk_kernel: FakeUblk, features: int, drops: int, flags: int, kilobytes: int, max_io: int
) -> None:
    ublk_kernel.features, ublk_kernel.drops = features, drops
    attachment = make(max_sectors_kb=kilobytes)
    assert (attachment.info.flags, attachment.info.max_io) == (flags, max_io)
    attachment.undo()


@pytest.mark.usefixtures("ordinary_user")
def test_device_of_an_ordinary_user(ublk_kernel: FakeUblk) -> None:
    attachment = make()
    assert attachment.info.flags == UNPRIVILEGED
    assert attachment.info.max_io == 512 << 10
    attachment.undo()
    # DEL_DEV_ASYNC is not for them.
    assert ublk_kernel.log == ["ADD_DEV", "SET_PARAMS", "DEL_DEV", "free"]
    assert ublk_kernel.leaks() == []


@pytest.mark.usefixtures("ordinary_user")
def test_deletion_that_waits_for_other_users_is_left_to_the_kernel(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    attachment = make()
    program = ublk_kernel.open_for_a_program()
    send = control._send
    monkeypatch.setattr(
        control, "_send", lambda *given, **options: send(*given, **options | {"seconds": 0.05})
    )
    attachment.undo()
    assert ublk_kernel.devices
    ublk_kernel.close(program)
    assert ublk_kernel.leaks() == []


def test_device_that_another_has_deleted_is_undone_without_an_error(ublk_kernel: FakeUblk) -> None:
    attachment = make()
    ublk_kernel.failing["DEL_DEV_ASYNC"] = errno.ENODEV
    attachment.undo()
    del ublk_kernel.failing["DEL_DEV_ASYNC"]
    attachment = make("/dev/ublkb5")
    ublk_kernel.failing["DEL_DEV_ASYNC"] = errno.EINVAL
    with pytest.raises(OSError, match="DEL_DEV_ASYNC: Invalid argument"):
        attachment.undo()
