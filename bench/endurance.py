"""Many requests through one mount, to see whether the memory of the server grows.

    sudo python -m bench.endurance [REQUESTS]

Takes root and a kernel with nbd; ``tools/vm run --smp 2 -- .venvs/3.13/bin/python -m
bench.endurance`` has one, and takes an hour for the ten million that are the default.
"""

import subprocess
import sys
import time

from .attach import attached
from .cases import PART, Case, Client
from .load import measure
from .peers.ours import attached_ours
from .process import memory_kib

REQUESTS = 10_000_000
FIRST = 100_000
"""After so many all that is made once has been made."""
STEPS = 20


def main() -> None:
    """Print the memory after the first hundred thousand requests, and after each twentieth."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    subprocess.run(["modprobe", "nbd"], check=False)  # or it is in the kernel
    peer = attached_ours()[0]
    with attached(peer) as (server, _):
        done, step = 0, FIRST
        while done < requests:
            measure(_mixed(step), server)
            done += step
            kib = memory_kib(server.pid, "VmRSS")
            now = time.strftime("%H:%M:%S")
            print(f"{now} {peer.name}: {kib} KiB after {done:,} requests", flush=True)
            step = min(requests // STEPS, requests - done)


def _mixed(requests: int) -> Case:
    size = PART  # of the disk: all of it is written in the first step
    return Case(
        "many",
        "mixed",
        4096,
        64,
        requests,
        connections=2,
        client=Client.FIO,
        size=size,
        longest=3600,
    )


if __name__ == "__main__":
    main()
