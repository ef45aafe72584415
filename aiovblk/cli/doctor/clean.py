"""Free the devices whose server is gone: ``aiovblk doctor --clean``."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ... import ublk
from ...errors import AttachError, DeviceBusyError
from ...kernel import sysfs, unmounting, users
from .devices import dead_ublk_devices, zombies
from .findings import Finding, fail, info, ok

TOPIC = "clean"

RECHECK_DELAY = 0.2
"""Seconds after which a device still without a server is dead, and not just being attached."""


def clean_devices(*, dry_run: bool) -> Iterator[Finding]:
    """Free every device whose server is gone; with ``dry_run`` only report what would be done."""
    dead, dead_ublk = set(zombies()), set(dead_ublk_devices())
    if dead or dead_ublk:
        time.sleep(RECHECK_DELAY)
        dead &= set(zombies())
        dead_ublk &= set(dead_ublk_devices())
    if not dead and not dead_ublk:
        yield ok(TOPIC, "no device without a server")
    for index in sorted(dead):
        yield from _plan(index) if dry_run else _free(index)
    for number in sorted(dead_ublk):
        yield _plan_ublk(number) if dry_run else _remove_ublk(number)


def _plan(index: int) -> Iterator[Finding]:
    path = f"/dev/nbd{index}"
    yield info(TOPIC, f"{path}: would try NBD_CLEAR_SOCK, then NBD_CMD_DISCONNECT")
    claims = users.exclusive_users(index)
    if claims:
        yield fail(TOPIC, f"{path}: would stay in use, {', '.join(claims)}", _umount_command(index))
        return
    for process, name in users.openers(index):
        text = f"{path}: would end process {process} ({name}), which has it open"
        yield info(TOPIC, f"{text}, with SIGTERM, then SIGKILL")


def _free(index: int) -> Iterator[Finding]:
    path = f"/dev/nbd{index}"
    steps: list[str] = []
    try:
        try:
            unmounting.force_disconnect(index, path, steps.append)
        except DeviceBusyError:
            if users.exclusive_users(index):
                raise
            unmounting.kill_openers(index, steps.append)
            if not sysfs.is_free(index):
                raise unmounting.still_held_error(index, path) from None
    except AttachError as exc:
        yield from (info(TOPIC, f"{path}: {step}") for step in steps)
        yield fail(TOPIC, str(exc), _umount_command(index))
    else:
        yield from (info(TOPIC, f"{path}: {step}") for step in steps)
        yield ok(TOPIC, f"{path} is free")


def _plan_ublk(number: int) -> Finding:
    return info(TOPIC, f"{ublk.node(number)}: would remove what is left of it")


def _remove_ublk(number: int) -> Finding:
    path = ublk.node(number)
    if ublk.remove_dead(number) or number not in ublk.numbers():
        return ok(TOPIC, f"{path} is removed")
    return fail(TOPIC, f"{path}: the driver does not remove it; see the kernel's log")


def _umount_command(index: int) -> str | None:
    points = users.mount_points(index)
    return f"umount {points[0]}" if points else None
