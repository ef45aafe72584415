"""One virtual machine, from start to end.

The guest's serial console is its kernel log, in a file.  The command's output comes through a
virtio port and QEMU's stdout, as it is made.  A 9p share that both sides can write carries the
rest: the command and its environment in, the exit status out.
"""

import ctypes
import functools
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import initramfs
from .console import quoted_lines, require, say
from .kernels import Kernel

QEMU = "qemu-system-x86_64"

KERNEL_PARAMETERS = (
    "console=ttyS0",
    "quiet loglevel=6",  # notices and worse: the emulated console is slow, each byte a trap
    "printk.devkmsg=on",  # what goes to /dev/kmsg is never dropped for its rate
    "panic=-1",  # with -no-reboot, a panic ends QEMU at once
    "mitigations=off apparmor=0 audit=0 cryptomgr.notests",  # time that protects nothing here
    "random.trust_cpu=on",
    # What is mapped at the same address in each process is translated once: five times as fast
    # for QEMU's emulation to start an interpreter as where addresses are random.
    "norandmaps",
    "systemd.unit=vm-command.service",  # for --systemd
    "tsc=reliable no_timer_check",  # a busy host delays timers, which the checks take for faults
)

# What makes emulation slow: 5-level page tables, and 16-byte compare-and-swap, for which QEMU stops
# the other CPU.
TCG_CPU = "max,-la57,-cx16"

COMMAND_MARK = "vm: command at "  # in the kernel's log, by guest/run

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Job:
    """A command and the machine that it is to run on."""

    kernel: Kernel
    command: Sequence[str]
    environment: dict[str, str]
    directory: Path
    shares: Sequence[Path] = ()
    """Directories of the host that the guest may write to."""
    views: Sequence[Path] = ()
    """Others, for a guest with another root than the host's."""
    systemd: Path | None = None
    """A root directory that is booted with systemd, and runs the command as a service."""
    smp: int = 1
    memory: int = 2048
    accelerator: str = "tcg"
    timeout: float = 600
    """Seconds for the boot and the command."""
    boot_timeout: float = 180
    """Seconds until the command begins: an emulated guest takes 5, one with systemd 60."""
    boots: int = 2
    """How often to boot if the guest does not get to its command."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job."""

    status: int | None
    """The command's exit status, None when the guest did not get to tell it."""
    timed_out: bool
    log: list[str]
    """The lines of the kernel's log."""
    errors: list[str]
    """What QEMU itself complained about."""
    seconds: float

    def has_begun(self) -> bool:
        """Return whether the guest got to its command."""
        return any(COMMAND_MARK in line for line in self.log)

    def log_since_command(self) -> list[str]:
        """Return the kernel's lines that the command may have caused, not those of the boot."""
        for number, line in enumerate(self.log):
            if COMMAND_MARK in line:
                return self.log[number:]
        return self.log

    def timings(self) -> str:
        """Return when each stage began, in seconds of the guest's clock, and the whole on ours."""
        marks = re.findall(r"vm: (\w+) at ([\d.]+)", "\n".join(self.log))
        return " ".join([*(f"{name} {at}" for name, at in marks), f"whole {self.seconds:.2f}"])


def run(job: Job) -> Outcome:
    """Boot a machine, run the command in it, copy its output to stdout, and end the machine.

    A boot that panics or hangs is tried again: nothing of the command has been done yet, and on a
    busy host the emulation of several processors does fail now and then (a timer's interrupt comes
    while the kernel is changing its own code).

    However this ends, by an exception, a signal or the death of this process, QEMU ends with it.
    """
    require({QEMU: "qemu-system-x86", "busybox": "busybox-static", "kmod": "kmod"})
    for boot in range(job.boots, 0, -1):
        outcome = run_once(job)
        if boot == 1 or outcome.has_begun() or outcome.status is not None:
            break
        how = "hung" if outcome.timed_out else "failed"
        say(f"the boot {how} before the command began, after {outcome.seconds:.0f} s")
        say("it is tried again; its log ends" + quoted_lines([*outcome.errors, *outcome.log[-20:]]))
    return outcome


