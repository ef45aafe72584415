"""What Debian's own Python says of a server, by libnbd: run as `python_libnbd_client.py URI CHECK`.

Another Python than that of the tests, which has no such module. Every check raises AssertionError.
"""

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import nbd  # type: ignore[import-not-found]  # it is Debian's python3-libnbd

SIZE, BLOCK = 8 * 1024 * 1024, 4096


def fails(number: int, call: Callable[..., Any], *arguments: Any) -> None:
    """Check that the server, not libnbd, refuses a call with this error."""
    found = 0
    try:
        call(*arguments)
    except nbd.Error as exc:
        found = exc.errnum
    assert found == number, (call.__name__, found, number)


def many(h: Any) -> None:
    """Keep 64 requests in flight, of several kinds, and compare with a copy."""
    copy = bytearray(os.urandom(SIZE))
    waiting = []
    for offset in range(0, SIZE, 64 * 1024):
        buffer = nbd.Buffer.from_bytearray(copy[offset : offset + 64 * 1024])
        waiting.append((h.aio_pwrite(buffer, offset), buffer))
    finish(h, waiting)
    copy[BLOCK : 5 * BLOCK] = bytes(4 * BLOCK)
    finish(h, [(h.aio_zero(4 * BLOCK, BLOCK, flags=nbd.CMD_FLAG_FAST_ZERO), None)])
    finish(h, [(h.aio_flush(), None)])
    reads = []
    for offset in range(0, SIZE, 32 * 1024):
        buffer = nbd.Buffer(32 * 1024)
        reads.append((h.aio_pread(buffer, offset), buffer))
    finish(h, reads)
    assert b"".join(buffer.to_bytearray() for _, buffer in reads) == copy


def finish(h: Any, waiting: list[tuple[Any, Any]]) -> None:
    """Wait for requests that are in flight."""
    for cookie, _ in waiting:
        while not h.aio_command_completed(cookie):
            assert h.poll(10_000) > 0


def errors(h: Any) -> None:
    """Ask for everything that is refused."""
    h.set_strict_mode(0)  # libnbd is to send what it knows to be wrong
    fails(errno.EINVAL, h.pread, BLOCK, SIZE)
    fails(errno.EINVAL, h.pread, 2 * BLOCK, SIZE - BLOCK)
    fails(errno.ENOSPC, h.pwrite, bytes(BLOCK), SIZE)
    fails(errno.ENOSPC, h.zero, 2 * BLOCK, SIZE - BLOCK)
    fails(errno.EINVAL, h.trim, 2 * BLOCK, SIZE - BLOCK)
    fails(errno.EINVAL, h.pwrite, b"", 0)
    fails(errno.EINVAL, h.zero, 0, 0)
    h.pwrite(b"unaligned", 1000)
    assert h.pread(9, 1000) == b"unaligned"
    assert h.aio_is_ready()


def read_only(h: Any) -> None:
    """Try to change what cannot be changed."""
    h.set_strict_mode(0)
    assert h.is_read_only()
    fails(errno.EPERM, h.pwrite, bytes(BLOCK), 0)
    fails(errno.EPERM, h.zero, BLOCK, 0)
    fails(errno.EPERM, h.trim, BLOCK, 0)
    assert h.pread(BLOCK, 0) == bytes(BLOCK)


def sparse(h: Any) -> None:
    """Read around holes, in one piece on demand, and ask for what is where."""
    h.pwrite(b"\1" * 256 * 1024, 1024 * 1024)
    chunks: list[tuple[int, int, int]] = []

    def chunk(data: bytes, offset: int, status: int, error: Any) -> int:
        chunks.append((offset, len(data), status))
        return 0

    expected = bytes(1024 * 1024) + b"\1" * 256 * 1024 + bytes(768 * 1024)
    assert h.pread_structured(2 * 1024 * 1024, 0, chunk) == expected
    assert [status for _, _, status in chunks] == [nbd.READ_HOLE, nbd.READ_DATA, nbd.READ_HOLE]
    chunks.clear()
    assert h.pread_structured(2 * 1024 * 1024, 0, chunk, nbd.CMD_FLAG_DF) == expected
    assert [status for _, _, status in chunks] == [nbd.READ_DATA]

    entries: list[int] = []

    def extent(context: str, offset: int, found: list[int], error: Any) -> int:
        assert (context, offset) == (nbd.CONTEXT_BASE_ALLOCATION, 0)
        entries.extend(found)
        return 0

    h.block_status(2 * 1024 * 1024, 0, extent)
    assert entries == [1024 * 1024, 3, 256 * 1024, 0, 768 * 1024, 3]
    entries.clear()
    h.block_status(2 * 1024 * 1024, 0, extent, nbd.CMD_FLAG_REQ_ONE)
    assert entries == [1024 * 1024, 3]


CHECKS = {"many": many, "errors": errors, "read-only": read_only, "sparse": sparse}


def main() -> None:
    """Connect, check, and take leave."""
    uri, check = sys.argv[1:]
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    CHECKS[check](h)
    h.shutdown()


if __name__ == "__main__":
    main()
