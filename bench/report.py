"""What comes out: a page of five tables, another with all figures, and JSON with every run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import asking, sections, tables
from .asked import Verdict, judge
from .cases import BIG_READ, BIG_WRITE, KERNEL_CASES, MAIN, PART, READ, READ_QD1, SLOW, WRITE
from .footprint import Footprint
from .kernel import KernelRun
from .observing import Observing
from .peers.ours import at_revision
from .placement import BOTH, Placement
from .summary import Samples
from .tables import Column

HEADS = {
    READ: "4k read, depth 64",
    WRITE: "4k write, depth 64",
    READ_QD1: "4k read, depth 1",
    BIG_READ: "256k read, depth 8",
    BIG_WRITE: "256k write, depth 8",
    SLOW: "1 ms back end, depth 128",
}
PAGE, FIGURES_PAGE, DATA = "performance.md", "performance-figures.md", "performance.json"
PICTURE = "performance.svg"

HEAD = """\
# Performance

aiovblk beside its peers: 256 MiB in memory on a Unix socket, asked by a load generator in C that
keeps a fixed number of requests in flight. Each cell is the figure and, in parentheses, its ratio
to nbdkit's memory plugin (C, threads). **Read the ratios**: they carry over to other machines, the
figures do not.

Where server and client run decides more than the code of either. On **one core** what the server
does is all that counts. With **a core each** waking the other one adds tens of microseconds to each
request at depth 1, whatever serves. A machine that is left alone does either, by chance.

`aiovblk` is a `MemoryDevice` on Python {reference} with uvloop. `bytes(view)` and `bytearray slice`
are devices as a user writes them, whose reads are copies. `bare C loop` is one thread that does
nothing but answer: the limit. All figures, the method and the machine:
[{figures}]({figures}). Made by

    {command}
{notes}"""

METHOD = """\
# All figures

The tables of [{page}]({page}) are from these; `{data}` beside them, when you run it yourself, has
every single run. Made by

    {command}

In {rounds} short rounds all servers had their turn in each case within a second or two, each time
another one first; every {life} rounds they were started anew. A cell is the lower quartile, the
median and the upper quartile over the rounds. Elsewhere one figure stands for them: the lower
quartile of times, the upper one of rates, since what disturbs a run makes it worse, never better.
In the middle of all cells, the quartiles lay {spread:.0%} of the median from it.

CPU time is that of the server's process and its children, read from their clocks, divided by the
requests. loadgen ([bench/native/loadgen.c](../bench/native/loadgen.c)) uses simple replies, checks
each reply, and counts from when it has warmed up until it begins to drain. fio is measured from its
start to its end, and its libnbd negotiates structured replies.

{machine}

How fast a Python is depends on how it was built as much as on its version: `make bench` takes those
that were optimized by a profile of their use (PGO), as Debian's are and Docker's; from a Debian in
a root directory of its own where the machine has none.

`C, one request at a time` works as vblk and BUSE do: [bench/native/bare.c](../bench/native/bare.c).
nbdkit's Python plugin has 16 threads when `parallel`. Devices of a user's own:
[bench/peers/plain.py](../bench/peers/plain.py). The slow back end waits for 1 ms: `asyncio.sleep`,
`time.sleep`, nbdkit's delay filter. In the case `bz2` each block is unpacked when it is read."""

AGAINST = """
`at {revision}` is the package as git has it there. It and the present one were copied into folders
whose paths are equally long, since that alone moves figures by some percent.
"""

UNOPTIMIZED = """
**Not to be published:** Python {versions} was built without PGO here.
"""

IN_KERNEL = """\
Each server has a `/dev/nbdN` of its own in a test kernel ({kernel}), and `fio --direct=1
--ioengine=libaio` reads and writes its first {part} MiB. nbdkit's are attached by `nbd-client`,
all others attach themselves. Thousand requests per second, and the ratio to nbdkit memory; on an
emulated processor, so read ratios only."""

KERNEL_METHOD = """\
All are attached at once and have their turns in each of {rounds} rounds. Other programs had
{others:.2f} of the host's processors meanwhile: the machine needs two for itself.

{machine}

The CPU time is of the server's process alone, without that of the kernel's threads that work for
it."""

