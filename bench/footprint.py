"""What takes no rounds: memory that must not grow, and the time of an import."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, replace
from statistics import median

from .cases import BIG_WRITE, FILL, READ, Case
from .load import measure
from .peers.ours import DEVICES, python_command, serve_command
from .process import memory_kib
from .pythons import REFERENCE, ROOT, available
from .server import running

SMALL, LARGE = 64 << 20, 1 << 40  # bytes of the sparse disks
MANY = 1_000_000
DEEP = replace(BIG_WRITE, name="256k write QD128", depth=128, requests=8_000, longest=10)
IMPORTS = 7


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resident KiB of aiovblk on the reference Python with uvloop, and seconds of its import.

    Args:
        small: with an empty disk of 64 MiB.
        large: with an empty disk of 1 TiB.
        settled: with a full disk of 256 MiB and the slow back end.
        deep: the most there was then, with up to 128 writes of 256 KiB in flight.
        growth: how much more after ``requests`` reads of 4 KiB than after a hundredth of them.
        requests: how many those were.
        imports: seconds by version, without those that the interpreter needs to start.

    """

    small: int
    large: int
    settled: int
    deep: int
    growth: int
    requests: int
    imports: dict[str, float]


def measure_footprint(*, requests: int = MANY) -> Footprint:
    """Start servers of its own, and measure."""
    small, large = (_idle(size) for size in (SMALL, LARGE))
    with running(serve_command(REFERENCE, "uvloop", f"memory:{FILL.requests << 20}")) as server:
        measure(FILL, server)
        measure(_many(requests // 100), server)
        before = memory_kib(server.pid, "VmRSS")
        measure(_many(requests), server)
        growth = memory_kib(server.pid, "VmRSS") - before
    # Handlers that wait keep what is in flight in memory.
    with running(serve_command(REFERENCE, "uvloop", f"{DEVICES}:Slow")) as server:
        measure(FILL, server)
        settled = memory_kib(server.pid, "VmRSS")
        measure(DEEP, server)
        deep = memory_kib(server.pid, "VmHWM")
    imports = {each.version: import_seconds(each.version) for each in available()}
    return Footprint(small, large, settled, deep, growth, requests, imports)


def import_seconds(version: str) -> float:
    """How much longer an interpreter takes that imports aiovblk, once compiled."""
    _run(version, "import aiovblk")
    pairs = [(_run(version, "import aiovblk"), _run(version, "pass")) for _ in range(IMPORTS)]
    return median(with_it - without for with_it, without in pairs)


def _run(version: str, code: str) -> float:
    begin = time.perf_counter()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": str(ROOT)}
    subprocess.run([*python_command(version), "-c", code], cwd=ROOT, env=environment, check=True)
    return time.perf_counter() - begin


def _idle(size: int) -> int:
    with running(serve_command(REFERENCE, "uvloop", f"memory:{size}")) as server:
        return memory_kib(server.pid, "VmRSS")


def _many(requests: int) -> Case:
    return replace(READ, name="many reads", requests=requests, longest=120)
