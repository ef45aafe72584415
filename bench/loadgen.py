"""The command line of native/loadgen.c, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .cases import Case
from .figures import Figures, LoadError
from .native import LOADGEN

WARM_UP_PART = 20
"""One request of so many is asked before measuring begins, and at least the depth four times."""


def command(case: Case, socket: Path, pids: Sequence[int]) -> list[str]:
    """Loadgen's command line; the CPU time of ``pids`` counts as the server's."""
    return [
        *(str(LOADGEN), "--op", case.op, "--block-size", str(case.length)),
        *("--depth", str(case.depth // case.connections)),
        *("--connections", str(case.connections)),
        *("--requests", str(case.requests)),
        *("--warm-up", str(0 if case.is_sequential else warm_up(case))),
        *("--seconds", str(case.longest), "--size", str(case.size)),
        *(["--sequential"] if case.is_sequential else []),
        *(word for pid in pids for word in ("--pid", str(pid))),
        str(socket),
    ]


def warm_up(case: Case) -> int:
    """Requests that are not measured."""
    return max(case.requests // WARM_UP_PART, 4 * case.depth)


def parse(output: str, case: Case) -> Figures:
    """Read its line of JSON.

    Raises:
        LoadError: it is not there, or nothing was measured.

    """
    try:
        found = json.loads(output)
        count, seconds = found["requests"], found["seconds"]
        return Figures(
            server_cpu=found["server_cpu"] / count * 1e6,
            client_cpu=found["client_cpu"] / count * 1e6,
            iops=count / seconds,
            megabytes=count * case.length / seconds / 1e6,
            p50=found["p50"],
            p99=found["p99"],
        )
    except ZeroDivisionError:
        raise LoadError("no request was answered in time") from None
    except (ValueError, KeyError, TypeError) as exc:
        raise LoadError(f"not what loadgen usually says: {exc!r}") from exc