GROWTH = """\
Depth and connections of 4k reads, CPU time in microseconds and thousand requests per second; and
two workers where a request takes a processor's time."""

MOUNTING = """\
Until a first block was read from the device. `all of it` begins when the first program is started,
the server. `attaching alone` begins when `nbd-client` is started, before a server that listens; for
aiovblk, when `mounted()` is called in an event loop that runs. Between the two lies what the
server, or an interpreter and its imports, takes to start."""

OBSERVING = """\
Counters, latencies and events are always on; what they cost is measured on the dispatcher alone,
over a socket pair, with a `MemoryDevice`, uvloop and Python {python}. `on` is as it always is, and
its events have a listener; `off` has counters that count nothing, which only the benchmark has.
Medians of {pairs} pairs, of which each is measured at once, the one or the other first; the ratio
is the median of theirs."""

CLIENTS = """\
Requests of clients to nbdkit's memory plugin; of a copy from one nbdkit to another each MiB counts
as one. Ratios are to libnbd's Python module, and for the copy to nbdcopy, which is C."""


@dataclass(frozen=True, slots=True)
class Run:
    """All of one run."""

    command: str
    rounds: int
    life: int
    reference: str
    machine: Mapping[str, str]
    samples: Samples
    footprint: Footprint | None = None
    kernel: KernelRun | None = None
    observing: Observing | None = None
    clients: Samples = field(default_factory=Samples)
    revision: str | None = None
    unoptimized: Sequence[str] = ()

    @property
    def kernel_samples(self) -> Samples:
        """What was measured in a test kernel."""
        return self.kernel.samples if self.kernel else Samples()

    @property
    def has_picture(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.samples.runs)

    def verdicts(self) -> list[Verdict]:
        """What is asked, held against what was measured."""
        return judge(self.samples, self.kernel_samples, self.footprint, self.revision)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "command": self.command,
            "rounds": self.rounds,
            "revision": self.revision,
            "unoptimized": list(self.unoptimized),
            "machine": dict(self.machine),
            **self.samples.as_json(),
            "clients": self.clients.as_json()["runs"],
            "footprint": asdict(self.footprint) if self.footprint else None,
            "kernel": self.kernel.as_json() if self.kernel else None,
            "observing": asdict(self.observing) if self.observing else None,
            "asked": [asdict(each) for each in self.verdicts()],
        }


