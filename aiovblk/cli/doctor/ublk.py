"""Check whether devices can be served by ublk; that they cannot is no problem, only a note."""

from __future__ import annotations

import os
import platform
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ...errors import AttachError
from ...kernel.capabilities import Capability, has_capability
from ...ublk import control
from ...ublk.availability import control_error, ensure_io_uring, refuse_bad_kernel
from ...ublk.commands import Feature
from . import machine
from .findings import Finding, info, ok

TOPIC = "ublk"

RULES = tuple(map(Path, ("/etc/udev", "/run/udev", "/usr/local/lib/udev", "/usr/lib/udev")))
"""Directories that may have a ``rules.d``."""


def driver() -> Iterator[Finding]:
    """Check the kernel, io_uring, the driver and the rights of this process."""
    release = platform.release()
    try:
        refuse_bad_kernel(release)
        ensure_io_uring()
        yield _driver() if os.path.exists(control.CONTROL_NODE) else _missing_driver(release)
    except AttachError as exc:
        yield info(TOPIC, f"cannot be used: {exc}")


def _missing_driver(release: str) -> Finding:
    if machine.has_module("ublk_drv", release):
        if has_capability(Capability.CAP_SYS_MODULE):
            return info(TOPIC, "its driver is not loaded yet; a mount by ublk loads it")
        return info(TOPIC, "its driver is not loaded", "sudo modprobe ublk_drv")
    if not (machine.MODULES / release).is_dir():
        reason = f"there is no {control.CONTROL_NODE} here; in a container it is passed in from the"
        return info(TOPIC, f"{reason} host, where the driver is loaded", "modprobe ublk_drv")
    return info(TOPIC, f"this kernel ({release}) does not have its driver; NBD does without")


def _driver() -> Finding:
    try:
        features = control.features()
    except OSError as exc:
        raise control_error(exc) from exc
    resizing = "" if Feature.UPDATE_SIZE in features else "; devices cannot be resized"
    if has_capability(Capability.CAP_SYS_ADMIN):
        others = ", by ordinary users too" if _is_open_to_others() else ""
        return ok(TOPIC, f"can be used{others}{resizing}")
    if not _has_rules():
        return info(
            TOPIC,
            "this user may make devices, but has no udev rules that give it their nodes"
            " (docs/how-to/ublk.md)",
        )
    return ok(TOPIC, f"can be used by this user{resizing}")


def _is_open_to_others() -> bool:
    mode = os.stat(control.CONTROL_NODE).st_mode
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def _has_rules() -> bool:
    """Return whether some rules of udev are for the nodes of devices, beside that of the driver."""
    return any(
        re.search(r"KERNEL==\"ublk(?!-)", file.read_text(errors="replace"))
        for directory in RULES
        for file in (directory / "rules.d").glob("*.rules")
    )
