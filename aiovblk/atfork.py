"""Protect file descriptors and sockets from forked children: at fork, replace them by /dev/null.

exec() closes all descriptors of this package (close-on-exec). A fork without exec closes nothing
(``os.fork()``, and the "fork" start method of multiprocessing). A child that inherits the
descriptors of a device would keep it attached when its server has died, keep its index in use after
an unmount, and keep the kernel from noticing either. One that inherits the sockets of a server
keeps its port in use, and hides from clients that the server has died; one that inherits those of a
client hides its death from the server.

So in the child these descriptors are replaced by /dev/null (dup2). They are not closed: inherited
objects of the child still close them, and by then the numbers could be those of other files.

Limitation: a fork between the opening of a file and its registration here is not covered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol, TypeVar
from weakref import WeakSet


class Socket(Protocol):
    """A socket, or an object that has one."""

    def fileno(self) -> int:
        """Return the descriptor; -1 once it is closed."""


S = TypeVar("S", bound=Socket)

_descriptors: set[int] = set()
_sockets: WeakSet[Socket] = WeakSet()


def open_protected(path: str, flags: int = 0) -> int:
    """Open a file read-only, as for ioctls, and protect its descriptor from forked children.

    Close it with :func:`close_protected`.

    Raises:
        OSError: the file cannot be opened.

    """
    return protect_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags))


def protect_fd(descriptor: int) -> int:
    """Protect a descriptor from forked children until :func:`close_protected`; return it."""
    _descriptors.add(descriptor)
    return descriptor


def are_protected(descriptors: Iterable[int]) -> bool:
    """Return whether all of these descriptors are protected: then they are this package's own."""
    return _descriptors.issuperset(descriptors)


def protect_socket(sock: S) -> S:
    """Protect a socket from forked children until it is closed, wherever that is; return it.

    The object is referenced weakly: it must live as long as the socket is open.
    """
    _sockets.add(sock)
    return sock


def close_protected(descriptor: int) -> None:
    """Close a protected descriptor."""
    _descriptors.discard(descriptor)  # first: after close() the number may be reused
    os.close(descriptor)


def _replace_in_child() -> None:
    """Replace all protected descriptors by /dev/null; runs in the child after a fork."""
    protected = {*_descriptors, *(sock.fileno() for sock in _sockets)} - {-1}
    _descriptors.clear()
    _sockets.clear()
    if not protected:
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in protected:
        os.dup2(null, descriptor, inheritable=False)
    os.close(null)


os.register_at_fork(after_in_child=_replace_in_child)
