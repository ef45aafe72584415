"""What is known of a server before it runs."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..cases import Backend, Case

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, and how to start it.

    Args:
        name: in tables, and what ``--peers`` looks for.
        commands: for each back end that it can have, a command that stays in the foreground.
            ``{directory}`` is a directory of its own, in memory: it has to listen on
            ``{directory}/socket``, and ``{directory}/disk`` is an empty file of the right size.
        probe: a command that succeeds where the server can be had.
        package: what to install otherwise.
        connections: how many it can serve at once.

    """

    name: str
    commands: Mapping[Backend, tuple[str, ...]]
    probe: tuple[str, ...]
    package: str
    connections: int = 16

    def can(self, case: Case) -> bool:
        """Whether it makes sense to ask this of it."""
        return case.backend in self.commands and case.connections <= self.connections

    def is_there(self) -> bool:
        """Whether this machine has it."""
        try:
            probe = subprocess.run(
                self.probe,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=60,
                check=False,
            )
        except OSError:
            return False
        return probe.returncode == 0
