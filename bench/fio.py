"""The command line of fio, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cases import Case
from .figures import Figures, LoadError

PATTERNS = {"read": "read", "write": "write", "mixed": "rw"}


def target(socket: Path | None, device: str | None) -> tuple[str, ...]:
    """Options that lead fio to a server's socket; or to a device, past the kernel's cache."""
    if socket is not None:
        return ("--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}")
    return ("--ioengine=libaio", "--direct=1", f"--filename={device}")


def command(case: Case, where: Sequence[str]) -> list[str]:
    """Fio's command line."""
    share = case.connections
    return [
        "fio",
        f"--name={case.name.replace(' ', '-').replace(',', '')}",
        *where,
        f"--rw={'' if case.is_sequential else 'rand'}{PATTERNS[case.op]}",
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


def parse(output: str, server_seconds: float) -> Figures:
    """Read fio's JSON, which other lines may come before and after.

    Args:
        output: what it printed.
        server_seconds: CPU time of the server meanwhile.

    Raises:
        LoadError: it is not there, or reports an error.

    """
    try:
        report, _ = json.JSONDecoder().raw_decode(output[output.index("{\n") :])
        job = report["jobs"][0]
        if job["error"]:
            raise LoadError(f"fio reports error {job['error']}")
        return _of_group(job["mixed"], server_seconds, _cpu_seconds(job))
    except (ValueError, KeyError, IndexError) as exc:
        raise LoadError(f"not what fio usually says: {exc!r}") from exc


def _of_group(mixed: Mapping[str, Any], server_seconds: float, client_seconds: float) -> Figures:
    count = mixed["total_ios"]
    if not count:
        raise LoadError("no request was answered in time")
    percentile = mixed["lat_ns"]["percentile"]
    return Figures(
        server_cpu=server_seconds / count * 1e6,
        client_cpu=client_seconds / count * 1e6,
        iops=mixed["iops"],
        megabytes=mixed["bw_bytes"] / 1e6,
        p50=percentile["50.000000"] / 1000,
        p99=percentile["99.000000"] / 1000,
    )


def _cpu_seconds(job: Mapping[str, Any]) -> float:
    """Return the CPU seconds of fio's jobs, which it prints in percent of the run time."""
    return float(job["usr_cpu"] + job["sys_cpu"]) / 100 * float(job["job_runtime"]) / 1000
