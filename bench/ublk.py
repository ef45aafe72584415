"""ublk beside NBD, in one boot of a test kernel: ``python -m bench.ublk --against REVISION``.

The same device in memory, on the same Python and loop, is attached as /dev/ublkbN by this tree, and
as /dev/nbdN by this tree and by another revision. All are asked by fio in turns. Beside what the
others of ``bench`` measure, this adds up the time of both processors, which fio, the server and the
kernel share: by ublk the kernel copies in the server, by NBD in threads of its own.

Prints a table in Markdown, and with ``--output docs`` writes it as a section of the page
performance.md there. By itself it starts the test kernel; ``--guest`` is what runs in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from . import sections
from .attach import read_first_block
from .cases import KERNEL_CASES, KERNEL_FILL, KERNEL_READ, SIZE, Case
from .figures import LoadError
from .kernel import MARK, machine_command
from .load import Server, measure
from .machine import describe, parse_busy
from .peers.ours import SUBJECT, at_revision, python_command
from .process import cpu_seconds
from .pythons import REFERENCE, available
from .report import PAGE
from .revision import export, trees
from .rounds import rotated, say
from .server import ServerError, started

UBLK = f"{SUBJECT}, ublk"

ABOUT = """\
One device in memory, served by Python with uvloop, in one boot of a test kernel with two
processors: as /dev/ublkbN, as /dev/nbdN by the same tree, and by an older one. `fio --direct=1
--ioengine=libaio` asks each in turns. A cell is requests per second, and microseconds of CPU per
request: of the server's process, and of the whole machine, which are fio, the server and the
kernel. The processors are emulated: read the ratios. Made by

    {command}

