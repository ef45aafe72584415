"""A libnbd client that keeps to all limits it is told: run as `strict_libnbd_client.py CHECK URI`.

libnbd's strict mode, its default, refuses on the client's side what the server has not said that it
can; so what is sent here is what nbdsh, nbdcopy and the virt tools may send. The situations are
those of libnbd's own interop tests (interop/ in its sources): structured reads, lists of exports,
parallel requests by one connection and by several, large requests, any alignment.
"""

import os
import random
import sys
import threading
from typing import Any

import nbd  # type: ignore[import-not-found]  # it is Debian's python3-libnbd

MIB = 1 << 20
THREADS, DEPTH, ROUNDS = 4, 16, 6


def connected(uri: str) -> Any:
    """Connect, with the metadata context of holes."""
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)  # certificates
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    assert h.get_strict_mode() & nbd.STRICT_ALIGN
    return h


def unaligned(h: Any) -> None:
    """Read and write at all alignments, in every kind of request."""
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
    assert h.get_block_size(nbd.SIZE_PREFERRED) >= 4096
    size = h.get_size()
    copy = bytearray(h.pread(65_536, 0))
    at_random = random.Random(1)
    for number in range(60):
        begin = at_random.randrange(60_000)
        length = at_random.randrange(1, 5000)
        if number % 3:
            data = at_random.randbytes(length)
            h.pwrite(data, begin, nbd.CMD_FLAG_FUA if h.can_fua() else 0)
            copy[begin : begin + length] = data
        else:
            h.zero(length, begin)
            copy[begin : begin + length] = bytes(length)
        h.trim(3, 70_000 + number)
        assert h.pread(length + 2, begin) == bytes(copy[begin:][: length + 2]), (begin, length)
    assert h.pread(len(copy), 0) == copy
    h.pwrite(b"end", size - 3)
    assert h.pread(1, size - 1) == b"d"


def structured(h: Any) -> None:
    """Read in chunks, of which none may be missing, overlap, or lie outside."""
    assert h.get_structured_replies_negotiated()
    size = 3 * MIB + 777
    data = os.urandom(MIB)
    h.pwrite(data, MIB + 5)
    seen = bytearray(size)

    def chunk(part: bytes, offset: int, status: int, error: Any) -> int:
        assert error.value == 0
        assert status in (nbd.READ_DATA, nbd.READ_HOLE)
        place = slice(offset - 11, offset - 11 + len(part))
        assert not any(seen[place])
        seen[place] = b"\1" * len(part)
        return 0

    expected = (bytes(MIB - 6) + data).ljust(size, b"\0")
    assert h.pread_structured(size, 11, chunk) == expected
    assert all(seen)


def large(h: Any) -> None:
    """Write, read, zero and trim as much as one request may have."""
    most = h.get_block_size(nbd.SIZE_MAXIMUM)
    assert most == 32 * MIB
    data = os.urandom(MIB) * 32
    h.pwrite(data, 1)
    assert h.pread(most, 1) == data
    h.zero(h.get_size() - 2, 1)
    assert h.pread(most, 1) == bytes(most)
    h.trim(h.get_size(), 0)
    extents: list[int] = []

    def extent(context: str, offset: int, found: list[int], error: Any) -> int:
        extents.extend(found)
        return 0

    h.block_status(h.get_size(), 0, extent)
    assert sum(extents[::2]) <= h.get_size()


def exports(h: Any) -> None:
    """List what there is, and tell each by its description."""
    found: dict[str, str] = {}

    def export(name: str, description: str) -> int:
        found[name] = description
        return 0

    h.opt_list(export)
    assert found == {"": "the default one", "disk": "a disk", "bytes ü": ""}, found
    for name in found:
        h.set_export_name(name)
        h.opt_info()
        assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
    h.opt_go()


def parallel(handles: list[Any]) -> None:
    """Keep requests of random places in flight, in threads, each in a part of its own."""
    failed: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            _exercise(handles[number % len(handles)], number)
        except BaseException as exc:
            failed.append(exc)
            raise

    # libnbd locks a handle for each call, so that threads may share one.
    if len(handles) == 1:
        for number in range(THREADS):
            guarded(number)
    else:
        threads = [threading.Thread(target=guarded, args=[number]) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


def _exercise(h: Any, number: int) -> None:
    at_random = random.Random(number)
    # Parts meet within a block.
    span = h.get_size() // THREADS - 1
    base = number * span
    copy = bytearray(h.pread(span, base))
    for _ in range(ROUNDS):
        waiting = []
        step = span // DEPTH
        for slot in range(DEPTH):
            begin = slot * step + at_random.randrange(step // 2)
            data = at_random.randbytes(at_random.randrange(1, step // 2))
            copy[begin : begin + len(data)] = data
            buffer = nbd.Buffer.from_bytearray(bytearray(data))
            waiting.append((h.aio_pwrite(buffer, base + begin), buffer))
        _finish(h, waiting)
        reads = []
        for slot in range(DEPTH):
            begin = slot * step + at_random.randrange(step // 2)
            buffer = nbd.Buffer(at_random.randrange(1, step // 2))
            reads.append((h.aio_pread(buffer, base + begin), buffer, begin))
        _finish(h, [each[:2] for each in reads])
        for _, buffer, begin in reads:
            data = buffer.to_bytearray()
            assert data == copy[begin : begin + len(data)]
    assert h.pread(span, base) == copy


def _finish(h: Any, waiting: list[tuple[Any, Any]]) -> None:
    for cookie, _ in waiting:
        while not h.aio_command_completed(cookie):
            assert h.poll(10_000) > 0


CHECKS = {"unaligned": unaligned, "structured": structured, "large": large}


def main() -> None:
    """Connect, check, and take leave."""
    check, uri = sys.argv[1:]
    if check == "exports":
        h = nbd.NBD()
        h.set_opt_mode(True)
        h.connect_uri(uri)
        handles = [h]
        exports(h)
    elif check.startswith("parallel"):
        handles = [connected(uri) for _ in range(int(check.removeprefix("parallel-")))]
        assert len(handles) == 1 or handles[0].can_multi_conn()
        parallel(handles)
    else:
        handles = [connected(uri)]
        CHECKS[check](handles[0])
    for h in handles:
        h.shutdown()


if __name__ == "__main__":
    main()
