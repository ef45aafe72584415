"""The demo's transcript, each step of it checked; started by tools/demo, as root.

Whatever ends it, no process and nothing mounted stays behind: file systems are mounted in a
namespace of its own, and the servers get a signal when this process dies.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

PATIENCE = 60.0  # seconds for any one command; those here take at most a few

PYTHON = ".venv/bin/python"
AIOVBLK = f"{PYTHON} -m aiovblk"


class DemoError(Exception):
    """Something is not as it should be."""


def main() -> int:
    """Show everything; returns the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    begin = time.monotonic()
    shows = [disk_in_s3] if sys.argv[1:] == ["s3"] else [read_only_disk, failing_disk, file_system]
    try:
        node = free_node()
        for show in shows:
            show(node)
    except DemoError as exc:
        print(f"\ndemo: FAILED: {exc}", flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"\ndemo: everything as it should be, in {time.monotonic() - begin:.0f} s", flush=True)
    return 0


def free_node() -> str:
    """Find an unused device, nbd0 where possible."""
    if not Path("/sys/block/nbd0").exists():
        run("modprobe nbd")
    for device in sorted(Path("/sys/block").glob("nbd*"), key=lambda path: int(path.name[3:])):
        if not (device / "pid").exists() and (device / "size").read_text() == "0\n":
            return f"/dev/{device.name}"
    raise DemoError("all NBD devices are in use; see `aiovblk list`")


def read_only_disk(node: str) -> None:
    """Serve a device that can only be read."""
    say("A device is a class with `async def` handlers. This one has nothing but `read`:")
    run("sed -n '/^class Deadbeef/,/return/p' examples/deadbeef.py", expect="async def read")
    with served(f"{PYTHON} examples/deadbeef.py {node}", node):
        say("To the kernel it is a disk like any other, of 4 MiB:")
        line = ": dead beef dead beef dead beef dead beef  ................\n"
        bytes_read = f"00000000{line}00000010{line}"
        run(f"xxd {node} | head -n 2", expect=f"^{re.escape(bytes_read)}$")
        run(f"blockdev --getsize64 {node}", expect="^4194304\n$")
        say("It has no `write`, so it is read-only, and the kernel refuses at once:")
        refused = f"^dd: error writing '{node}': Operation not permitted\n"
        run(f"dd if=/dev/zero of={node} bs=1024 count=1", status=1, expect=refused)


def failing_disk(node: str) -> None:
    """Serve a device whose writes fail."""
    say("The same with `read_only = False`: writes reach the device, and fail there:")
    with served(f"{AIOVBLK} mount examples/deadbeef.py:WritableDeadbeef {node}", node):
        failed = rf"^dd: error writing '{node}': Input/output error\n.*^0\+0 records out\n"
        command = f"dd oflag=dsync if=/dev/zero of={node} bs=1024 count=4096"
        run(command, status=1, expect=failed)


def file_system(node: str) -> None:
    """Serve a device that holds a file system."""
    say("A disk in memory, with a file system on it:")
    with served(f"{PYTHON} examples/ramdisk.py {node}", node, goodbye="^unmounted\n$"):
        run(f"mkfs.ext4 -q {node} && mount {node} /mnt")
        run(f"{AIOVBLK} list", expect=f"{node}.* mounted at /mnt")
        run("cp -r examples LICENSE /mnt && df -h /mnt && umount /mnt", expect=node)
        run(f"fsck.ext4 -fn {node}", expect="5: Checking group summary information\n.*files")
        say("The files are still there:")
        run(f"mount -o ro {node} /mnt && ls /mnt", expect="^LICENSE\nexamples\n")
        run("diff -r examples /mnt/examples && diff LICENSE /mnt/LICENSE && umount /mnt")