{table}"""
PAUSE = 0.002  # seconds between two looks at a device
TICK = 0.01  # seconds: the unit of /proc/stat, USER_HZ


def _large(op: str) -> Case:
    return replace(KERNEL_READ, name=f"128k {op} QD8", op=op, length=128 << 10, depth=8)


# Longer than elsewhere: what fio takes to start counts as the machine's time.
CASES = tuple(
    replace(case, requests=100_000, longest=5)
    for case in (*KERNEL_CASES, _large("read"), _large("write"))
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to have the device attached.

    Args:
        name: in the table.
        tree: the checkout whose package serves.
        options: of ``aiovblk mount``.
        device: how the node begins.

    """

    name: str
    tree: Path
    options: tuple[str, ...]
    device: str


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a case has shown: requests per second, microseconds of CPU per request."""

    iops: float
    server: float
    machine: float


def main() -> None:
    """Boot a kernel and measure in it; or, with ``--guest``, measure here."""
    parser = ArgumentParser(prog="bench.ublk")
    parser.add_argument("--against", default="de0080b", help="revision (default %(default)s)")
    parser.add_argument("--kernel", default="6.12", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--output", type=Path, metavar="DIR", help="has the page performance.md")
    parser.add_argument("--guest", action="store_true", help="measure in this kernel")
    parsed = parser.parse_args()
    if parsed.guest:
        measure_all(parsed.against, parsed.rounds)
        return
    page = parsed.output / PAGE if parsed.output else None
    if page and not page.is_file():
        parser.error(f"{page} is missing: --output is the directory of that page")
    export(parsed.against, available())
    command = [sys.executable, "-m", "bench.ublk", "--guest", "--against", parsed.against]
    command += ["--rounds", str(parsed.rounds)]
    text = _run_guest([*machine_command(parsed.kernel, parsed.rounds), *command])
    print(text)
    if page:
        given = f"python -m bench.ublk --kernel {parsed.kernel} --rounds {parsed.rounds}"
        text = ABOUT.format(table=text, command=f"{given} --against {parsed.against} --output docs")
        page.write_text(sections.with_section(page.read_text(), sections.UBLK, text))


def _run_guest(command: Sequence[str]) -> str:
    """The table that a guest has made; what else it says goes to stderr."""
    table = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None  # because it is a pipe
        for line in process.stdout:
            if line.startswith(MARK):
                table = json.loads(line.removeprefix(MARK))
            else:
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode or not table:
        sys.exit(process.returncode or "bench: the guest has printed no table")
    return table


def measure_all(revision: str, rounds: int) -> None:
    """Measure all cases, in this kernel, and print the table."""
    for module in ("nbd", "ublk_drv"):
        subprocess.run(["modprobe", module], check=False)  # or it is in the kernel
    this, other = trees(revision)
    assert other is not None  # there is a revision
    contenders = [
        Contender(UBLK, this, ("--attach", "ublk"), "ublkb"),
        Contender(SUBJECT, this, ("--attach", "netlink"), "nbd"),
        Contender(at_revision(revision), other[1], ("--attach", "netlink"), "nbd"),
    ]
    runs: dict[tuple[str, str], list[Run]] = {}
    with ExitStack() as stack:
        servers = {
            each.name: stack.enter_context(_mounted(each, number))
            for number, each in enumerate(contenders)
        }
        for server in servers.values():
            measure(KERNEL_FILL, server)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for case in CASES:
                for each in rotated(contenders, number):
                    of_case = runs.setdefault((case.name, each.name), [])
                    of_case.append(_run(case, servers[each.name]))
    table = _table(runs, [each.name for each in contenders])
    place = "; ".join(f"{name}: {value}" for name, value in describe().items())
    print(MARK + json.dumps(f"{table}\n\n{place}; no process is bound to a processor"), flush=True)


def _run(case: Case, server: Server) -> Run:
    seconds, busy = cpu_seconds(server.pid), parse_busy(Path("/proc/stat").read_text())
    figures = measure(case, server)
    busy = parse_busy(Path("/proc/stat").read_text()) - busy
    count = (cpu_seconds(server.pid) - seconds) * 1e6 / figures.server_cpu
    return Run(figures.iops, figures.server_cpu, busy * TICK / count * 1e6)


@contextmanager
def _mounted(contender: Contender, number: int) -> Iterator[Server]:
    device = f"/dev/{contender.device}{number}"
    command = (
        *(*python_command(REFERENCE), "-m", "aiovblk", "mount", f"memory:{SIZE}", device),
        *("--loop", "uvloop", *contender.options),
    )
    size = Path(f"/sys/block/{device.removeprefix('/dev/')}/size")
    with started(command, contender.tree) as program:
        program.wait_until(lambda: _is_live(size), "it attaches nothing", pause=PAUSE)
        read_first_block(device)
        yield Server(program.process.pid, device=device)


def _is_live(size: Path) -> bool:
    try:
        return size.read_text() != "0\n"
    except OSError:  # a ublk device has no directory before it is started
        return False


def _table(runs: Mapping[tuple[str, str], Sequence[Run]], names: Sequence[str]) -> str:
    """A row for each case: the figures of each contender, then ublk's ratios to the others."""
    head = ["fio, direct", *(f"{name}: iops, server, machine" for name in names)]
    head += [f"ratio to {name}" for name in names[1:]]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for case in dict.fromkeys(case for case, _ in runs):
        medians = [_median(runs[case, name]) for name in names]
        cells = [f"{each.iops:,.0f}, {each.server:,.0f}, {each.machine:,.0f}" for each in medians]
        first = medians[0]
        cells += [
            f"{first.iops / each.iops:.2f}, {first.server / each.server:.2f},"
            f" {first.machine / each.machine:.2f}"
            for each in medians[1:]
        ]
        lines.append("| " + " | ".join([case, *cells]) + " |")
    return "\n".join(lines)


def _median(runs: Sequence[Run]) -> Run:
    return Run(
        median(each.iops for each in runs),
        median(each.server for each in runs),
        median(each.machine for each in runs),
    )


if __name__ == "__main__":
    try:
        main()
    except (LoadError, ServerError, OSError) as exc:
        sys.exit(f"bench: {exc}")
