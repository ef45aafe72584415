"""The tags of a device: requests and results, in the thread that serves them."""

from __future__ import annotations

import errno
import os

import pytest

from aiovblk.kernel import RequestQueue
from aiovblk.protocol import Command, CommandFlag
from aiovblk.storage import MemoryDevice
from aiovblk.ublk import UblkAttachment
from aiovblk.ublk.attaching import attach

from ...support.fake_ublk import PAGE, FakeUblk, Op
from ...support.ublk_queue import arrived

FUA, NOUNMAP = 1 << 13, 1 << 15


def test_read(attachment: UblkAttachment, ublk_kernel: FakeUblk) -> None:
    queue = attachment.open_queue()
    assert queue.depth == 128
    assert not queue.has_requests
    assert queue.take() == []
    answer = ublk_kernel.send(Op.READ, 3 * PAGE, PAGE)
    (tag,) = arrived(queue)
    assert queue.request(tag) == (0, Command.READ, 3 * PAGE, PAGE)
    queue.place(tag, memoryview(b"x" * PAGE))
    queue.complete(tag, PAGE)
    assert queue.unsubmitted == 1
    assert not answer.done()
    queue.submit()
    assert queue.unsubmitted == 0
    assert answer.result() == b"x" * PAGE
    queue.close()


def test_write_has_a_payload_of_its_own(attachment: UblkAttachment, ublk_kernel: FakeUblk) -> None:
    queue = attachment.open_queue()
    answer = ublk_kernel.send(Op.WRITE, 0, PAGE, b"1" * PAGE, FUA)
    (tag,) = arrived(queue)
    assert queue.request(tag) == (CommandFlag.FUA, Command.WRITE, 0, PAGE)
    payload = queue.payload(tag, PAGE)
    assert queue.payload(tag, PAGE) == payload
    queue.complete(tag, PAGE)
    queue.submit()
    assert answer.result() == b""
    ublk_kernel.send(Op.WRITE, 0, PAGE, b"2" * PAGE)
    assert arrived(queue) == [tag]
    assert payload == b"1" * PAGE
    assert queue.payload(tag, PAGE) == b"2" * PAGE
    queue.close()
    with pytest.raises(OSError, match="the device is gone") as caught:
        queue.payload(tag, PAGE)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize(
    ("op", "flags", "offset", "length", "request_"),
    [
        (Op.FLUSH, 0, 0, 0, (0, Command.FLUSH, 0, 0)),
        (Op.FLUSH, 0, 4096, 512, (0, Command.FLUSH, 0, 0)),
        (Op.DISCARD, 0, 512, 4096, (0, Command.TRIM, 512, 4096)),
        (Op.DISCARD, NOUNMAP, 512, 4096, (0, Command.TRIM, 512, 4096)),
        (Op.WRITE_ZEROES, 0, 512, (1 << 32) - 512, (0, Command.WRITE_ZEROES, 512, (1 << 32) - 512)),
        (Op.WRITE_ZEROES, NOUNMAP, 0, 512, (CommandFlag.NO_HOLE, Command.WRITE_ZEROES, 0, 512)),
        (
            Op.WRITE_ZEROES,
            NOUNMAP | FUA,
            0,
            512,
            (CommandFlag.NO_HOLE | CommandFlag.FUA, Command.WRITE_ZEROES, 0, 512),
        ),
        (Op.READ, 1 << 8, 1 << 60, 512, (0, Command.READ, 1 << 60, 512)),  # failfast: ignored
        (4, 0, 0, 512, (0, 0xFFFF, 0, 512)),
        (200, 0, 0, 512, (0, 0xFFFF, 0, 512)),
    ],
)
def test_requests_are_those_of_nbd(
    attachment: UblkAttachment,
    ublk_kernel: FakeUblk,
    op: int,
    flags: int,
    offset: int,
    length: int,
    request_: tuple[int, int, int, int],
) -> None:
    queue = attachment.open_queue()
    answer = ublk_kernel.send(op, offset, length, b"", flags)
    (tag,) = arrived(queue)
    assert queue.request(tag) == request_
    queue.complete(tag, -errno.EOPNOTSUPP)
    queue.submit()
    with pytest.raises(OSError, match="answer") as caught:
        answer.result()
    assert caught.value.errno == errno.EOPNOTSUPP
    queue.close()


def test_results_of_a_batch_bring_the_next_requests(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    queue = attachment.open_queue()
    answers = [ublk_kernel.send(Op.READ, n * 512, 512) for n in range(300)]
    done = 0
    while done < 300:
        tags = queue.take()
        assert len(tags) in (128, 300 - 256)
        for tag in tags:
            *_, offset, length = queue.request(tag)
            queue.place(tag, bytes([offset // 512 % 251]) * length)
            queue.complete(tag, length)
        queue.submit()
        done += len(tags)
    assert [each.result()[0] for each in answers] == [n % 251 for n in range(300)]
    assert ublk_kernel.device.most_in_flight == 128
    queue.close()


def test_data_that_the_kernel_does_not_take_fails_the_request(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    attachment = attach(None, MemoryDevice(1 << 20), RequestQueue())
    queue = attachment.open_queue()
    real = os.pwrite

    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EINVAL, "the request is over")

    for fault in (refuse, lambda fd, data, offset: real(fd, data[:-1], offset)):
        answer = ublk_kernel.send(Op.READ, 0, 512)
        (tag,) = arrived(queue)
        monkeypatch.setattr(os, "pwrite", fault)
        with pytest.raises(OSError, match=r"the request is over|does not take all 512 bytes"):
            queue.place(tag, bytes(512))
        monkeypatch.setattr(os, "pwrite", real)
        queue.complete(tag, -errno.EIO)
        queue.submit()
        with pytest.raises(OSError, match="answer") as caught:
            answer.result()
        assert caught.value.errno == errno.EIO
    ublk_kernel.send(Op.WRITE, 0, 1024, bytes(1024))
    (tag,) = arrived(queue)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda fd, length, offset: bytes(512))
        with pytest.raises(OSError, match="the kernel gave 512 of 1024 bytes to write"):
            queue.payload(tag, 1024)
    queue.close()
    attachment.undo()
