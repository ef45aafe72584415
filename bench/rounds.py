"""The order of it all: rounds, in them cases, in them peers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol, TypeVar

from .cases import FILL, Backend, Case
from .load import LoadError, run
from .peers import Peer
from .process import cpu_seconds, memory_kib
from .server import Server, ServerError, running
from .summary import Figures, Memory, Samples

Servers = dict[tuple[str, Backend], Server]


class Contender(Protocol):
    """What is compared."""

    @property
    def name(self) -> str:
        """As it is in the tables."""

    def can(self, case: Case) -> bool:
        """Whether it makes sense to ask this of it."""


P = TypeVar("P", bound=Contender)
Start = Callable[[P, Backend], AbstractContextManager[Server]]


def say(text: str) -> None:
    """Tell whoever waits what is being done."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure_rounds(
    samples: Samples,
    peers: Sequence[P],
    cases: Sequence[Case],
    rounds: int,
    *,
    start: Start[P],
    fill: Case = FILL,
) -> None:
    """Measure everything ``rounds`` times.  A server that fails is left out of that round.

    Args:
        samples: what is added to.
        peers: who takes part.
        cases: what they are asked.
        rounds: how often.
        start: starts a peer with a back end, and ends it on leaving.
        fill: writes the disk, before the first case.

    """
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        with ExitStack() as stack:
            _one_round(stack, rotated(peers, number), cases, samples, start, fill)


def on_socket(peer: Peer, backend: Backend) -> AbstractContextManager[Server]:
    """Start a server that is reached by its Unix socket."""
    return running(peer.commands[backend])


def rotated(peers: Sequence[P], number: int) -> list[P]:
    """The same peers, another one first each time: nobody always has the same neighbour's heat."""
    # By the golden section, which has no divisor in common with any number of peers.
    start = int(number * len(peers) * 0.382) % max(len(peers), 1)
    return [*peers[start:], *peers[:start]]


def measure(case: Case, server: Server) -> Figures:
    """Run one case against one server.

    Raises:
        LoadError: a request failed.
        OSError: the server went away.

    """
    before = cpu_seconds(server.pid)
    load = run(case, server.target)
    used = cpu_seconds(server.pid) - before
    return Figures(
        server_cpu=used / load.requests * 1e6,
        client_cpu=load.client_cpu / load.requests * 1e6,
        iops=load.iops,
        megabytes=load.bytes_per_second / 1e6,
        p50=load.p50,
        p99=load.p99,
    )


def _one_round(
    stack: ExitStack,
    peers: Sequence[P],
    cases: Sequence[Case],
    samples: Samples,
    start: Start[P],
    fill: Case,
) -> None:
    servers: Servers = {}
    idle: dict[str, int] = {}
    for peer in peers:
        for backend in {case.backend for case in cases if peer.can(case)}:
            try:
                server = stack.enter_context(start(peer, backend))
                if backend is Backend.MEMORY:
                    idle[peer.name] = memory_kib(server.pid, "VmRSS")
                    run(fill, server.target)
                servers[peer.name, backend] = server
            except (ServerError, LoadError, OSError) as exc:
                say(f"{peer.name} is left out of this round: {exc}")
    for case in cases:
        for peer in peers:
            found = servers.get((peer.name, case.backend))
            if found is not None and peer.can(case):
                _one_run(case, peer.name, found, samples)
    for name, kib in idle.items():
        found = servers.get((name, Backend.MEMORY))
        if found is not None:
            samples.add_memory(name, Memory(kib, memory_kib(found.pid, "VmHWM")))


def _one_run(case: Case, peer: str, server: Server, samples: Samples) -> None:
    try:
        samples.add(case.name, peer, measure(case, server))
    except (LoadError, OSError) as exc:
        say(f"{peer} failed at {case.name}: {exc}")
