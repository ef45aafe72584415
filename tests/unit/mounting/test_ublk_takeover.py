"""Taking over by ublk, above the control commands: what becomes of the queue and its requests."""

from __future__ import annotations

import array
import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import aiovblk
from aiovblk import AttachError, ublk
from aiovblk.dispatch import DEFAULT_SLOW_REQUEST, MAX_CONCURRENCY, HandlerLimits
from aiovblk.mounting.backend import make_backend
from aiovblk.mounting.connections import ConnectionGroup
from aiovblk.mounting.handover.options import Handover
from aiovblk.mounting.options import MountOptions
from aiovblk.mounting.state import MountState
from aiovblk.mounting.ublk.attaching import UblkAttachSequence
from aiovblk.mounting.ublk.takeover import UblkTakeoverSequence
from aiovblk.protocol import Command

LIMITS = HandlerLimits(
    concurrency=MAX_CONCURRENCY, handler_timeout=None, slow_request=DEFAULT_SLOW_REQUEST
)
SURVIVING = Handover(identity="volume", survive=60)


class WaitingDevice(aiovblk.BlockDevice):
    """A device whose reads do not end."""

    blocks = 1

    def __init__(self) -> None:
        self.reading = asyncio.Event()

    async def read(self, offset: int, length: int) -> bytes:
        self.reading.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError


class OneReadQueue:
    """A queue with one request: a read of the first block."""

    kills_server = is_over = False
    error = None
    unsubmitted = 0

    def __init__(self) -> None:
        self.fd = os.eventfd(1)
        self.descriptors = memoryview(array.array("Q", [8 << 32, 0, 0]))
        self.completed: list[tuple[int, int]] = []
        self.has_requests = True
        self.is_closed = False

    def take(self) -> list[int]:
        os.eventfd_read(self.fd)
        self.has_requests = False
        return [0]

    def request(self, tag: int) -> tuple[int, int, int, int]:
        return 0, int(Command.READ), 0, 4096

    def complete(self, tag: int, result: int) -> None:
        if not self.is_closed:
            self.completed.append((tag, result))

    def close(self) -> None:
        self.is_closed = True
        os.close(self.fd)


class FakeAttachment:
    """Records that it is abandoned, and whether its queue was closed by then."""

    path = "/dev/ublkb7"
    on_release: Callable[[], object]

    def __init__(self, queue: OneReadQueue) -> None:
        self.queue = queue
        self.abandoned: list[bool] = []
        self.error: OSError | None = None

    def open_queue(self) -> OneReadQueue:
        if self.error is not None:
            raise self.error
        return self.queue

    def abandon(self) -> None:
        self.abandoned.append(self.queue.is_closed)


@pytest.fixture
def attachment(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAttachment]:
    """What is taken over."""
    made = FakeAttachment(OneReadQueue())

    def take_over(path: str | None, device: object, queue: object, **options: Any) -> object:
        return made if options == {"identity": "volume", "survive": 60, "lock": -1} else None

    monkeypatch.setattr(ublk, "take_over_orphan", take_over)
    yield made
    if not made.queue.is_closed:
        os.close(made.queue.fd)


def sequence(device: aiovblk.BlockDevice) -> UblkTakeoverSequence:
    options = MountOptions(attach="ublk", limits=LIMITS, handover=SURVIVING)
    state = MountState()
    backend = make_backend(device, options)
    attaching = UblkAttachSequence(backend, ConnectionGroup(state), state, options)
    return UblkTakeoverSequence(attaching)


async def test_a_device_that_is_left_again_has_no_request_failed(
    attachment: FakeAttachment,
) -> None:
    """The next server gets them: the queue is closed before handlers are cancelled."""
    device = WaitingDevice()
    steps = sequence(device)
    taken = await steps.take_over(None, "volume")
    assert taken is not None
    assert taken.path == attachment.path
    await device.reading.wait()
    await steps.undo(taken)
    await asyncio.sleep(0)  # for the handler to be cancelled
    assert attachment.abandoned == [True]
    assert attachment.queue.completed == []


async def test_a_device_whose_queue_cannot_be_served_is_left(attachment: FakeAttachment) -> None:
    attachment.error = OSError(errno.EINVAL, "the kernel refuses")
    with pytest.raises(AttachError, match="its queue cannot be served: the kernel refuses"):
        await sequence(WaitingDevice()).take_over(None, "volume")
    assert attachment.abandoned == [False]


async def test_without_a_device_there_is_nothing_to_take_over(attachment: FakeAttachment) -> None:
    assert await sequence(WaitingDevice()).take_over(None, "another") is None
