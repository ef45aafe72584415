"""Whether this system can serve devices by ublk, and why not: kernel, module, io_uring, rights.

Nothing is tried that could harm: ADD_DEV alone brings some kernels down. Those are known by their
release; whatever else a kernel can do the driver itself says (GET_FEATURES).
"""

from __future__ import annotations

import errno
import os
import re

from ..errors import AttachError, UblkUnavailableError
from ..kernel.driver import modprobe
from . import control, io_uring
from .commands import Feature

_PANICS = (
    r"6\.18\.[45](?!\d)",
    r"6\.17\.0-10(15|17|18)-(azure|aws)",
)
"""Releases whose kernel panics or oopses when a device is added (mended in 6.18.6)."""

OLDEST = "6.5"
"""The first Linux whose driver says what it can do."""


def refuse_bad_kernel(release: str | None = None) -> None:
    """Refuse kernels that are known to break.

    Args:
        release: of the kernel; None for the one that runs.

    Raises:
        UblkUnavailableError: it is one of them.

    """
    release = release or os.uname().release
    if any(re.match(pattern, release) for pattern in _PANICS):
        raise UblkUnavailableError(
            errno.ENOSYS,
            f"Linux {release} panics when a ublk device is made (mended in 6.18.6):"
            " use another kernel, or attach by NBD",
        )


def ensure_available() -> Feature:
    """Load the driver if need be, and return what it can do. Blocks.

    Raises:
        UblkUnavailableError: this system cannot serve devices by ublk; the message says what helps.
        AttachError: this process may not.

    """
    refuse_bad_kernel()
    ensure_io_uring()
    _ensure_driver()
    try:
        return control.features()
    except OSError as exc:
        raise control_error(exc) from exc


def control_error(exc: OSError) -> AttachError:
    """Convert an error of opening or asking the driver's control node."""
    node = control.CONTROL_NODE
    if exc.errno in (errno.EACCES, errno.EPERM):
        return AttachError(
            exc.errno,
            f"serving by ublk takes access to {node}: run as root, or have an administrator allow"
            " it (docs/how-to/ublk.md)",
            node,
        )
    if exc.errno in (errno.EOPNOTSUPP, errno.EINVAL):
        return UblkUnavailableError(
            errno.ENOSYS,
            f"this kernel's ublk driver does not say what it can do, which takes Linux {OLDEST}",
        )
    return AttachError(exc.errno or errno.EIO, exc.strerror or str(exc), node)


def ensure_io_uring() -> None:
    """Check that this process may use io_uring.

    Raises:
        UblkUnavailableError: it may not; the message says what helps.

    """
    refused = io_uring.refusal()
    if refused is None:
        return
    if refused.errno == errno.ENOSYS:
        reason = "this kernel has no io_uring, or a seccomp filter hides it"
    elif refused.errno == errno.EPERM and (level := io_uring.disabled_by_sysctl()):
        group = " or join the group of kernel.io_uring_group," if level == 1 else ""
        reason = (
            f"io_uring is disabled: the sysctl kernel.io_uring_disabled is {level};"
            f"{group} set it to 0"
        )
    elif refused.errno == errno.EPERM:
        reason = (
            "io_uring is refused by a seccomp filter, as that of a container: allow it"
            " io_uring_setup and io_uring_enter (docker run --security-opt seccomp=PROFILE)"
        )
    elif refused.errno == errno.EINVAL:  # it does not know a flag
        reason = f"this kernel's is too old: that takes Linux {OLDEST}"
    else:
        reason = f"io_uring cannot be set up: {refused.strerror}"
    raise UblkUnavailableError(refused.errno or errno.EIO, f"ublk takes io_uring; {reason}")


def _ensure_driver() -> None:
    if os.path.exists(control.CONTROL_NODE):
        return
    reason = modprobe("ublk_drv")
    if not os.path.exists(control.CONTROL_NODE):
        raise UblkUnavailableError(
            errno.ENODEV,
            f"there is no {control.CONTROL_NODE}: the kernel's ublk driver is not loaded, and"
            f" cannot be ({reason}); it is in Debian's kernels since 6.12, in Ubuntu's package"
            " linux-modules-extra. In a container the node has to be passed in",
        )
