"""Run a command under one of Debian's kernels in QEMU, with this machine's files around it.

The library drives the kernel's nbd module, which a container or a cloud machine often lacks, and
whose bugs differ between kernel versions.  So the tests bring their own kernel: a Debian package,
unpacked in a cache, booted by QEMU with the host's root directory as its own.

    apt.py      finds and downloads kernel packages; installs nothing
    kernels.py  unpacks them into the cache
    roots.py    makes a Debian with systemd, for those who want one
    initramfs.py, guest/   what runs in the guest before the command
    qemu.py     one virtual machine, from start to end
    kvm.py      whether the host's hardware virtualisation can be trusted
    klog.py     which lines of a kernel log are a kernel's complaint
    host.py     the same run on the host's own kernel
    cli.py      the command line

Only the standard library is used: the tool must run before anything is installed.
"""
