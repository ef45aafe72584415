"""``aiovblk doctor``: diagnose problems with devices on this machine, and suggest fixes.

Checks open no attached device, since that may never return. Every check has a timeout, so that one
that hangs does not stop the others. A new check is a function in one of the modules here, which
yields findings, and a line in :data:`CHECKS`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError

from ...threads import run_in_daemon_thread
from ..options import add_json
from ..parser import CommandParser
from . import devices, environment, machine, ublk
from .clean import clean_devices
from .findings import Finding, Level, as_json, fail, warn

CHECK_TIMEOUT = 10.0
"""Seconds for one check."""

CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    machine.versions,
    machine.driver,
    machine.nodes,
    environment.privileges,
    environment.namespaces,
    environment.container,
    machine.netlink_family,
    machine.udev,
    ublk.driver,
    devices.attached,
    devices.hung_tasks,
)


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = "%(prog)s [OPTION...]"
    parser.description = (
        "Diagnose problems and suggest fixes: checks the kernel, its drivers, device nodes, "
        "privileges, containers, devices whose server is gone, and programs that hang. Prints a "
        "line for each finding: ok, info, warn or fail, and the command that fixes it. Exit status "
        "1 if a check fails."
    )
    add_json(parser)
    parser.add_argument(
        "--clean",
        action="store_true",
        help="free the devices whose server is gone; ends the programs that have them open",
    )
    parser.add_argument("--dry-run", action="store_true", help="only report what --clean would do")
    parser.show_examples(
        ("is everything as it should be?", "aiovblk doctor"),
        ("what would be cleaned up", "aiovblk doctor --clean --dry-run"),
    )
    parser.set_defaults(command=run)


def diagnose() -> Iterator[Finding]:
    """Run all checks, each for :data:`CHECK_TIMEOUT` at most."""
    for check in CHECKS:
        try:
            yield from run_in_daemon_thread(_collect, check).result(CHECK_TIMEOUT)
        except FutureTimeoutError:
            yield fail(check.__name__, f"no answer in {CHECK_TIMEOUT:g} s")
        except Exception as exc:  # a machine may lack anything; the other checks still run
            yield warn(check.__name__, f"cannot be checked: {exc!r}")


def _collect(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    return list(check())


def run(arguments: Namespace) -> int:
    """Print the findings; return 1 if something fails."""
    cleans = arguments.clean or arguments.dry_run
    findings = clean_devices(dry_run=arguments.dry_run) if cleans else diagnose()
    found = []
    for finding in findings:
        found.append(finding)
        if not arguments.json:
            print(finding, flush=True)
    if arguments.json:
        print(as_json(found))
    return int(any(finding.level is Level.FAIL for finding in found))
