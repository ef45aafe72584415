"""What comes out: the same figures on stdout, as a page and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import tables
from .asked import LIMIT, Verdict, judge
from .cases import PART
from .footprint import Footprint
from .kernel import KernelRun
from .observing import Observing
from .summary import NOTHING, Summary

SUBJECTS = ("aiovblk 3.13 uvloop", "aiovblk 3.13 uvloop, bytearray")
"""Who is held against what is asked."""

HEAD = """\
# Performance

aiovblk and its peers in one run, made by

    {command}
"""

ON_SOCKETS = """\
Each has 256 MiB in memory, and serves `fio --ioengine=nbd` on a Unix socket. In each round
({rounds} here) every server is started anew, and in every case all have their turn before the next
case begins. The figures are medians over the rounds; in the middle of all cases and servers, the
run furthest from its median was off by {spread:.0%}. Read ratios, not digits: they carry over to
other machines. CPU time per request does so better than requests per second, which in the fastest
cases fio limits, not the server.

{processors}
"""

WHO = """\
`aiovblk 3.13 uvloop` serves a `MemoryDevice`, which knows its holes; `bytearray` is what a user
would write: [bench/peers/plain.py](../bench/peers/plain.py). `bare C loop` is one thread of C that
does nothing but answer; `C, one request at a time` works as vblk and BUSE do:
[bench/peers/bare.c](../bench/peers/bare.c). nbdkit's Python plugin has 16 threads when `parallel`.
The slow back end waits for 1 ms: `asyncio.sleep`, `time.sleep`, nbdkit's delay filter. In the case
`bz2` each block is unpacked when it is read, by one process or by two (`--workers 2`).
"""

ASKED = """\
The bounds were set after figures of another machine. The last column is what the bare C loop
reaches on this one: where that misses a bound, the client, the peer or the kernel does not leave
more to any server."""

PYTHONS = """\
How fast a Python is depends on how it was built as much as on its version. Distributions have
theirs optimized by a profile of its use (PGO), and so do Docker's official images; pyenv does so
only with `PYTHON_CONFIGURE_OPTS='--enable-optimizations --with-lto'`. `make setup` takes the first
one of each version in `PATH`.
"""

IN_KERNEL = """\
Here each server has a `/dev/nbdN` of its own in a test kernel, and `fio --direct=1
--ioengine=libaio` reads and writes its first {part} MiB. nbdkit's are attached by `nbd-client
-unix`, qemu-nbd by `qemu-nbd -c`; both programs in C and aiovblk attach themselves to one end of a
socket pair. All are attached at once and have their turns in each round ({rounds} here); in the
middle, the run furthest from its median was off by {spread:.0%} in requests per second. Other
programs had {others:.2f} of the host's processors meanwhile: the machine needs two for itself, or
what waits for the other processor waits for the host too.

{machine}

An emulated processor takes many times longer for the same, for some instructions more than for
others: these are ratios of such a machine. The CPU time is of the server's process alone, without
that of the kernel's threads that work for it."""

MOUNTING = """\
Until a first block was read from the device. `all of it` begins when the first program is started,
the server. `attaching alone` begins when `nbd-client` is started, before a server that listens; for
aiovblk, when `mounted()` is called in an event loop that runs. Between the two lies what the
server, or an interpreter and its imports, takes to start."""

OBSERVING = """\
Counters, latencies and events are always on; what they cost is measured on the dispatcher alone,
over a socket pair, with a `MemoryDevice`, uvloop and Python {python}. `on` is as it always is, and
somebody listens to its events; `off` has counters that count nothing, which only the benchmark has.
Medians of {pairs} pairs, of which each is measured at once, the one or the other first; the ratio
is the median of theirs. The clock is read in both: once for all that arrives together, and once for
all that leaves together."""

ONE_PROCESSOR = """\
Server and fio shared one processor. Threads do not wake each other across processors then, which is
likely to favour nbdkit, and the time that fio takes is missing to the server. The bounds below were
set after figures of a machine with two."""
MORE_PROCESSORS = "Server and fio had a processor each."


@dataclass(frozen=True, slots=True)
class Run:
    """All of one run."""

    command: str
    rounds: int
    spread: float
    processors: int
    machine: Mapping[str, str]
    summary: Summary
    footprint: Footprint | None
    kernel: KernelRun | None = None
    observing: Observing | None = None

    @property
    def has_picture(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.summary.figures or (self.kernel and self.kernel.summary.figures))

    def verdicts(self) -> dict[str, Sequence[Verdict]]:
        """What is asked, held against each subject that took part, and against the limit."""
        kernel = self.kernel.summary if self.kernel else NOTHING
        subjects = {**dict.fromkeys(SUBJECTS, self.footprint), LIMIT: None}
        return {
            subject: judge(self.summary, footprint, subject, self.processors, kernel)
            for subject, footprint in subjects.items()
            if subject in (*self.summary.peers(), *kernel.peers())
        }

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "command": self.command,
            "rounds": self.rounds,
            "spread": self.spread,
            "machine": dict(self.machine),
            **self.summary.as_json(),
            "footprint": asdict(self.footprint) if self.footprint else None,
            "kernel": self.kernel.as_json() if self.kernel else None,
            "observing": asdict(self.observing) if self.observing else None,
            "asked": {
                subject: [asdict(each) for each in verdicts]
                for subject, verdicts in self.verdicts().items()
            },
        }


def write(run: Run, directory: Path) -> None:
    """Write performance.json and performance.md."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run.as_json(), indent=1)
    (directory / "performance.json").write_text(text + "\n")
    picture = "performance.svg" if run.has_picture else None
    (directory / "performance.md").write_text(page(run, picture=picture))


def page(run: Run, *, picture: str | None = None) -> str:
    """The page in Markdown."""
    parts = [HEAD.format(command=run.command).rstrip()]
    if run.summary.figures:
        processors = ONE_PROCESSOR if run.processors == 1 else MORE_PROCESSORS
        parts.append(
            ON_SOCKETS.format(rounds=run.rounds, spread=run.spread, processors=processors).rstrip()
        )
    parts += [_bullets(run.machine), PYTHONS.rstrip(), WHO.rstrip()]
    if picture:
        parts.append(f"![CPU time and requests per second]({picture})")
    parts += [f"## {title}\n\n{text}" for title, text in sections(run).items()]
    return "\n\n".join(parts) + "\n"


def sections(run: Run) -> dict[str, str]:
    """All tables, by title."""
    found: dict[str, str] = {}
    if verdicts := run.verdicts():
        found["What is asked"] = f"{ASKED}\n\n{tables.verdict_table(verdicts)}"
    if run.summary.figures:
        found |= _on_sockets(run.summary)
    if run.footprint:
        found["Import"] = tables.import_table(run.footprint)
    if run.observing:
        about = OBSERVING.format(python=run.observing.python, pairs=run.observing.pairs)
        found["Statistics and events"] = f"{about}\n\n{tables.observing_table(run.observing)}"
    if run.kernel:
        found |= _in_kernel(run.kernel)
    return found


def _on_sockets(summary: Summary) -> dict[str, str]:
    found: dict[str, str] = {}
    for figure, (title, _) in tables.FIGURES.items():
        found[title] = tables.figure_table(summary, figure)
        if figure in ("server_cpu", "iops"):
            for subject in _subjects(summary):
                ratios = tables.ratio_table(summary, figure, subject)
                found[f"{title}: {subject} / others"] = ratios
    found["Memory"] = (
        "The disk's 256 MiB are part of the most, save for qemu-nbd, whose disk is a file.\n\n"
        + tables.memory_table(summary)
    )
    return found


def _in_kernel(run: KernelRun) -> dict[str, str]:
    summary = run.summary
    found = {
        "In the kernel": IN_KERNEL.format(
            part=PART >> 20,
            rounds=run.rounds,
            spread=run.spread,
            others=run.others,
            machine=_bullets(run.machine),
        )
    }
    for figure in ("iops", "server_cpu", "p50", "p99"):
        title = f"{tables.FIGURES[figure][0]}, in the kernel"
        found[title] = tables.figure_table(summary, figure)
        if figure == "iops":
            for subject in _subjects(summary):
                others = [peer for peer in summary.peers() if peer != subject]
                ratios = tables.ratio_table(summary, figure, subject, others)
                found[f"{title}: {subject} / others"] = ratios
    found["Time to mount"] = f"{MOUNTING}\n\n{tables.mount_table(run.mounts)}"
    return found


def _subjects(summary: Summary) -> list[str]:
    return [subject for subject in SUBJECTS if subject in summary.peers()]


def _bullets(facts: Mapping[str, str]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in facts.items())
