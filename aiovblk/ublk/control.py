"""Control commands for the kernel's ublk driver, by /dev/ublk-control. Each call blocks.

Each command has a ring of its own for as long as it takes, so that any thread may send one. The
kernel carries them out in threads of its own: START_DEV waits until the device has been read,
STOP_DEV until everything is written back, both by requests to the server.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import Any

from .. import atfork
from .commands import CTRL_COMMAND, ControlCommand, Feature, UblkDeviceInfo
from .io_uring import Ring

CONTROL_NODE = "/dev/ublk-control"

COMMAND_TIMEOUT = 5.0
"""Seconds for commands that wait for nothing but the driver."""

_ANY_QUEUE = 0xFFFF
_ANY_DEVICE = 0xFFFFFFFF

_abandoned: list[Any] = []
"""Buffers of commands that did not end in time: the kernel may still write to them."""


def char_node(number: int) -> str:
    """Return the node by which a server serves a device."""
    return f"/dev/ublkc{number}"


def _send(
    command: ControlCommand,
    number: int | None,
    *,
    content: bytes = b"",
    data: int = 0,
    path: str | None = None,
    seconds: float = COMMAND_TIMEOUT,
) -> bytes:
    """Send one command and wait for its end.

    Args:
        command: which.
        number: of the device; None for any, or for none.
        content: of its buffer, which the driver may change.
        data: its argument.
        path: the device's node of which the caller has to show rights; None where it need not.
        seconds: the timeout.

    Returns:
        The content of the buffer.

    Raises:
        OSError: the driver refuses; ETIMEDOUT if the command has not ended, which it may yet do.

    """
    import ctypes

    prefix = b"" if path is None else os.fsencode(path) + b"\0"
    memory = bytearray(prefix + content)
    holder = (ctypes.c_char * max(len(memory), 1)).from_buffer(memory or bytearray(1))
    address = ctypes.addressof(holder) if memory else 0
    device = _ANY_DEVICE if number is None else number
    payload = CTRL_COMMAND.pack(device, _ANY_QUEUE, len(memory), address, data, len(prefix), 0, 0)
    result = None
    control = atfork.protect_fd(os.open(CONTROL_NODE, os.O_RDWR | os.O_CLOEXEC))
    try:
        ring = Ring(2)
        try:
            ring.prepare(0, command.number, control, payload)
            ring.push([0])
            result = _wait(ring, seconds)
        finally:
            if result is None:
                _abandoned.append((memory, holder))
            ring.close()
    finally:
        atfork.close_protected(control)
    if result is None:
        reason = f"{command.name} has not ended in {seconds:g} s"
        raise TimeoutError(errno.ETIMEDOUT, reason)
    if result < 0:
        raise OSError(-result, f"{command.name}: {os.strerror(-result)}")
    return bytes(memory[len(prefix) :])


def _wait(ring: Ring, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while not ring.has_completions:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        ring.wait(left)
    done, others = ring.take()
    return 0 if done else others[0][1]


def features() -> Feature:
    """Return what the driver can do.

    Raises:
        OSError: it is too old to say (before Linux 6.5), or this process may not ask.

    """
    answer = _send(ControlCommand.GET_FEATURES, None, content=bytes(8))
    return Feature(struct.unpack("<Q", answer)[0])


def add(info: UblkDeviceInfo) -> UblkDeviceInfo:
    """Make a device, which has to be started yet.

    Args:
        info: number, depth, max_io, flags.

    Returns:
        The same as the driver has granted it: flags may be missing.

    Raises:
        OSError: EEXIST if there is one of this number; another if the driver refuses.

    """
    return UblkDeviceInfo.unpack(_send(ControlCommand.ADD_DEV, info.number, content=info.pack()))


def info(number: int) -> UblkDeviceInfo:
    """Return what the driver knows of a device.

    Raises:
        OSError: ENODEV if there is none; EPERM or EACCES if it is another user's.

    """
    content = bytes(UblkDeviceInfo.SIZE)
    # By the path of its node, which an ordinary user has to show, and root need not but may.
    answer = _send(ControlCommand.GET_DEV_INFO2, number, content=content, path=char_node(number))
    return UblkDeviceInfo.unpack(answer)


class ControlledDevice:
    """A device, by the commands that concern it.

    Each method raises :exc:`OSError` if the driver refuses (ENODEV: there is no such device, or a
    forked child must not touch it), and :exc:`TimeoutError` if the command has not ended after
    ``seconds``, which it may yet do.

    Args:
        number: N of /dev/ublkbN.
        flags: what it was made with.

    """

    def __init__(self, number: int, flags: Feature) -> None:
        self.number = number
        self.is_unprivileged = Feature.UNPRIVILEGED_DEV in flags
        self._process = os.getpid()

    def _refuse_in_child(self) -> None:
        """Keep a forked child from stopping what its parent serves."""
        if os.getpid() != self._process:
            raise OSError(errno.ENODEV, "the device is the parent process's")

    def _send(self, command: ControlCommand, **options: Any) -> None:
        self._refuse_in_child()
        path = char_node(self.number) if self.is_unprivileged else None
        _send(command, self.number, path=path, **options)

    def set_parameters(self, parameters: bytes) -> None:
        """Set what :func:`.commands.parameters` returns; not possible once it was started."""
        self._send(ControlCommand.SET_PARAMS, content=parameters)

    def start(self, seconds: float) -> None:
        """Show the device to the system, served by this process, whose queue is open.

        Returns once the kernel has looked for partitions, which the server has to answer.
        """
        self._send(ControlCommand.START_DEV, data=os.getpid(), seconds=seconds)

    def stop(self, seconds: float) -> None:
        """Write back what the kernel has cached, then take the device away, in use or not."""
        self._send(ControlCommand.STOP_DEV, seconds=seconds)

    def stop_unused(self, seconds: float) -> None:
        """Take the device away, if nothing has it open; the driver has to have SAFE_STOP_DEV.

        Raises:
            OSError: EBUSY if something has it open.

        """
        self._send(ControlCommand.TRY_STOP_DEV, seconds=seconds)

    def start_recovery(self) -> None:
        """Begin to take over a device whose server is gone.

        Raises:
            OSError: EBUSY as long as it has a server, or one that is just ending.

        """
        self._send(ControlCommand.START_USER_RECOVERY)

    def end_recovery(self, seconds: float) -> None:
        """Have requests come to this process, which has opened the device's queue."""
        self._send(ControlCommand.END_USER_RECOVERY, data=os.getpid(), seconds=seconds)

    def update_size(self, sectors: int, seconds: float) -> None:
        """Change the size, in sectors of 512 bytes."""
        self._send(ControlCommand.UPDATE_SIZE, data=sectors, seconds=seconds)

    def delete(self) -> None:
        """Give the number back, at once or when the last user of the device has closed it."""
        # The driver does not take DEL_DEV_ASYNC of ordinary users: theirs waits for all users.
        command = ControlCommand.DEL_DEV if self.is_unprivileged else ControlCommand.DEL_DEV_ASYNC
        self._send(command)
