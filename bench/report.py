"""What comes out: the same figures on stdout, as a page and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import tables
from .asked import Verdict, judge
from .footprint import Footprint
from .summary import Summary

SUBJECTS = ("aiovblk 3.13 uvloop", "aiovblk 3.13 uvloop, bytearray")
"""Who is held against what is asked."""

INTRODUCTION = """\
# Performance

aiovblk and its peers in one run, each with 256 MiB in memory, before `fio --ioengine=nbd` on a Unix
socket. The command is

    {command}

In each round ({rounds} here) every server is started anew, and in every case all have their turn
before the next case begins. The figures are medians over the rounds; in the middle of all cases and
servers, the run furthest from its median was off by {spread:.0%}. Read ratios, not digits: they
carry over to other machines. CPU time per request does so better than requests per second, which in
the fastest cases fio limits, not the server.

{processors}

{machine}

`aiovblk 3.13 uvloop` serves a `MemoryDevice`, which knows its holes; `bytearray` is what a user
would write: [bench/peers/plain.py](../bench/peers/plain.py). `bare C loop` is one thread of C that
does nothing but answer; `C, one request at a time` works as vblk and BUSE do:
[bench/peers/bare.c](../bench/peers/bare.c). nbdkit's Python plugin has 16 threads when `parallel`.
The slow back end waits for 1 ms: `asyncio.sleep`, `time.sleep`, nbdkit's delay filter.
"""

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

    def verdicts(self) -> dict[str, Sequence[Verdict]]:
        """What is asked, held against each subject that took part."""
        return {
            subject: judge(self.summary, self.footprint, subject, self.processors)
            for subject in SUBJECTS
            if subject in self.summary.peers()
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
    (directory / "performance.md").write_text(page(run, picture="performance.svg"))


def page(run: Run, *, picture: str | None = None) -> str:
    """The page in Markdown."""
    parts = [
        INTRODUCTION.format(
            command=run.command,
            rounds=run.rounds,
            spread=run.spread,
            processors=ONE_PROCESSOR if run.processors == 1 else MORE_PROCESSORS,
            machine="\n".join(f"* {name}: {value}" for name, value in run.machine.items()),
        ).rstrip()
    ]
    if picture:
        parts.append(f"![CPU time and requests per second]({picture})")
    parts += [f"## {title}\n\n{text}" for title, text in sections(run).items()]
    return "\n\n".join(parts) + "\n"


def sections(run: Run) -> dict[str, str]:
    """All tables, by title."""
    summary, verdicts = run.summary, run.verdicts()
    found: dict[str, str] = {}
    if verdicts:
        found["What is asked"] = tables.verdict_table(verdicts)
    for figure, (title, _) in tables.FIGURES.items():
        found[title] = tables.figure_table(summary, figure)
        if figure in ("server_cpu", "iops"):
            for subject in verdicts:
                ratios = tables.ratio_table(summary, figure, subject)
                found[f"{title}: {subject} / others"] = ratios
    found["Memory"] = (
        "The disk's 256 MiB are part of the most, save for qemu-nbd, whose disk is a file.\n\n"
        + tables.memory_table(summary)
    )
    if run.footprint:
        found["Import"] = tables.import_table(run.footprint)
    return found
