"""Anonymous memory that takes pages only for what is written to it."""

from __future__ import annotations

import mmap

_MAP_NORESERVE = 0x4000  # include/uapi/asm-generic/mman-common.h; Python names it since 3.13


def map_sparse(size: int) -> mmap.mmap:
    """Map ``size`` bytes of zeroes, private to this process.

    A page exists from the first write to it; ``madvise(MADV_DONTNEED)`` gives it back. With
    MAP_NORESERVE the kernel does not count pages that do not exist yet as committed memory, unless
    vm.overcommit_memory is 2 (Documentation/mm/overcommit-accounting.rst).

    Raises:
        OverflowError, OSError: the address space does not have that much room.

    """
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
