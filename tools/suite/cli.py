"""The command line of tools/test."""

import argparse
import fnmatch
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType

from . import report
from .environments import REPORTS, ROOT, SetupError
from .records import Records
from .stages import SIZES, STAGES, Plan
from .steps import Outcome, Output, Step, run_steps

DESCRIPTION = """\
Run checks and tests: one of three sizes, or a part.

    tools/test check                     make check: lint, unit tests on one Python but `slow` ones
    tools/test                           make test: what a change must pass to land
    tools/test all                       make test-all: the whole matrix
    tools/test unit tests/unit/test_x.py -k name
    tools/test kernel tests/kernel/test_io.py --attach ioctl
                                         a part; what follows a stage is given to pytest
"""

EPILOG = """\
stages:
    lint     ruff check, ruff format --check, mypy --strict, codespell
    docs     the site in build/docs/html, built with every warning an error
    unit     tests/unit: no kernel device, no root, no other programs
    tools    tests/tools: tools/vm and tools/test themselves
    interop  tests/interop: other people's NBD programs, and a terminal
    kernel   tests/kernel, in virtual machines: in `test` the core, in `all` everything on each
             kernel and Python, and on Linux 7.3, of backports, the core and ublk
    systemd  tests/systemd, in Debians with systemd and udev
    rgw      tests/rgw, disks in a Ceph of their own behind its S3 gateway
    release  tests/release, sdist and wheel as they are installed; Grafana's dashboard
    debian   tests/debian, the packages for Debian, built, installed and used there

environment:
    PYTHONS="3.11 3.13"   the versions to test on
    KERNELS="6.12"        the kernels to test on: 6.1, 6.12, 7.3, host
    VM_TIMEOUT=4500       seconds for a virtual machine

What has passed is recorded for the tree as it is, committed or not.  With --resume, steps that
have passed for this very tree are not run again.  build/tests has JUnit files, and report.json.
The exit status is 0 if all passed, 1 if something failed, 2 if something is missing.
"""


def main() -> int:
    """Run the command line and return the exit status."""
    options, words = parser().parse_known_args()
    signal.signal(signal.SIGTERM, leave)
    # Containers set it. Each process of the tests, and each guest, would compile everything anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.chdir(ROOT)
    (ROOT / REPORTS).mkdir(parents=True, exist_ok=True)
    size = options.what
    if size in SIZES:
        if words or options.words:
            sys.exit(f"tools/test: {size} takes no paths; name a stage: {' '.join(STAGES)}")
        plan = Plan(size)
    else:
        plan = Plan("part", [*options.words, *words])
    try:
        return Run(plan, options.only, resume=options.resume).run([*SIZES.get(size, [size])])
    except SetupError as error:
        print(f"tools/test: {error}", file=sys.stderr)
        return 2


def leave(number: int, frame: FrameType | None) -> None:
    """Leave by way of the cleanups."""
    sys.exit(128 + number)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        "tools/test",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", nargs="?", default="test", choices=[*SIZES, *STAGES])
    parser.add_argument("words", nargs="*", metavar="PATH", help="files or tests of a stage")
    parser.add_argument(
        "--resume", action="store_true", help="do not repeat what has passed for this very tree"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only steps whose stage or name matches, such as rgw or '*6.12*'; may be repeated",
    )
    return parser


class Run:
    """One run: its steps, their outcomes, and the report at its end."""

    def __init__(self, plan: Plan, only: Sequence[str], *, resume: bool) -> None:
        self._plan = plan
        self._only = only
        self._resume = resume
        # A part is not the step that a size has by the same name.
        self._records = Records() if plan.scope != "part" else None
        self._output = Output()
        self._outcomes: list[Outcome] = []
        self._started = time.monotonic()

    def run(self, stages: Sequence[str]) -> int:
        """Run `stages` in the order in which STAGES has them, and return the exit status."""
        try:
            for outcome in run_steps(self._wanted(stages), self._output):
                self._outcomes.append(outcome)
                if self._records:
                    seconds, passed = outcome.seconds, outcome.passed
                    self._records.note(outcome.step, seconds, passed=passed)
        finally:
            self._finish()
        return 0 if all(each.passed for each in self._outcomes) else 1

    def _wanted(self, stages: Iterable[str]) -> Iterator[Step]:
        """Yield the steps to be run; each when its turn comes, as it may have to be prepared."""
        for name in stages:
            for step in filter(self._is_wanted, STAGES[name](self._plan)):
                for path in report.junit_files(step.name):
                    path.unlink(missing_ok=True)
                yield step

    def _is_wanted(self, step: Step) -> bool:
        """Whether --only and --resume leave a step to be run; what has passed is reported."""
        if self._only and not any(
            fnmatch.fnmatch(text, pattern)
            for pattern in self._only
            for text in (step.stage, step.name)
        ):
            return False
        if not self._resume or not self._records:
            return True
        seconds = self._records.seconds(step)
        if seconds is not None:
            self._outcomes.append(Outcome(step, True, seconds, "before, for this tree"))
        return seconds is None

    def _finish(self) -> None:
        """Print the report, also of a run that was interrupted; a part of one step needs none."""
        if len(self._outcomes) < 2 and self._plan.scope == "part":
            self._output.finish()
            return
        seconds = time.monotonic() - self._started
        tree = self._records.tree if self._records else None
        left_out = self._plan.left_out
        path = report.write_json(tree, self._outcomes, left_out, seconds)
        for line in ["", *report.table(self._outcomes, left_out)]:
            self._output.line(line)
        self._output.line(f"\n{seconds:.0f} s in all; the same and more in {path}")
        self._output.finish()
