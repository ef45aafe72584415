"""The load: fio, its jobs and what it says of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import Case

PATIENCE = 60.0  # seconds more than a run may take, until it counts as hung

Target = tuple[str, ...]
"""Options that lead fio to a disk."""


class LoadError(Exception):
    """fio failed, or a request did."""


@dataclass(frozen=True, slots=True)
class Load:
    """What fio saw: requests and bytes per second, microseconds until the answer.

    ``client_cpu`` is the CPU time of fio's jobs, in seconds.
    """

    requests: int
    iops: float
    bytes_per_second: float
    p50: float
    p99: float
    client_cpu: float


def nbd_target(sock: Path) -> Target:
    """An NBD server on a Unix socket."""
    return ("--ioengine=nbd", f"--uri=nbd+unix:///?socket={sock}")


def device_target(path: str) -> Target:
    """A block device, without the kernel's cache."""
    return ("--ioengine=libaio", "--direct=1", f"--filename={path}")


def command(case: Case, target: Target) -> list[str]:
    """Fio's command line."""
    share = case.connections
    return [
        "fio",
        f"--name={case.name.replace(' ', '-').replace(',', '')}",
        *target,
        f"--rw={case.pattern}",
        f"--bs={case.length}",
        f"--iodepth={case.depth // share}",
        f"--numjobs={share}",
        f"--size={case.size}",
        f"--io_size={case.requests // share * case.length}",
        f"--runtime={case.longest}",
        "--norandommap=1",
        "--group_reporting",
        # One figure for reads and writes together.
        "--unified_rw_reporting=1",
        # Or it spends half a second on each processor to calibrate their clocks.
        "--clocksource=clock_gettime",
        # From before the submission: the system call that hands a request to a device may take
        # longer than the rest.
        "--clat_percentiles=0",
        "--lat_percentiles=1",
        "--output-format=json",
    ]


def run(case: Case, target: Target) -> Load:
    """Run a case to its end.

    Raises:
        LoadError: fio failed, or did not end.

    """
    if shutil.which("fio") is None:
        raise LoadError("fio is missing: install the package fio, or run make setup")
    try:
        done = subprocess.run(
            command(case, target),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE + case.longest,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LoadError("fio does not end") from None
    if done.returncode:
        raise LoadError((done.stderr or done.stdout).strip()[-500:])
    return parse(done.stdout)


def parse(output: str) -> Load:
    """Read fio's JSON, which other lines may come before and after.

    Raises:
        LoadError: it is not there, or tells of an error.

    """
    try:
        report, _ = json.JSONDecoder().raw_decode(output[output.index("{\n") :])
        job = report["jobs"][0]
        if job["error"]:
            raise LoadError(f"fio tells of error {job['error']}")
        return _of_group(job["mixed"], _cpu_seconds(job))
    except (ValueError, KeyError, IndexError) as exc:
        raise LoadError(f"not what fio usually says: {exc!r}") from exc


def _of_group(mixed: Mapping[str, Any], client_cpu: float) -> Load:
    if not mixed["total_ios"]:
        raise LoadError("no request was answered in time")
    percentile = mixed["lat_ns"]["percentile"]
    return Load(
        requests=mixed["total_ios"],
        iops=mixed["iops"],
        bytes_per_second=mixed["bw_bytes"],
        p50=percentile["50.000000"] / 1000,
        p99=percentile["99.000000"] / 1000,
        client_cpu=client_cpu,
    )


def _cpu_seconds(job: Mapping[str, Any]) -> float:
    """What fio's jobs took, without what it takes to start; they are told as parts of run time."""
    return float(job["usr_cpu"] + job["sys_cpu"]) / 100 * float(job["job_runtime"]) / 1000