def run_once(job: Job) -> Outcome:
    """Boot a machine once."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vm-") as directory:
        home = Path(directory)
        write_guest_files(job, home)
        with start(job, home) as process:
            try:
                in_time = begins(process, home, started + min(job.timeout, job.boot_timeout))
                in_time = in_time and copy_output(process, started + job.timeout)
            finally:
                process.kill()
        return Outcome(
            status=read_status(home),
            timed_out=not in_time,
            log=read_lines(home / "kernel.log"),
            errors=read_lines(home / "errors"),
            seconds=time.monotonic() - started,
        )


def begins(process: subprocess.Popen[bytes], home: Path, deadline: float) -> bool:
    """Wait until the command begins, or the machine ends; return whether it did so in time."""
    assert process.stdout is not None  # because start() made it a pipe
    log = home / "kernel.log"
    while not (log.exists() and COMMAND_MARK.encode() in log.read_bytes()):
        # What there is to read then is output, or its end.
        if select.select([process.stdout], [], [], 0.5)[0]:
            return True
        if time.monotonic() > deadline:
            return False
    return True


def start(job: Job, home: Path) -> subprocess.Popen[bytes]:
    """Start QEMU."""
    with (home / "errors").open("wb") as errors:
        return subprocess.Popen(
            arguments(job, home),
            # Never written to; but at the end of its input QEMU would disconnect the guest's port.
            stdin=subprocess.PIPE,
            # Ours, not the caller's: QEMU makes its stdout non-blocking, which would outlive it.
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=functools.partial(die_with, os.getpid()),
        )


def die_with(parent: int) -> None:
    """Between fork and exec: have the kernel kill this process when `parent` dies."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(1)


def read_status(home: Path) -> int | None:
    """Return the exit status that the guest left, None when it did not get that far."""
    lines = read_lines(home / "share" / "status")
    return int(lines[0]) if lines else None


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file that another process may or may not have written."""
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def copy_output(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Copy what `process` prints to stdout until it ends; return whether it did so in time."""
    assert process.stdout is not None  # because start() made it a pipe
    source = process.stdout.fileno()
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([source], [], [], left)[0]:
            return False
        data = os.read(source, 1 << 16)
        if not data:
            return True
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]
    return False


def write_guest_files(job: Job, home: Path) -> None:
    """Write the initramfs and the share that tells the guest what to do."""
    (home / "initramfs").write_bytes(initramfs.build(job.kernel))
    share = home / "share"
    share.mkdir()
    for program in ("prepare", "run"):
        shutil.copy(Path(__file__).parent / "guest" / program, share)
    config = {
        "release": job.kernel.release,
        "keep_tmp": "yes" if uses_tmp(job) else "",
        "systemd": "yes" if job.systemd else "",
    }
    write_assignments(share / "config", config)
    write_assignments(share / "command", job.environment, prefix="export ")
    with (share / "command").open("a") as file:
        file.write(f"cd {shlex.quote(str(job.directory))} || exit 125\n")
        file.write(f"exec {shlex.join(job.command)}\n")
    views = [f"view{number} loose,ro {path}\n" for number, path in enumerate(job.views)]
    # mmap: written through like cache=none, but files can be mapped too.
    shares = [f"share{number} mmap {path}\n" for number, path in enumerate(job.shares)]
    (share / "shares").write_text("".join([*views, *shares]))


def write_assignments(path: Path, values: dict[str, str], *, prefix: str = "") -> None:
    """Write `values` as assignments for a shell to read."""
    path.write_text("".join(f"{prefix}{n}={shlex.quote(v)}\n" for n, v in values.items()))


def uses_tmp(job: Job) -> bool:
    """Return whether the job names the host's /tmp, which is then not hidden by an empty one."""
    words = [*job.command, *job.environment.values(), job.directory, __file__]
    words += [*job.shares, *job.views]
    return any("/tmp/" in f"{word}" for word in words)


def arguments(job: Job, home: Path) -> list[str]:
    """Return QEMU's command line."""
    cpu = "host" if job.accelerator == "kvm" else TCG_CPU
    words = [QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    words += ["-machine", "pc", "-accel", job.accelerator, "-cpu", cpu]
    words += ["-smp", f"{job.smp}", "-m", f"{job.memory}"]
    words += ["-kernel", f"{job.kernel.image}", "-initrd", f"{home}/initramfs"]
    words += ["-append", " ".join(KERNEL_PARAMETERS)]
    words += ["-serial", f"file:{home}/kernel.log"]
    words += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
    words += ["-chardev", "stdio,id=output,signal=off"]
    words += ["-device", "virtserialport,nr=1,chardev=output"]
    words += shared("root", job.systemd or Path("/"), "readonly=on")
    words += shared("modules", job.kernel.modules.resolve(), "readonly=on")
    words += shared("run", home / "share")
    for number, path in enumerate(job.views):
        words += shared(f"view{number}", path, "readonly=on")
    for number, path in enumerate(job.shares):
        words += shared(f"share{number}", path)
    return words


def shared(tag: str, path: Path, *options: str) -> list[str]:
    """Return the words that offer the host's directory `path` to the guest as `tag`."""
    # remap: the directory may span file systems, whose inode numbers would collide.
    escaped = f"{path}".replace(",", ",,")
    backend = ["local", f"id={tag}", f"path={escaped}", "security_model=none", "multidevs=remap"]
    return [
        *("-fsdev", ",".join([*backend, *options])),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]
