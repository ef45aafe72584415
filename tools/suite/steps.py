"""Commands at work: what they print, how long they may take, two at the same time."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

AT_ONCE = 2
"""So many steps run at a time. Most of a test runs on one processor, in a guest as well, and more
guests than two would only run into their deadlines."""
POLL = 0.2  # seconds between looks at the steps that run

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
    after: str = ""
    """The name of a step whose end it needs."""
    alone: bool = False
    """Whether it uses all processors by itself, so that nothing runs beside it."""


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
    """A step that has been started; what it prints is in a file until it is shown."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.outcome: Outcome | None = None
        """How it has ended; None while it runs."""
        self._started = time.monotonic()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        self._shown: int | None = None  # bytes of the file
        self._process = subprocess.Popen(
            step.command,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env=os.environ | step.variables,
            # A session of its own, so that what the command started can be ended with it.
            start_new_session=True,
        )

    def poll(self) -> Outcome | None:
        """Return how the command has ended, None if it has not; end it after its deadline."""
        if self.outcome is None:
            seconds = time.monotonic() - self._started
            timed_out = seconds > self.step.deadline
            if timed_out:
                self.stop()
            if self._process.poll() is not None:
                self.outcome = self._ended(seconds, timed_out=timed_out)
        return self.outcome

    def _ended(self, seconds: float, *, timed_out: bool) -> Outcome:
        summary = ""
        for line in self._read(0).decode(errors="replace").splitlines():
            if CLOSING_LINE.match(line):
                summary = line.strip("= ")
        if timed_out:
            summary = f"ended after its deadline of {self.step.deadline:.0f} s"
        passed = self._process.returncode == 0 and not timed_out
        return Outcome(self.step, passed, seconds, summary)

    def show(self, output: Output) -> None:
        """Print what the command has printed since the last call; while it runs, whole lines."""
        if self._shown is None:
            output.line(f"\n--- {self.step.name}")
            self._shown = 0
        text = self._read(self._shown)
        if self.outcome is None:
            text = text[: text.rfind(b"\n") + 1]
        self._shown += len(text)
        for line in text.decode(errors="replace").splitlines():
            output.line(line.rstrip())

    def _read(self, start: int) -> bytes:
        # The command writes to the same open file, whose position must stay what it is.
        return os.pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size - start, start)

    def stop(self) -> None:
        """End the command and what it started: SIGTERM, and SIGKILL after ten seconds."""
        for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, None)):
            if self._process.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)

    def close(self) -> None:
        """End the command if it still runs, as no virtual machine may outlive the tests."""
        self.stop()
        self._file.close()


def run_steps(steps: Iterable[Step], output: Output) -> Generator[Outcome]:
    """Run steps in their order, each as soon as there is a place for it.

    The first of those that run is shown as it goes, each other when its turn comes.

    Yields:
        How each has ended, as soon as it has.
    """
    waiting = iter(steps)
    following = next(waiting, None)
    started: deque[Running] = deque()  # those of which not everything has been shown
    try:
        while following or started:
            running = [each for each in started if each.outcome is None]
            if following and has_place(following, [each.step for each in running]):
                started.append(Running(following))
                following = next(waiting, None)
                continue
            yield from filter(None, [each.poll() for each in running])
            started[0].show(output)
            if started[0].outcome:
                started.popleft().close()
            else:
                time.sleep(POLL)
    finally:
        for each in started:
            each.close()


def has_place(step: Step, running: Sequence[Step]) -> bool:
    """Whether a step may begin beside those that run."""
    if not running:
        return True
    is_alone = step.alone or any(each.alone for each in running)
    is_early = any(each.name == step.after for each in running)
    return len(running) < AT_ONCE and not is_alone and not is_early
