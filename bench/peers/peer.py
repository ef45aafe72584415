"""What is known of a server before it runs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cases import Backend, Case
from ..pythons import ROOT


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
        tree: the checkout whose aiovblk it is, if it is one.
        is_main: whether it is asked everything; otherwise only what is for all.

    """

    name: str
    commands: Mapping[Backend, tuple[str, ...]]
    probe: tuple[str, ...]
    package: str
    connections: int = 16
    tree: Path = ROOT
    is_main: bool = False

    def can(self, case: Case) -> bool:
        """Whether it makes sense to ask this of it."""
        if case.backend not in self.commands or case.connections > self.connections:
            return False
        return self.is_main or case.is_for_all

    def is_there(self) -> bool:
        """Whether this machine has it."""
        return succeeds(self.probe)


@dataclass(frozen=True, slots=True)
class AttachedPeer:
    """A server behind a device of the kernel's.

    Args:
        name: in tables, and what ``--peers`` looks for.
        command: stays in the foreground. ``{directory}`` is as in :class:`Peer`, ``{device}`` is
            the ``/dev/nbdN`` that it has to attach.
        probe: a command that succeeds where the server can be had.
        package: what to install otherwise.
        attach: a command that attaches ``{device}`` to ``{directory}/socket``, where the server
            only listens.
        detach: the command to detach it, where it is not enough to end the server.
        tree: the checkout whose aiovblk it is, if it is one.

    """

    name: str
    command: tuple[str, ...]
    probe: tuple[str, ...]
    package: str
    attach: tuple[str, ...] | None = None
    detach: tuple[str, ...] | None = None
    tree: Path = ROOT

    def can(self, case: Case) -> bool:
        """Whether it makes sense to ask this of it."""
        return case.backend is Backend.MEMORY

    def is_there(self) -> bool:
        """Whether this machine has it."""
        return succeeds(self.probe) and (self.attach is None or which(self.attach[0]) is not None)


def succeeds(command: Sequence[str]) -> bool:
    """Whether a command is there and says so."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


def which(program: str) -> str | None:
    """The path of a program, of those too that Debian keeps for root."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
