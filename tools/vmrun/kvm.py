"""Whether the host's hardware virtualisation can be trusted.

/dev/kvm may be there, and usable by its permissions, on a machine where guests then hang: nested
virtualisation is often so.  Only a boot tells.  Its verdict is kept until the host boots again.
"""

import os
from pathlib import Path

from . import qemu
from .console import say
from .kernels import Kernel, cache_directory

# An emulated guest has run the probe's command after 4 s, so one with KVM is quicker than this.
PROBE_TIMEOUT = 10.0


def accelerator(kernel: Kernel) -> str:
    """Return "kvm" where a guest is known to boot with it, else "tcg", QEMU's emulation."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    verdict = cache_directory() / f"accelerator-{boot}"
    if not verdict.exists():
        new = verdict.with_suffix(f".{os.getpid()}")
        new.write_text(probe(kernel))
        new.rename(verdict)
    return verdict.read_text()


def probe(kernel: Kernel) -> str:
    """Boot a guest with KVM and return which accelerator to use from now on."""
    job = qemu.Job(
        kernel,
        ["/bin/true"],
        {},
        Path("/"),
        accelerator="kvm",
        timeout=PROBE_TIMEOUT,
        boots=1,
    )
    if qemu.run(job).status == 0:
        return "kvm"
    say("a KVM guest did not boot, using emulation until the next boot of this machine")
    return "tcg"
