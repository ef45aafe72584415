"""The other side: aiovblk as a client, beside libnbd's Python module and nbdcopy.

All ask nbdkit's memory plugin. What is measured is the client's CPU time, and requests per second;
for a copy, a request is a MiB of it.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from . import loadgen
from .cases import BIG_READ, FILL, READ, READ_QD1, WRITE, Backend, Case
from .figures import Figures, LoadError
from .load import Server, measure, run
from .peers.ours import python_command
from .peers.peer import succeeds
from .peers.theirs import nbdkit_memory
from .placement import Processors
from .process import cpu_seconds
from .pythons import REFERENCE, ROOT
from .rounds import rotated, say
from .server import running
from .summary import Key, Samples

PEERS = ROOT / "bench" / "peers"
LIBNBD_PYTHON = "/usr/bin/python3"  # the one that Debian's python3-libnbd is for
COPY = replace(READ, name="copy, per MiB", length=1 << 20)
CASES = (READ, WRITE, READ_QD1, BIG_READ)
OURS, LIBNBD, NBDCOPY = "aiovblk.connect", "libnbd's Python module", "nbdcopy"
COPIED = "aiovblk.storage.copy"
NAME = "clients"


@dataclass(frozen=True, slots=True)
class Asking:
    """A client: its name in the tables, and its command before the words for socket and load."""

    name: str
    command: tuple[str, ...]


def clients() -> list[Asking]:
    """Those that this machine has; the load generator shows what a client in C needs."""
    found = [Asking(OURS, (*python_command(REFERENCE), str(PEERS / "asking_aiovblk.py")))]
    if succeeds((LIBNBD_PYTHON, "-c", "import nbd")):
        found.append(Asking(LIBNBD, (LIBNBD_PYTHON, str(PEERS / "asking_libnbd.py"))))
    return found


def measure_clients(samples: Samples, rounds: int, processors: Processors) -> None:
    """Measure all cases, in turns.

    Raises:
        ServerError: nbdkit did not start.
        LoadError: it could not be filled.

    """
    asked = clients()
    command = nbdkit_memory().commands[Backend.MEMORY]
    with ExitStack() as stack:
        processors.release()
        server, other = (stack.enter_context(running(command)) for _ in range(2))
        measure(FILL, server)
        for number in range(rounds):
            say(f"clients, round {number + 1} of {rounds}")
            for case in CASES:
                for placement in filter(processors.allows, case.placements):
                    for client in rotated(asked, number):
                        processors.place(server.pid, placement)
                        key = Key(case.name, placement, client.name)
                        _add(samples, key, case, client.command, server)
            for placement in filter(processors.allows, COPY.placements):
                processors.place(other.pid, placement)
                processors.place(server.pid, placement)
                for name, copy in _copies():
                    key = Key(COPY.name, placement, name)
                    _add_copy(samples, key, copy, server, other)
        processors.release()


def _add(samples: Samples, key: Key, case: Case, command: Sequence[str], server: Server) -> None:
    numbers = (case.length, case.depth, case.requests)
    words = [*command, str(server.socket), case.op, *map(str, numbers)]
    try:
        before = cpu_seconds(server.pid)
        output = run(words, case)
        # What it took to connect is part of that.
        samples.add(key, parse(output, case, cpu_seconds(server.pid) - before))
    except (LoadError, OSError) as exc:
        say(f"{key.peer} failed at {key.case}: {exc}")


def parse(output: str, case: Case, server_seconds: float = 0.0) -> Figures:
    """Read the JSON that a client prints.

    Raises:
        LoadError: it is not there.

    """
    try:
        figures = {**json.loads(output), "server_cpu": server_seconds, "p50": 0.0, "p99": 0.0}
    except (ValueError, TypeError) as exc:
        raise LoadError(f"not what a client usually says: {exc!r}") from exc
    return loadgen.parse(json.dumps(figures), case)


def _copies() -> list[tuple[str, tuple[str, ...]]]:
    ours = (*python_command(REFERENCE), str(PEERS / "copying_aiovblk.py"))
    uris = ("nbd+unix:///?socket={source}", "nbd+unix:///?socket={target}")
    return [(COPIED, (*ours, "{source}", "{target}")), (NBDCOPY, ("nbdcopy", *uris))]


def _add_copy(
    samples: Samples, key: Key, command: Sequence[str], source: Server, target: Server
) -> None:
    words = [each.format(source=source.socket, target=target.socket) for each in command]
    try:
        before, begin = _children_seconds(), time.perf_counter()
        output = run(words, COPY)
        seconds, used = time.perf_counter() - begin, _children_seconds() - before
        if not output.strip():  # nbdcopy says nothing; what it takes to start is little
            count = FILL.requests
            output = json.dumps({"requests": count, "seconds": seconds, "client_cpu": used})
        samples.add(key, parse(output, COPY))
    except (LoadError, OSError) as exc:
        say(f"{key.peer} failed: {exc}")


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
