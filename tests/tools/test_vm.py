"""tools/vm, tested by booting: a broken one would make the kernel tests pass for no reason."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from vmrun import apt, cli, kernels, klog, kvm, qemu, roots

from .conftest import TOOLS

# A boot takes 5 s; a busy machine may need far longer.
BOOT_TIMEOUT = 400


def vm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tools/vm to its end."""
    return subprocess.run(
        [TOOLS / "vm", "run", *arguments], capture_output=True, text=True, timeout=BOOT_TIMEOUT
    )


def test_command_status_output_and_directory_come_through(tmp_path: Path) -> None:
    script = """
        pwd; echo to-stderr >&2; uname -r; echo "$AIOVBLK_VM_KERNEL"
        modprobe nbd nbds_max=3 && ls -d /sys/block/nbd*
        modprobe ublk_drv && ls /dev/ublk-control
        echo written >"$0/file"
        exit 7
    """
    done = vm(
        "--kernel",
        "6.12",
        "--smp",
        "2",
        "--rw",
        f"{tmp_path}",
        "--",
        "sh",
        "-c",
        script,
        f"{tmp_path}",
    )
    here, error, release, kernel, *nodes = done.stdout.split()
    assert done.returncode == 7, done.stderr
    assert (here, error, kernel) == (os.getcwd(), "to-stderr", "6.12")
    assert release.startswith("6.12.")
    assert nodes == [*(f"/sys/block/nbd{number}" for number in range(3)), "/dev/ublk-control"]
    assert (tmp_path / "file").read_text() == "written\n"


def test_kernel_complaint_fails_a_command_that_succeeded() -> None:
    done = vm("--", "sh", "-c", "echo 'WARNING: made up by a test' >/dev/kmsg")
    assert done.returncode == 126
    assert "made up by a test" in done.stderr