def disk_in_s3(node: str) -> None:
    """Serve a disk in a bucket, and kill its server."""
    say("An S3 server, that of moto, with an empty bucket:")
    with s3_server():
        spec = "s3://bucket/disk?size=1G"
        serve = f"{AIOVBLK} mount {spec} {node} --cache 64M"
        say("A disk in the bucket, with a file system on it:")
        with served(serve, node, killed=True):
            run(f"mkfs.ext4 -q {node} && mount {node} /mnt")
            run("cp LICENSE /mnt/synced && sync && cp LICENSE /mnt/not-synced")
            say("The server is killed:")
        run("umount /mnt || umount -l /mnt")
        wait_until_free(node)
        say("What was synced is there when another one serves the disk:")
        with served(serve, node):
            run(f"mount {node} /mnt && diff LICENSE /mnt/synced && umount /mnt")
            run(f"fsck.ext4 -fn {node}", expect="5: Checking group summary information\n.*files")
        run(f"{AIOVBLK} snapshot {spec} yesterday && {AIOVBLK} snapshot {spec}", expect="yesterday")
        run(f"{AIOVBLK} clone '{spec}&snapshot=yesterday' s3://bucket/clone")
        run(f"{AIOVBLK} check s3://bucket/clone", expect="all is well")


@contextmanager
def s3_server() -> Iterator[None]:
    """Run an S3 server, and tell the environment where it is."""
    print(f"# {PYTHON} -m tests.support.s3_server &", flush=True)
    server = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", PYTHON, "-m", "tests.support.s3_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None  # because it is a pipe
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        for name, value in environment.items():
            print(f"# export {name}={value}", flush=True)
        os.environ.update(environment)
        yield
    finally:
        server.kill()
        server.wait()


def say(text: str) -> None:
    """Explain what comes next."""
    print(f"\n{text}", flush=True)


def run(command: str, *, status: int = 0, expect: str = "") -> None:
    """Show a shell command and what it prints, which has to match."""
    print(f"# {command}", flush=True)
    process = subprocess.Popen(
        ["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise DemoError(f"it did not end within {PATIENCE:.0f} s: {command}") from None
    print(output, end="", flush=True)
    if process.returncode != status:
        raise DemoError(f"exit status {process.returncode} and not {status}: {command}")
    if not re.search(expect, output, re.MULTILINE | re.DOTALL):
        raise DemoError(f"its output does not match {expect!r}: {command}")


@contextmanager
def served(command: str, node: str, *, goodbye: str = "", killed: bool = False) -> Iterator[None]:
    """Run a server from when it has mounted a device until Ctrl-C, after which it must be gone.

    Or kill it.
    """
    print(f"# {command} &", flush=True)
    server = subprocess.Popen(
        # Not in our group: Ctrl-C in the terminal is for us. Should we die, it gets a signal.
        ["setpriv", "--pdeathsig", "INT", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    assert server.stdout is not None  # because it is a pipe
    try:
        line = server.stdout.readline()
        print(line, end="", flush=True)
        if not line.startswith("mounted ") or line.split()[-1] != node:
            raise DemoError(f"{node} was not mounted: {line}{server.stdout.read()}")
        yield
        if killed:
            print("# kill -KILL $!", flush=True)
            server.kill()
            server.communicate(timeout=PATIENCE)
            return
        print("# kill -INT $!", flush=True)
        server.send_signal(signal.SIGINT)
        output, _ = server.communicate(timeout=PATIENCE)
        print(output, end="", flush=True)
        if server.returncode != 0:
            raise DemoError(f"exit status {server.returncode} and not 0: {command}")
        if not re.search(goodbye, output, re.MULTILINE):
            raise DemoError(f"it did not print {goodbye!r}: {command}")
    except subprocess.TimeoutExpired:
        raise DemoError(f"it did not end within {PATIENCE:.0f} s: {command}") from None
    finally:
        end(server)


def wait_until_free(node: str) -> None:
    """Wait until the kernel has noticed that a server is gone."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/sys/block/{node.removeprefix('/dev/')}/pid").exists():
        if time.monotonic() > deadline:
            raise DemoError(f"{node} is still attached")
        time.sleep(0.05)


def end(server: subprocess.Popen[str]) -> None:
    """Stop a server that a failure has left running; killed, it frees whatever waits for it."""
    if server.poll() is not None:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # there is nothing but this to do any more
    server.send_signal(signal.SIGINT)
    try:
        server.wait(timeout=15)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def leave(number: int, frame: FrameType | None) -> None:
    """Leave by way of the cleanups."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
