"""Run the project's checks and tests: on each Python, and in a virtual machine for each kernel.

Stages, by default all but the last two, in this order:

    lint    ruff check, ruff format --check, mypy --strict
    unit    tests/unit on each Python, on this machine
    vm      tests/test_vm_tool.py, once
    interop tests/interop, other people's NBD programs, on the oldest and the newest Python
    kernel  tests/kernel in one virtual machine per kernel, on the oldest and the newest Python
    systemd tests/systemd in one virtual machine per kernel, with systemd, udev and Python of its
            Debian; only when it is named, since it takes a quarter of an hour without KVM
    rgw     tests/rgw, disks in a Ceph of their own behind its S3 gateway, on the oldest and the
            newest Python; only when it is named, since `tools/setup rgw` fetches 60 MB before

PYTHONS and KERNELS narrow the matrix, VM_TIMEOUT (seconds) bounds a virtual machine.  The last
line is the closing line of the last pytest, so that whoever reads only that knows how it went.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = os.environ.get("PYTHONS", "").split() or ["3.11", "3.12", "3.13"]
KERNELS = os.environ.get("KERNELS", "").split() or ["6.1", "6.12"]
VM_TIMEOUT = os.environ.get("VM_TIMEOUT") or "4500"
SYSTEMD_PYTHONS = {"6.1": "3.11", "6.12": "3.13"}  # what bookworm and trixie have

CLOSING_LINE = re.compile(r"=+ .*\b(passed|failed|errors?|skipped|deselected|ran)\b.* in .+ =+$")


class Output:
    """What the user sees: all lines as they come, and at the end how each step ended.

    A pytest's closing line is held back until another line follows, so that the last one can come
    after that table.
    """

    def __init__(self) -> None:
        self._closing = ""
        self._held = False
        self._table: list[str] = []
        self.passed = True

    def line(self, text: str) -> None:
        """Print one line."""
        if self._held:
            print(self._closing, flush=True)
        self._held = CLOSING_LINE.match(text) is not None
        if self._held:
            self._closing = text
        else:
            print(text, flush=True)

    def outcome(self, step: str, passed: bool) -> None:
        """Remember how a step ended."""
        self._table.append(f"{'passed' if passed else 'FAILED'}  {step}")
        self.passed = self.passed and passed

    def finish(self) -> None:
        """Print the table and the last closing line."""
        closing = [self._closing] if self._closing else []
        print("", *self._table, *closing, sep="\n", flush=True)


class Step:
    """A command at work.  One that is not shown live writes to a file until its turn comes."""

    def __init__(self, name: str, command: Sequence[str], *, live: bool = True) -> None:
        self._name = name
        self._file: IO[bytes] | None = (
            None if live else tempfile.TemporaryFile()  # noqa: SIM115 (needed until shown)
        )
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._file or subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def show(self, output: Output) -> None:
        """Copy what the command prints to `output` until it ends."""
        output.line(f"\n--- {self._name}")
        if self._file:
            self._process.wait()
            self._file.seek(0)
        lines = self._file or self._process.stdout
        assert lines is not None  # because without a file, stdout is a pipe
        for line in lines:
            output.line(line.decode(errors="replace").rstrip())
        output.outcome(self._name, self._process.wait() == 0)

    def stop(self) -> None:
        """End the command, if it has not ended: virtual machines must not outlive the tests."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def main(stages: Sequence[str]) -> int:
    """Run `stages`, by default all, and return the exit status."""
    default = {"lint": lint, "unit": unit, "vm": vm, "interop": interop, "kernel": kernel}
    runners = default | {"systemd": systemd, "rgw": rgw}
    if unknown := set(stages) - set(runners):
        sys.exit(f"no stage {' '.join(sorted(unknown))}, only {' '.join(runners)}")
    signal.signal(signal.SIGTERM, leave)
    os.chdir(ROOT)
    output = Output()
    for stage, run in runners.items():
        if stage in (stages or default):
            run(output)
    output.finish()
    return 0 if output.passed else 1


def leave(number: int, frame: FrameType | None) -> None:
    """Leave by way of the cleanups."""
    sys.exit(128 + number)


def run_steps(output: Output, commands: dict[str, Sequence[str]]) -> None:
    """Run `commands` (by step name) at the same time, the first shown live, the others after it."""
    steps: list[Step] = []
    try:
        for name, command in commands.items():
            steps.append(Step(name, command, live=not steps))
        for step in steps:
            step.show(output)
    finally:
        for step in steps:
            step.stop()


