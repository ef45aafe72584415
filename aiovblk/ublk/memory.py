"""Memory that is shared with the kernel: mmap(2), known by its address.

Not Python's :mod:`mmap`: that keeps a duplicate of the descriptor, which forked children would
inherit (:mod:`aiovblk.atfork` knows nothing of it), and does not say where the memory is.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

from .. import libc

# Python holds the interpreter's lock meanwhile: all of them return at once.
_libc = libc.Functions(
    holding_lock=True,
    addresses=["mmap"],
    mmap=["void_p", "size_t", "int", "int", "int", "long"],
    munmap=["void_p", "size_t"],
    madvise=["void_p", "size_t", "int"],
)

PAGE = os.sysconf("SC_PAGE_SIZE")

_PROT_READ, _PROT_WRITE = 1, 2  # include/uapi/asm-generic/mman-common.h
_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS = 1, 2, 0x20
_MADV_DONTFORK = 10
_FAILED = (1 << 8 * struct.calcsize("P")) - 1  # MAP_FAILED: (void *) -1
_READ_ONLY, _WRITABLE = 0x100, 0x200  # PyBUF_READ, PyBUF_WRITE: Include/pybuffer.h


class Mapping:
    """Mapped memory of a file, or of none; forked children do not have it.

    A view of it must not be used once it is closed: :meth:`close` releases all that it has given.

    Args:
        fd: the file; None for memory of no file, filled with zeros.
        size: bytes; the kernel rounds it up to pages.
        offset: bytes, a multiple of the page size.
        writable: whether it may be changed.

    Raises:
        OSError: the kernel refuses.

    Attributes:
        address: of the first byte.
        size: bytes.

    """

    def __init__(
        self, fd: int | None, size: int, *, offset: int = 0, writable: bool = True
    ) -> None:
        protection = _PROT_READ | (_PROT_WRITE if writable else 0)
        kind = _MAP_PRIVATE | _MAP_ANONYMOUS if fd is None else _MAP_SHARED
        address = _libc.mmap(None, size, protection, kind, -1 if fd is None else fd, offset)
        if address is None or address == _FAILED:
            raise libc.last_error("mmap")
        self.address: int = address
        self.size = size
        self._process = os.getpid()
        self._views: list[memoryview] = []
        self._access = _WRITABLE if writable else _READ_ONLY
        if _libc.madvise(address, size, _MADV_DONTFORK):
            error = libc.last_error("madvise")
            self.close()
            raise error

    def view(self, start: int = 0, stop: int | None = None, form: str = "B") -> memoryview:
        """Return a view of some of the bytes.

        Args:
            start: of its first byte, from the beginning.
            stop: behind its last byte, likewise; None for all to the end.
            form: what the view's items are: a native format character of :mod:`struct`.

        Raises:
            OSError: EBADF once it is closed.

        """
        if not self.address:
            raise OSError(errno.EBADF, "the memory is not mapped any more")
        stop = self.size if stop is None else stop
        whole: memoryview = _from_memory()(self.address + start, stop - start, self._access)
        self._views.append(whole)
        if form == "B":
            return whole
        numbers: memoryview = whole.cast(form)  # type: ignore[call-overload]  # of literals only
        self._views.append(numbers)
        return numbers

    def close(self) -> None:
        """Release the views, and unmap. No-op if it is closed."""
        address, self.address = self.address, 0
        if address:
            for view in reversed(self._views):
                view.release()
            self._views.clear()
            if os.getpid() == self._process:  # a forked child may have other memory there
                _libc.munmap(address, self.size)


def _from_memory() -> Any:
    """Return PyMemoryView_FromMemory: makes a view of an address, a size and a kind of access."""
    import ctypes

    function = ctypes.pythonapi.PyMemoryView_FromMemory
    function.restype = ctypes.py_object
    function.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
    return function