def write(run: Run, directory: Path) -> None:
    """Write both pages and the JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / DATA).write_text(json.dumps(run.as_json(), indent=1) + "\n")
    target = directory / PAGE
    text = page(run, picture=PICTURE if run.has_picture else None)
    ublk = sections.section(target.read_text(), sections.UBLK) if target.exists() else None
    if ublk:  # another program's, see there
        text = sections.with_section(text, sections.UBLK, ublk)
    target.write_text(text)
    (directory / FIGURES_PAGE).write_text(figures_page(run))


def page(run: Run, *, picture: str | None = None) -> str:
    """The page of five tables."""
    notes = ""
    if run.revision:
        notes += AGAINST.format(revision=run.revision)
    if run.unoptimized:
        notes += UNOPTIMIZED.format(versions=", ".join(run.unoptimized))
    head = HEAD.format(
        command=run.command, reference=run.reference, figures=FIGURES_PAGE, notes=notes
    )
    parts = [head.rstrip()]
    if picture:
        parts.append(f"![CPU time per request and requests per second]({picture})")
    return _joined(parts, _page_sections(run))


def figures_page(run: Run) -> str:
    """The page of everything else."""
    method = METHOD.format(
        page=PAGE,
        data=DATA,
        command=run.command,
        rounds=run.rounds,
        life=run.life,
        spread=run.samples.typical_spread(),
        machine=_bullets(run.machine),
    )
    return _joined([method], _figure_sections(run))


def _joined(parts: Sequence[str], sections: Mapping[str, str]) -> str:
    titled = (f"## {title}\n\n{text}" for title, text in sections.items())
    return "\n\n".join([*parts, *titled]) + "\n"


def _page_sections(run: Run) -> dict[str, str]:
    found: dict[str, str] = {}
    samples = run.samples
    for placement, title in zip(BOTH, ("one core", "a core each"), strict=True):
        columns = [Column(HEADS[case], "server_cpu", case.name, placement) for case in MAIN]
        if _measured(samples, columns):
            text = tables.compared(samples, columns)
            found[f"CPU time of the server per request, {title}"] = f"Microseconds.\n\n{text}"
    columns = [
        Column(f"{HEADS[case]}, {placement.value}", "iops", case.name, placement)
        for case in (READ, WRITE, READ_QD1)
        for placement in BOTH
    ]
    if _measured(samples, columns):
        found["Thousand requests per second"] = tables.compared(samples, columns)
        found["Depth, connections, workers"] = f"{GROWTH}\n\n{tables.growth_table(samples)}"
    if run.kernel:
        about = IN_KERNEL.format(
            part=PART >> 20, kernel=run.kernel.machine.get("kernel", "unknown")
        )
        found["In the kernel"] = f"{about}\n\n{_kernel_table(run, 'iops')}"
    return found


def _figure_sections(run: Run) -> dict[str, str]:
    found: dict[str, str] = {}
    if any(each.met is not None for each in run.verdicts()):
        found["What is asked"] = tables.verdict_table(run.verdicts())
    places = list(dict.fromkeys(placement for _, placement in run.samples.columns()))
    for figure, show in tables.FIGURES.items():
        for placement in places:
            text = tables.quartile_table(run.samples, figure, placement)
            found[f"{show.title}, {placement.value}"] = text
    if run.clients.runs:
        found["As a client"] = f"{CLIENTS}\n\n{_client_tables(run.clients)}"
    if run.samples.memory:
        about = "The disk's 256 MiB are part of the most, save for qemu-nbd, whose disk is a file."
        found["Memory"] = f"{about}\n\n{tables.memory_table(run.samples)}"
    if run.footprint:
        found["Import"] = tables.import_table(run.footprint)
    if run.observing:
        about = OBSERVING.format(python=run.observing.python, pairs=run.observing.pairs)
        found["Statistics and events"] = f"{about}\n\n{tables.observing_table(run.observing)}"
    return found | (_kernel_figures(run, run.kernel) if run.kernel else {})


def _kernel_figures(run: Run, kernel: KernelRun) -> dict[str, str]:
    found = {
        "In the kernel": KERNEL_METHOD.format(
            rounds=kernel.rounds, others=kernel.others, machine=_bullets(kernel.machine)
        )
    }
    for figure in ("server_cpu", "p50", "p99"):
        found[f"{tables.FIGURES[figure].title}, in the kernel"] = _kernel_table(run, figure)
    found["Time to mount"] = f"{MOUNTING}\n\n{tables.mount_table(kernel.mounts)}"
    return found


def _kernel_table(run: Run, figure: str) -> str:
    columns = [Column(case.name, figure, case.name, Placement.KERNEL) for case in KERNEL_CASES]
    text = tables.compared(run.kernel_samples, columns)
    if run.revision and run.kernel_samples.runs:
        other = tables.compared(run.kernel_samples, columns, at_revision(run.revision))
        text += f"\n\n{other}"
    return text


def _client_tables(samples: Samples) -> str:
    parts = []
    for other, cases in ((asking.LIBNBD, asking.CASES), (asking.NBDCOPY, (asking.COPY,))):
        for figure in ("client_cpu", "iops"):
            columns = [
                Column(f"{case.name}, {placement.value}", figure, case.name, placement)
                for case in cases
                for placement in BOTH
            ]
            text = tables.compared(samples, columns, other)
            parts.append(f"{tables.FIGURES[figure].title}:\n\n{text}")
    return "\n\n".join(parts)


def _measured(samples: Samples, columns: Sequence[Column]) -> bool:
    there = set(samples.columns())
    return any((column.case, column.placement) in there for column in columns)


def _bullets(facts: Mapping[str, str]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in facts.items())
