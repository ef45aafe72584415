"""What the child of a mere fork must not keep.

exec() closes all descriptors of this package. A fork alone closes nothing (``os.fork()``, and what
multiprocessing calls "fork"). A child that holds what belongs to a device would keep it attached
when its server has died, its index taken when it was unmounted, and the kernel from noticing
either. One that holds the sockets of a server keeps its port taken, and hides from clients that it
has died; so does one that holds those of a client from its server.

So in a child these descriptors become ones of /dev/null. They are not closed: objects that the
child has inherited still close them, and by then the numbers could be those of other files.

Only a fork at the very moment between the opening of a file and its noting here goes unnoticed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol, TypeVar
from weakref import WeakSet


class Socket(Protocol):
    """A socket, or whatever has one."""

    def fileno(self) -> int:
        """Its descriptor; -1 once it is closed."""


S = TypeVar("S", bound=Socket)

_descriptors: set[int] = set()
_sockets: WeakSet[Socket] = WeakSet()


def open_protected(path: str, flags: int = 0) -> int:
    """Open a file to read, or to call ioctls of, and keep it from children until :func:`close_protected`.

    Raises:
        OSError: it cannot be opened.

    """
    return protect_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags))


def protect_fd(descriptor: int) -> int:
    """Keep an open file from children, until :func:`close_protected`; returns it."""
    _descriptors.add(descriptor)
    return descriptor


def are_protected(descriptors: Iterable[int]) -> bool:
    """Whether all of these open files are kept from children, and so are this package's own."""
    return _descriptors.issuperset(descriptors)


def protect_socket(sock: S) -> S:
    """Keep a socket from children, until it is closed by whomever; returns it.

    It is forgotten with the object, which has to live as long as the socket is open.
    """
    _sockets.add(sock)
    return sock


def close_protected(descriptor: int) -> None:
    """Close a file that was withheld."""
    _descriptors.discard(descriptor)  # before: the number may be another file's right after
    os.close(descriptor)


def _replace_in_child() -> None:
    withheld = {*_descriptors, *(sock.fileno() for sock in _sockets)} - {-1}
    _descriptors.clear()
    _sockets.clear()
    if not withheld:
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in withheld:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_replace_in_child)
