"""Ask a server by libnbd's Python module, with its asynchronous calls; see asking.py.

Runs on the Python that the module is for, the system's own, and imports nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from random import Random

import nbd  # type: ignore[import-not-found]  # it is Debian's python3-libnbd


def ask(socket: str, op: str, length: int, depth: int, requests: int) -> dict[str, float]:
    """Keep ``depth`` requests in flight, and measure after the first part of them."""
    handle = nbd.NBD()
    handle.connect_unix(socket)
    random = Random(1)
    blocks = handle.get_size() // length
    buffers = [nbd.Buffer(length) for _ in range(depth)]
    if op == "write":
        buffers = [nbd.Buffer.from_bytearray(bytearray(length)) for _ in range(depth)]
    start = handle.aio_pread if op == "read" else handle.aio_pwrite

    def run(count: int) -> None:
        free, missing, in_flight = list(buffers), count, 0

        def done(buffer: nbd.Buffer, error: int) -> int:
            nonlocal in_flight
            if error:
                raise OSError(error, "a request failed")
            free.append(buffer)
            in_flight -= 1
            return 1

        while missing or in_flight:
            while missing and free:
                buffer = free.pop()
                offset = random.randrange(blocks) * length
                in_flight += 1
                missing -= 1
                start(buffer, offset, lambda error, buffer=buffer: done(buffer, error))
            handle.poll(-1)

    run(requests // 10)
    begin, cpu = time.perf_counter(), time.process_time()
    run(requests)
    measured = {
        "requests": requests,
        "seconds": time.perf_counter() - begin,
        "client_cpu": time.process_time() - cpu,
    }
    handle.shutdown()
    return measured


if __name__ == "__main__":
    path, operation, *numbers = sys.argv[1:]
    print(json.dumps(ask(path, operation, *map(int, numbers))))