def lint(output: Output) -> None:
    """Check style and types, once: both are told the oldest Python by pyproject.toml."""
    for name in ("ruff check", "ruff format --check", "mypy --strict"):
        run_steps(output, {name: [sys.executable, "-m", *name.split()]})


def unit(output: Output) -> None:
    """Run the tests that need no kernel, on all Pythons at once."""
    for version in VERSIONS:
        if version not in available():
            output.line(f"\n--- unit tests, Python {version}: left out, it is not on this machine")
    run_steps(
        output,
        {f"unit tests, Python {each}": bounded(each, "tests/unit") for each in available()},
    )


def vm(output: Output) -> None:
    """Test tools/vm itself, before it is relied on."""
    run_steps(output, {"tools/vm": pytest(available()[-1], "tests/test_vm_tool.py")})


def interop(output: Output) -> None:
    """Run the tests with other people's NBD programs, on the oldest and the newest Python."""
    for version in oldest_and_newest():
        run_steps(output, {f"interop, Python {version}": bounded(version, "tests/interop")})


def kernel(output: Output) -> None:
    """Run the kernel tests on the oldest and the newest Python, one boot per kernel."""
    versions = oldest_and_newest()
    for version in versions:
        # A guest keeps nothing, so it would compile all again, at a twentieth of the speed.
        compile_all = ["-m", "compileall", "-q", "aiovblk", "tests"]
        subprocess.run([interpreter(version), *compile_all], check=False)
    pythons = " and ".join(versions)
    run_steps(
        output,
        {
            f"kernel tests, Linux {name}, Python {pythons}": [
                *("tools/vm", "run", "--kernel", name),
                *("--smp", "2", "--timeout", VM_TIMEOUT, "--"),
                *("sh", "-c", f"status=0; {kernel_runs(number, versions)}; exit $status"),
            ]
            for number, name in enumerate(KERNELS)
        },
    )


def kernel_runs(number: int, versions: Sequence[str]) -> str:
    """Return the shell commands for one kernel.

    Each kernel has devices attached in both ways, and so has each Python.
    """
    runs = []
    for other, version in enumerate(versions):
        run = [*pytest(version, "tests/kernel")]
        run += ["--attach", ("ioctl", "netlink")[(number + other + len(versions) - 1) % 2]]
        if version != versions[-1]:
            # What does not depend on the version, and takes long here, runs on the newest alone.
            run += ["-m", "not newest_python"]
        runs.append(f"{shlex.join(run)} || status=1")
    return "; ".join(runs)


def systemd(output: Output) -> None:
    """Run the tests of the unit and with udev, one boot per kernel and not two at a time."""
    for name in KERNELS:
        version = SYSTEMD_PYTHONS.get(name, "")
        if version not in available():
            output.line(f"\n--- systemd, Linux {name}: left out, needs the packages of its Python")
            continue
        subprocess.run(
            [interpreter(version), "-m", "compileall", "-q", "aiovblk", "tests"], check=False
        )
        # The guest's own interpreter, with the packages that are here for the same version.
        packages = Path(f".venvs/{version}").resolve() / f"lib/python{version}/site-packages"
        pytest = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
        run_steps(
            output,
            {
                f"systemd, Linux {name}": [
                    *("env", f"PYTHONPATH={ROOT}:{packages}"),
                    *("tools/vm", "run", "--systemd", "--kernel", name, "--ro", f"{packages}"),
                    *("--smp", "2", "--timeout", VM_TIMEOUT, "--", *pytest, "tests/systemd"),
                ]
            },
        )


def rgw(output: Output) -> None:
    """Run the tests with Ceph's gateway, on the oldest and the newest Python."""
    for version in oldest_and_newest():
        run_steps(output, {f"Ceph's gateway, Python {version}": bounded(version, "tests/rgw")})


def available() -> list[str]:
    """Return those of VERSIONS that `make setup` found, oldest first."""
    found = [version for version in VERSIONS if Path(interpreter(version)).exists()]
    return found or sys.exit("none of the Pythons is here; run make setup")


def oldest_and_newest() -> list[str]:
    """Return the first and the last of the available versions, which may be one."""
    return list(dict.fromkeys([available()[0], available()[-1]]))


def interpreter(version: str) -> str:
    """Return the Python of that version's environment."""
    return f".venvs/{version}/bin/python"


def pytest(version: str, path: str) -> list[str]:
    """Return a pytest command: every warning is an error, and asyncio's debug mode is on."""
    return [interpreter(version), "-X", "dev", "-W", "error", "-m", "pytest", path]


def bounded(version: str, path: str) -> list[str]:
    """Return a pytest command that ends some day: a test that hangs would hang the rest too."""
    return ["timeout", "1800", *pytest(version, path)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
