"""The order of it all: rounds, in them cases and placements, in them peers.

A machine that drifts drifts for all alike only if those who are compared take turns within a
second: rounds are short and many. Servers live for a few rounds and are then started anew, since
where a process happens to have its memory makes it faster or slower for all its life.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from .cases import FILL, Backend, Case
from .figures import LoadError
from .load import Server, measure
from .peers import Peer
from .placement import Processors
from .process import memory_kib
from .server import ServerError, running
from .summary import Key, Memory, Samples

LIFE = 5
"""Rounds until the servers are started anew."""


class Contender(Protocol):
    """What is compared."""

    @property
    def name(self) -> str:
        """As it is in the tables."""

    def can(self, case: Case) -> bool:
        """Whether it makes sense to ask this of it."""


P = TypeVar("P", bound=Contender)
T = TypeVar("T")
Start = Callable[[P, Backend], AbstractContextManager[Server]]


def say(text: str) -> None:
    """Report on stderr what is being done."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass
class Rounds(Generic[P]):
    """Measures everything several times.

    Args:
        samples: what is added to.
        peers: who takes part.
        cases: what they are asked.
        start: starts a peer with a back end, and ends it on leaving.
        processors: where servers and clients are placed; None leaves them where they are.
        fill: writes the disk, before the first case.

    """

    samples: Samples
    peers: Sequence[P]
    cases: Sequence[Case]
    start: Start[P]
    processors: Processors | None = None
    fill: Case = FILL

    def __post_init__(self) -> None:
        self._idle: dict[str, int] = {}

    def run(self, rounds: int, seconds: float = float("inf")) -> int:
        """Measure, and return how many rounds there were.

        A server that fails is left out until the next are started.

        Args:
            rounds: how many, at most.
            seconds: after so many no further one begins.

        """
        deadline = time.monotonic() + seconds
        done = 0
        while done < rounds and time.monotonic() < deadline:
            with ExitStack() as stack:
                servers = self._start_all(stack)
                for _ in range(min(LIFE, rounds - done)):
                    if done and time.monotonic() >= deadline:
                        break
                    say(f"round {done + 1} of {rounds}")
                    self._one_round(servers, done)
                    done += 1
                self._add_memory(servers)
                self._release()
        return done

    def _start_all(self, stack: ExitStack) -> dict[tuple[str, Backend], Server]:
        servers = {}
        self._release()
        for peer in self.peers:
            for backend in {case.backend: None for case in self.cases if peer.can(case)}:
                try:
                    server = stack.enter_context(self.start(peer, backend))
                    if backend is Backend.MEMORY:
                        idle = memory_kib(server.pid, "VmRSS")
                        measure(self.fill, server)
                        self._idle[peer.name] = idle
                    servers[peer.name, backend] = server
                except (ServerError, LoadError, OSError) as exc:
                    say(f"{peer.name} is left out of these rounds: {exc}")
        return servers

    def _one_round(self, servers: dict[tuple[str, Backend], Server], number: int) -> None:
        for case in self.cases:
            if number % case.every:
                continue
            for placement in case.placements:
                if self.processors and not self.processors.allows(placement):
                    continue
                for peer in rotated(self.peers, number):
                    server = servers.get((peer.name, case.backend))
                    if server is not None and peer.can(case):
                        self._one_run(Key(case.name, placement, peer.name), case, server)

    def _one_run(self, key: Key, case: Case, server: Server) -> None:
        try:
            if self.processors:
                self.processors.place(server.pid, key.placement)
            self.samples.add(key, measure(case, server))
        except (LoadError, OSError) as exc:
            say(f"{key.peer} failed at {key.case}, {key.placement.value}: {exc}")

    def _add_memory(self, servers: dict[tuple[str, Backend], Server]) -> None:
        for name, idle in self._idle.items():
            server = servers.get((name, Backend.MEMORY))
            if server is not None:
                with suppress(OSError):  # one that ended has been reported
                    peak = memory_kib(server.pid, "VmHWM")
                    self.samples.add_memory(name, Memory(idle, peak))

    def _release(self) -> None:
        if self.processors:
            self.processors.release()


def on_socket(peer: Peer, backend: Backend) -> AbstractContextManager[Server]:
    """Start a server that is reached by its Unix socket."""
    return running(peer.commands[backend], peer.tree)


def rotated(peers: Sequence[T], number: int) -> list[T]:
    """The same peers, another one first each time: none always has the same neighbour's heat."""
    # By the golden section, which has no divisor in common with any number of peers.
    start = int(number * len(peers) * 0.382) % max(len(peers), 1)
    return [*peers[start:], *peers[:start]]
