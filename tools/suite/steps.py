"""Commands at work: what they print, how long they may take, several at the same time."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

CLOSING_LINE = re.compile(r"=+ .*\b(passed|failed|errors?|skipped|deselected|ran)\b.* in .+ =+$")


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a run, and what it is called in records and reports."""

    stage: str
    name: str
    command: Sequence[str]
    deadline: float = 1800.0
    """Seconds, after which the command is ended: one that hangs would hang all others too."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What is added to the environment."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended."""

    step: Step
    passed: bool
    seconds: float
    summary: str = ""
    """pytest's closing line without its frame, or the reason of a failure."""


class Output:
    """What the user sees: all lines as they come.

    A pytest's closing line is held back until another line follows, so that the last one can be
    printed after the report: a reader of the last line alone learns how the run went.
    """

    def __init__(self) -> None:
        self.closing = ""
        """The last closing line of a pytest that was printed or is held back."""
        self._held = False

    def line(self, text: str) -> None:
        """Print one line."""
        if self._held:
            print(self.closing, flush=True)
        self._held = CLOSING_LINE.match(text) is not None
        if self._held:
            self.closing = text
        else:
            print(text, flush=True)

    def finish(self) -> None:
        """Print the closing line that was held back, or the last one again."""
        if self.closing:
            print(self.closing, flush=True)


class Running:
    """A step that has been started.  One that is not shown live writes to a file meanwhile."""

    def __init__(self, step: Step, *, live: bool = True) -> None:
        self.step = step
        self._started = time.monotonic()
        self._ended = 0.0
        self._timed_out = False
        self._file: IO[bytes] | None = (
            None if live else tempfile.TemporaryFile()  # noqa: SIM115 (needed until shown)
        )
        self._process = subprocess.Popen(
            step.command,
            stdin=subprocess.DEVNULL,
            stdout=self._file or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | step.variables,
            # A session of its own, so that what the command started can be ended with it.
            start_new_session=True,
        )
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        """End the command when its deadline has passed; note when it ended."""
        try:
            self._process.wait(self.step.deadline)
        except subprocess.TimeoutExpired:
            self._timed_out = True
            self.stop()
        self._ended = time.monotonic()

    def show(self, output: Output) -> Outcome:
        """Copy what the command prints to `output` until it ends."""
        output.line(f"\n--- {self.step.name}")
        if self._file:
            self._waiter.join()
            self._file.seek(0)
        lines = self._file or self._process.stdout
        assert lines is not None  # because without a file, stdout is a pipe
        summary = ""
        with lines:
            for raw in lines:
                text = raw.decode(errors="replace").rstrip()
                if CLOSING_LINE.match(text):
                    summary = text.strip("= ")
                output.line(text)
        self._waiter.join()
        if self._timed_out:
            summary = f"ended after its deadline of {self.step.deadline:.0f} s"
            output.line(f"{self.step.name}: {summary}")
        passed = self._process.returncode == 0 and not self._timed_out
        return Outcome(self.step, passed, self._ended - self._started, summary)

    def stop(self) -> None:
        """End the command and what it started: SIGTERM, and SIGKILL after ten seconds."""
        for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, None)):
            if self._process.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)


def run_together(steps: Sequence[Step], output: Output) -> list[Outcome]:
    """Run `steps` at the same time, the first shown live, the others after it."""
    running: list[Running] = []
    try:
        running.extend(Running(step, live=not number) for number, step in enumerate(steps))
        return [each.show(output) for each in running]
    finally:
        for each in running:  # virtual machines must not outlive the tests
            each.stop()