def test_panic_is_a_failed_machine() -> None:
    done = vm("--", "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert done.returncode == 125
    assert "sysrq triggered crash" in done.stderr


# In place of QEMU: a guest that boots when it is started the second time, and at once.
STAND_IN = """#!/bin/sh
for word in "$@"; do
    case $word in
    file:*) log=${word#file:} ;;
    esac
done
if mkdir "$BOOTS/first" 2>/dev/null; then
    echo 'Kernel panic - not syncing' >"$log"
    @FIRST@
fi
echo "vm: command at 1.0" >"$log"
echo output
echo 7 >"${log%/*}/share/status"
"""


@pytest.fixture
def job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> qemu.Job:
    """What runs with a stand-in for QEMU, whose first boot ends with the parameter."""
    program = tmp_path / "bin" / qemu.QEMU
    program.parent.mkdir()
    program.write_text(STAND_IN.replace("@FIRST@", request.param))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("BOOTS", str(tmp_path))
    return qemu.Job(kernels.get("6.12"), ["command"], {}, Path("/"), boot_timeout=5)


@pytest.mark.parametrize(
    ("job", "words"),
    [("exit", "the boot failed"), ("exec sleep 1000", "the boot hung")],
    indirect=["job"],
    ids=["panics", "hangs"],
)
def test_boot_that_does_not_get_to_its_command_is_tried_again(
    job: qemu.Job, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = qemu.run(job)
    assert (outcome.status, outcome.timed_out) == (7, False)
    output, errors = capfd.readouterr()
    assert output == "output\n"
    assert words in errors
    assert "Kernel panic - not syncing" in errors


@pytest.mark.parametrize("job", ["exit"], indirect=True)
def test_boot_is_tried_twice_and_no_more(
    job: qemu.Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "bin" / qemu.QEMU
    program.write_text('#!/bin/sh\necho boot >>"$BOOTS/boots"\n')
    outcome = qemu.run(job)
    assert (outcome.status, outcome.has_begun()) == (None, False)
    assert (tmp_path / "boots").read_text() == "boot\n" * 2
    assert capfd.readouterr().err.count("tried again") == 1


@pytest.mark.parametrize("job", ["exit"], indirect=True)
def test_command_that_has_begun_is_never_run_again(job: qemu.Job, tmp_path: Path) -> None:
    program = tmp_path / "bin" / qemu.QEMU
    # As of a guest that dies of what the command does.
    program.write_text(STAND_IN.replace("mkdir", "false").replace("echo 7 >", "exit; echo 7 >"))
    outcome = qemu.run(job)
    assert (outcome.status, outcome.has_begun()) == (None, True)


@pytest.mark.parametrize("job", ["exit"], indirect=True)
def test_timeout_ends_the_machine_and_shows_the_kernel_log(
    job: qemu.Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    program = tmp_path / "bin" / qemu.QEMU
    hangs = 'echo nbd: last words >>"$log"; exec sleep 1000'
    program.write_text(STAND_IN.replace("mkdir", "false").replace("echo output", hangs))
    monkeypatch.setattr(kvm, "accelerator", lambda kernel: "tcg")
    monkeypatch.setattr(sys, "argv", ["vm", "run", "--timeout", "5", "--", "command"])
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        assert cli.main() == cli.TIMED_OUT == 124
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    errors = capfd.readouterr().err
    assert "timeout after 5 s" in errors
    assert "nbd: last words" in errors


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_machine_is_left_when_the_tool_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [TOOLS / "vm", "run", "--", "sh", "-c", "echo started; sleep 1000"],
        stdout=subprocess.PIPE,
        # After SIGKILL nobody removes its temporary files.
        env=os.environ | {"TMPDIR": f"{tmp_path}"},
    )
    with process:
        assert process.stdout is not None
        # It comes while the command runs: output streams.
        assert process.stdout.readline() == b"started\n"
        (child,) = children(process.pid)
        ended = os.pidfd_open(child)
        process.send_signal(number)
    # A descriptor of a process can be read once it has ended.
    readable, _, _ = select.select([ended], [], [], 60)
    os.close(ended)
    assert readable


def children(parent: int) -> list[int]:
    """Return the processes that `parent` started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.parametrize(
    "line",
    [
        "[    3.752294] BUG: kernel NULL pointer dereference, address: 0000000000000010",
        "[    3.752294] WARNING: CPU: 0 PID: 12 at block/genhd.c:600 device_add_disk+0x3b/0x420",
        "[    3.752294] kernel BUG at fs/buffer.c:1262!",
        "[    3.752294] Oops: 0000 [#1] PREEMPT SMP NOPTI",
        "[    3.752294] general protection fault, probably for non-canonical address: 0000 [#1]",
        "[    3.752294] WARNING: block/genhd.c:600 at device_add_disk+0x3b/0x420, CPU#1: sh/12",
        "[   72.446455] INFO: task touch:179 blocked for more than 61 seconds.",
        "[   72.446455] INFO: task touch:179 blocked in I/O wait for more than 61 seconds.",
        "[    3.752294] refcount_t: underflow; use-after-free.",
        "[    3.752294] list_del corruption. prev->next should be ffff, but was 0000",
        "[    3.752294] BUG: KASAN: use-after-free in nbd_release+0x10/0x20",
        "[    3.752294] UBSAN: array-index-out-of-bounds in drivers/block/nbd.c:10:2",
        "[   30.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [python:99]",
        "[   30.000000] watchdog: Watchdog detected hard LOCKUP on cpu 1",
        "[   30.000000][   T12] WARNING: possible circular locking dependency detected",
        "Kernel panic - not syncing: Fatal exception",
    ],
)
def test_kernel_bugs_are_complaints(line: str) -> None:
    assert klog.complaints([line]) == [line]


@pytest.mark.parametrize(
    "line",
    [
        "[    9.1] block nbd0: Possible stuck request 00000000f0a1b2c3: control (read@0,4096B).",
        "[    9.1] block nbd0: Other side returned error (5)",
        "[    9.1] block nbd0: shutting down sockets",
        "[    9.1] block nbd0: Connection timed out, retrying (1/2 alive)",
        "[    9.1] I/O error, dev nbd0, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2",
        "[    9.1] Buffer I/O error on dev nbd0, logical block 0, async page read",
        "[    9.1] EXT4-fs error (device nbd0): ext4_journal_check_start:83: aborted",
        "[    9.1] EXT4-fs (nbd0): shut down requested (2)",
        "[    9.1] XFS (nbd0): log I/O error -5",
        "[    9.1] traps: python[31] general protection fault ip:7f sp:7f error:0 in libc.so.6",
        "[    9.1] nbd: registered device at major 43",
    ],
)
def test_what_tests_of_nbd_provoke_is_no_complaint(line: str) -> None:
    assert klog.complaints([line]) == []


def test_what_the_kernel_said_before_the_command_is_not_its_doing() -> None:
    log = ["[ 1.0] WARNING: at boot", "[ 2.0] vm: command at 2.0", "[ 3.0] nbd: hello"]
    outcome = qemu.Outcome(status=0, timed_out=False, log=log, errors=[], seconds=3)
    assert klog.complaints(outcome.log_since_command()) == []


def test_apt_sources_of_a_machine_give_its_mirror_other_suites() -> None:
    one_line = """
        # deb http://commented.example/debian bookworm main
deb [signed-by=/key.gpg] http://mirror.example/debian bookworm main contrib
deb http://mirror.example/debian-security bookworm-security main
deb http://other.example/tools stable tools
    """
    deb822 = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
    deb822 += "Components: main contrib\nSigned-By: /key.gpg\n\nTypes: deb-src\nSuites: bookworm\n"
    known = {"bookworm", "stable"}
    assert list(apt.one_line_sources(one_line, known, "trixie")) == [
        (".list", "deb [signed-by=/key.gpg] http://mirror.example/debian trixie main\n")
    ]
    assert list(apt.deb822_sources(deb822, known, "trixie")) == [
        (
            ".sources",
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\n"
            "Components: main\nSigned-By: /key.gpg\n",
        )
    ]


RECORDS = {
    "linux-image-amd64=6.12.9-1": "linux-image-6.12.9+deb13-amd64 (= 6.12.9-1)",
    "linux-image-6.12.9+deb13-amd64=6.12.9-1": "kmod, initramfs-tools (>= 0.120) | dracut",
    "linux-image-amd64=7.3.4-1~bpo13+1": "linux-base-amd64 (= 7.3.4-1~bpo13+1), "
    "linux-image-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1), linux-modules-amd64 (= 7.3.4-1~bpo13+1)",
    "linux-image-7.3.4+deb13-amd64=7.3.4-1~bpo13+1": "dracut | initramfs-tools (>= 0.120), "
    "linux-binary-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1), "
    "linux-modules-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1)",
    "linux-modules-amd64=7.3.4-1~bpo13+1": "linux-base-amd64 (= 7.3.4-1~bpo13+1), "
    "linux-modules-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1)",
    "linux-modules-7.3.4+deb13-amd64=7.3.4-1~bpo13+1": "kmod, "
    "linux-base-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1)",
}
"""What packages depend on, as Debian's do, by what apt-cache is asked for."""


class Archive(apt.Apt):
    """In place of apt-cache: knows the packages of RECORDS."""

    def query(self, *arguments: str) -> str:
        if arguments == ("madison", "linux-image-amd64"):
            return "".join(
                f"linux-image-amd64 | {version} | http://mirror.example/debian trixie/main\n"
                for name, _, version in (each.partition("=") for each in reversed(RECORDS))
                if name == arguments[1]
            )
        verb, package = arguments
        assert verb == "show"
        fields = [f"Package: {package.partition('=')[0]}", f"Depends: {RECORDS.get(package)}"]
        return "\n".join(fields[: 1 + (package in RECORDS)]) + "\n"


@pytest.mark.parametrize(
    ("kernel", "names"),
    [
        ("6.1", []),
        ("6.12", ["linux-image-6.12.9+deb13-amd64"]),
        (
            "7.3",
            [f"linux-{part}-7.3.4+deb13-amd64" for part in ("image", "binary", "modules", "base")],
        ),
    ],
)
def test_kernel_is_the_packages_that_the_meta_package_leads_to(
    kernel: str, names: list[str]
) -> None:
    packages = apt.debian_packages(Archive(), kernel)
    assert [package.name for package in packages] == names
    assert all(package.version.startswith(f"{kernel}.") for package in packages)


def test_each_kernel_is_for_a_release_that_guests_can_boot() -> None:
    for series, origin in apt.ORIGINS.items():
        assert roots.SUITES[series] == origin.release
        # Its own suite, or backports.
        assert any(suite.removesuffix("-backports") == origin.release for suite in origin.suites)
        assert origin.release in roots.PYTHON_SUITES.values()


@pytest.mark.parametrize(
    "names",
    [
        ("./boot/vmlinuz-6.12.9+deb13-amd64", "./lib/modules/6.12.9+deb13-amd64/"),
        ("./usr/lib/modules/7.3.4/vmlinuz", "./usr/lib/modules/7.3.4/"),
    ],
    ids=["boot", "modules"],
)
def test_image_and_modules_are_taken_from_where_packages_have_them(
    names: tuple[str, str], tmp_path: Path
) -> None:
    image, modules = names
    root, home = tmp_path / "root", tmp_path / "home"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: linux\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.example>\n"
        "Description: a kernel\n"
    )
    block = f"{modules}kernel/drivers/block/"
    for name in (image, f"{block}nbd.ko", f"{block}ublk_drv.ko", f"{modules}kernel/sound/loud.ko"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    package = tmp_path / "kernel.deb"
    subprocess.run(["dpkg-deb", "--build", root, package], check=True, capture_output=True)
    kernels.unpack(package, home)
    assert (home / "vmlinuz").read_text() == image
    assert sorted(path.name for path in home.rglob("*.ko")) == ["nbd.ko", "ublk_drv.ko"]
    (release,) = (home / "lib" / "modules").iterdir()
    assert release.name == Path(modules).name


def test_nearest_kernel_is_by_series_then_the_newest_build() -> None:
    releases = ["5.15.0-25-generic", "6.2.0-26-generic", "6.2.0-39-generic", "6.8.0-1-generic"]
    nearest = sorted(releases, key=lambda release: apt.distance(release, "6.1"))
    assert nearest[:2] == ["6.2.0-39-generic", "6.2.0-26-generic"]
