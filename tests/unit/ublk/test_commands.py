"""Structures and numbers, against the bytes that the kernel's C compiler makes of them.

The offsets are those of include/uapi/linux/ublk_cmd.h.
"""

from __future__ import annotations

import pytest

from aiovblk import BlockDevice
from aiovblk.ublk.commands import (
    COMMIT_AND_FETCH_REQ,
    COPY_OFFSET,
    COPY_TAG_SHIFT,
    CTRL_COMMAND,
    DESCRIPTOR_SIZE,
    FETCH_REQ,
    IO_COMMAND,
    RESULT_OFFSET,
    ControlCommand,
    Feature,
    State,
    UblkDeviceInfo,
    parameters,
)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (ControlCommand.ADD_DEV, 0xC0207504),
        (ControlCommand.DEL_DEV, 0xC0207505),
        (ControlCommand.START_DEV, 0xC0207506),
        (ControlCommand.STOP_DEV, 0xC0207507),
        (ControlCommand.SET_PARAMS, 0xC0207508),
        (ControlCommand.START_USER_RECOVERY, 0xC0207510),
        (ControlCommand.END_USER_RECOVERY, 0xC0207511),
        (ControlCommand.GET_DEV_INFO2, 0x80207512),
        (ControlCommand.GET_FEATURES, 0x80207513),
        (ControlCommand.DEL_DEV_ASYNC, 0x80207514),
        (ControlCommand.UPDATE_SIZE, 0xC0207515),
        (ControlCommand.TRY_STOP_DEV, 0xC0207517),
    ],
)
def test_control_commands_have_the_numbers_of_their_ioctls(
    command: ControlCommand, number: int
) -> None:
    assert command.number == number


def test_every_control_command_is_tested() -> None:
    assert len(ControlCommand) == 12


def test_io_commands_have_the_numbers_of_their_ioctls() -> None:
    assert (FETCH_REQ, COMMIT_AND_FETCH_REQ) == (0xC0107520, 0xC0107521)


def test_sizes_are_those_of_the_structures() -> None:
    assert CTRL_COMMAND.size == 32  # the ioctls say so, too
    assert IO_COMMAND.size == 16
    assert UblkDeviceInfo.SIZE == 64
    assert DESCRIPTOR_SIZE == 24
    assert (COPY_OFFSET, COPY_TAG_SHIFT) == (0x80000000, 25)


def test_control_command() -> None:
    assert CTRL_COMMAND.pack(1, 0x2222, 0x3333, 0x44, 0x55, 0x6666, 0, 0) == bytes.fromhex(
        "01000000"  # dev_id
        "2222"  # queue_id
        "3333"  # len
        "4400000000000000"  # addr
        "5500000000000000"  # data[1]
        "6666"  # dev_path_len
        "0000 00000000"  # pad, reserved
    )


def test_io_command() -> None:
    packed = IO_COMMAND.pack(1, 0x7F, -5, 0x1122334455667788)
    assert packed == bytes.fromhex("0100 7f00 fbffffff 8877665544332211")
    assert packed[RESULT_OFFSET:][:4] == bytes.fromhex("fbffffff")


INFO = bytes.fromhex(
    "0100"  # nr_hw_queues
    "8000"  # queue_depth
    "0000"  # state
    "0000"  # pad0
    "00001000"  # max_io_buf_bytes
    "ffffffff"  # dev_id
    "39300000"  # ublksrv_pid
    "00000000"  # pad1
    "c000000000000000"  # flags
    "0000000000000000"  # ublksrv_flags
    "00000000 00000000"  # owner_uid, owner_gid
    "0000000000000000 0000000000000000"  # reserved
)


def test_device_that_is_to_be_made() -> None:
    flags = Feature.USER_COPY | Feature.CMD_IOCTL_ENCODE
    wanted = UblkDeviceInfo(number=None, flags=flags, server=12345)
    assert wanted.pack() == INFO


def test_device_that_there_is() -> None:
    answer = bytearray(INFO)
    answer[4:6] = b"\1\0"
    answer[12:16] = b"\7\0\0\0"
    answer[40:44] = b"\xe8\3\0\0"
    assert UblkDeviceInfo.unpack(bytes(answer)) == UblkDeviceInfo(
        number=7,
        depth=128,
        max_io=1 << 20,
        flags=Feature.USER_COPY | Feature.CMD_IOCTL_ENCODE,
        state=State.LIVE,
        server=12345,
        owner=1000,
    )


def test_answer_of_a_newer_kernel_can_be_read() -> None:
    answer = bytearray(INFO)
    answer[4:6] = b"\x09\0"
    answer[24:32] = b"\xff" * 8
    answer[16:20] = b"\xff" * 4
    info = UblkDeviceInfo.unpack(bytes(answer) + b"more")
    assert info.state == 9
    assert Feature.QUIESCE in info.flags
    assert info.server == -1


class Plain(BlockDevice):
    block_size, blocks = 4096, 256

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


class Writable(Plain):
    async def write(self, offset: int, data: memoryview) -> None:
        pass


class Full(Writable):
    block_size, blocks = 512, 1 << 32
    rotational = True

    async def flush(self) -> None:
        pass

    async def trim(self, offset: int, length: int) -> None:
        pass


class Zeroing(Writable):
    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        pass


HEADER = "3c000000 03000000"  # len, types: basic and discard


@pytest.mark.parametrize(
    ("device", "attributes", "shift", "sectors", "granularity", "limits"),
    [
        # attrs, both shifts, dev_sectors, discard_granularity; discard, write-zeroes, segments
        (Plain, "01000000", "0c0c", "0008000000000000", "00100000", "00000000 00000000 0000"),
        (Writable, "00000000", "0c0c", "0008000000000000", "00100000", "00000000 ffff7f00 0000"),
        (Zeroing, "00000000", "0c0c", "0008000000000000", "00100000", "00000000 ffff7f00 0000"),
        (Full, "0e000000", "0909", "0000000001000000", "00020000", "ffff7f00 ffff7f00 0100"),
    ],
)
def test_parameters(
    device: type[BlockDevice],
    attributes: str,
    shift: str,
    sectors: str,
    granularity: str,
    limits: str,
) -> None:
    assert parameters(device(), 1 << 20) == bytes.fromhex(
        HEADER
        + attributes
        + shift  # logical_bs_shift, physical_bs_shift
        + "0000"  # io_opt_shift, io_min_shift
        + "00080000"  # max_sectors
        + "00000000"  # chunk_sectors
        + sectors
        + "0000000000000000"  # virt_boundary_mask
        + "00000000"  # discard_alignment
        + granularity
        + limits
        + "0000"  # reserved0
    )
