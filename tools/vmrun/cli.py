"""The command line of tools/vm."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from . import host, kernels, klog, kvm, qemu, roots
from .console import VMError, quoted_lines, say

DESCRIPTION = """\
Run a command under a Linux kernel that has nbd, with this machine's files around it.

    tools/vm run --kernel 6.12 -- .venv/bin/python -m pytest tests/kernel
    tools/vm run --kernel host -- ...    on this machine's own kernel, as root
    tools/vm run --systemd -- ...        in a Debian of its own, with systemd and udev running
    tools/vm fetch                       only fill the cache (AIOVBLK_CACHE, else
                                         XDG_CACHE_HOME/aiovblk, else ~/.cache/aiovblk)
    tools/vm root 3.14                   print a root directory in the cache with that Python

The guest sees this machine's root directory unchanged, as root.  What the command writes is lost,
except below --rw DIR.  Output streams to stdout; stdin is empty.

With --systemd it sees the Debian that the kernel is for (6.1: bookworm; 6.12, and 7.3 of its
backports: trixie) with its own python3, and of this machine the current directory and --ro DIR.
"""

EPILOG = """\
exit status: the command's own, except
    124  it took longer than --timeout
    125  the virtual machine failed
    126  the command succeeded, but the kernel complained (BUG, WARNING, Oops, hung task, ...)
"""

TIMED_OUT, FAILED, COMPLAINED = 124, 125, 126

# Besides all of PYTHON*, PYTEST_* and AIOVBLK_*.
KEPT_VARIABLES = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "VIRTUAL_ENV", "TERM", "COLUMNS")

LOG_LINES = 60


def main() -> int:
    """Run the command line and return the exit status."""
    options = parser().parse_args()
    try:
        if options.verb == "root":
            print(roots.with_python(options.python))
            return 0
        if options.verb == "fetch":
            for series in options.kernel:
                print(kernels.get(series).home)
            return 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, leave)
        return run_on_host(options) if options.kernel == "host" else run_in_guest(options)
    except (VMError, OSError) as error:
        say(f"{error}")
        return FAILED


def leave(number: int, frame: FrameType | None) -> None:
    """Leave by way of the cleanups, with the status that a shell gives a signalled command."""
    sys.exit(128 + number)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        "vm",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("fetch", help="fetch kernels into the cache")
    fetch.add_argument("--kernel", nargs="*", choices=kernels.SERIES, default=kernels.SERIES)
    root = verbs.add_parser("root", help="print a Debian root directory with some Python")
    root.add_argument("python", metavar="VERSION", help="of Python, such as 3.14")
    run = verbs.add_parser("run", help="run a command")
    run.add_argument("--kernel", choices=[*kernels.SERIES, "host"], default="6.1")
    run.add_argument("--smp", type=int, default=1, metavar="N", help="virtual CPUs (default 1)")
    run.add_argument(
        "--timeout",
        type=float,
        default=float(os.environ.get("VM_TIMEOUT") or 600),
        metavar="S",
        help="seconds, the boot included (default $VM_TIMEOUT, else 600)",
    )
    run.add_argument(
        "--boot-timeout",
        type=float,
        metavar="S",
        help="seconds until the command begins; then, or after a panic, a second boot is tried,"
        " once (default 180, with --systemd 600)",
    )
    run.add_argument("--memory", type=int, default=2048, metavar="MIB", help="(default 2048)")
    run.add_argument(
        "--rw",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a directory that the command may write",
    )
    run.add_argument(
        "--systemd", action="store_true", help="boot a Debian with systemd, made on first use"
    )
    run.add_argument(
        "--ro",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a directory that the command may read; without --systemd all are",
    )
    run.add_argument("--log", type=Path, metavar="FILE", help="keep the kernel's log")
    run.add_argument("-v", "--verbose", action="store_true", help="tell timings")
    run.add_argument("command", nargs="+", metavar="COMMAND")
    return top


def environment(kernel: str) -> dict[str, str]:
    """Return what the command gets of our environment, and the marks of the kernel it is on."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or name.startswith(("PYTHON", "PYTEST_", "AIOVBLK_"))
    }
    path = [*kept.get("PATH", "").split(":"), "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
    kept["PATH"] = ":".join(dict.fromkeys(filter(None, path)))
    # Output would otherwise come in blocks, since it goes into a pipe.
    kept["PYTHONUNBUFFERED"] = "1"
    return kept | {"AIOVBLK_VM": "1", "AIOVBLK_VM_KERNEL": kernel}


def run_on_host(options: argparse.Namespace) -> int:
    """Run the command on this machine's kernel."""
    outcome = host.run(options.command, environment("host"), options.timeout)
    if options.log:
        options.log.write_text("\n".join(outcome.log) + "\n")
    if outcome.status is None:
        return report_timeout(options.timeout, outcome.log)
    # A command that died of a signal has a negative status; a shell would say 128 and up.
    status = outcome.status if outcome.status >= 0 else 128 - outcome.status
    return report_complaints(status, outcome.log)


def run_in_guest(options: argparse.Namespace) -> int:
    """Run the command in a virtual machine."""
    kernel = kernels.get(options.kernel)
    job = qemu.Job(
        kernel,
        options.command,
        environment(options.kernel),
        Path.cwd(),
        shares=[make_directory(path) for path in options.rw],
        views=[path.resolve() for path in (Path.cwd(), *options.ro)] if options.systemd else [],
        systemd=roots.get(options.kernel) if options.systemd else None,
        smp=options.smp,
        memory=options.memory,
        accelerator=kvm.accelerator(kernel),
        timeout=options.timeout,
        boot_timeout=options.boot_timeout or (600 if options.systemd else 180),
    )
    outcome = qemu.run(job)
    log = outcome.log_since_command()
    if options.verbose:
        say(f"{job.accelerator}, seconds: {outcome.timings()}")
    if options.log:
        options.log.write_text("\n".join(outcome.log) + "\n")
    if outcome.status is not None:
        return report_complaints(outcome.status, log)
    if outcome.timed_out and not outcome.has_begun():
        say(f"the machine did not get to the command in {outcome.seconds:.0f} s")
    if outcome.timed_out:
        return report_timeout(options.timeout, log)
    say("the virtual machine failed" + quoted_lines(outcome.errors))
    say("the kernel's log ends" + quoted_lines(log[-LOG_LINES:]))
    return report_complaints(FAILED, log)


def make_directory(path: Path) -> Path:
    """Return `path` as an absolute one, made if needed."""
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def report_timeout(seconds: float, log: Sequence[str]) -> int:
    """Say that the command took too long, and what the kernel had to say about it."""
    say(f"timeout after {seconds:g} s; the kernel's log ends" + quoted_lines(log[-LOG_LINES:]))
    return report_complaints(TIMED_OUT, log)


def report_complaints(status: int, log: Sequence[str]) -> int:
    """Say what the kernel complained about, if anything, and return the exit status of the run."""
    complaints = klog.complaints(log)
    if not complaints:
        return status
    say("the kernel complained" + quoted_lines(complaints[:LOG_LINES]))
    return status or COMPLAINED
