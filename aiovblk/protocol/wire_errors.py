"""Error values on the wire, and which of them an errno of the system becomes."""

from __future__ import annotations

import errno

WIRE_ERRORS = frozenset(
    {
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.ENOTSUP,
        errno.ESHUTDOWN,
    }
)
"""The values of the specification's "Error values"; Linux uses the same numbers."""

_ERRNO_TO_WIRE = {
    errno.EACCES: errno.EPERM,
    errno.EROFS: errno.EPERM,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
}


def errno_to_wire(number: int | None) -> int:
    """Return the error value on the wire for a system's errno.

    An errno that the specification has no value for becomes EIO, as it asks for.
    """
    if number in WIRE_ERRORS:
        return int(number or 0)  # int(): a handler may raise OSError with a float
    return _ERRNO_TO_WIRE.get(number or 0, errno.EIO)
