"""Made-up figures of a benchmark: no speed is judged."""

from __future__ import annotations

from bench.asked import LIMIT, MEMORY, PYTHON
from bench.attach import Mount
from bench.cases import BIG_READ, BIG_WRITE, FIO, KERNEL_CASES, READ, READ_QD1, SLOW, WRITE
from bench.figures import Figures
from bench.footprint import Footprint
from bench.kernel import KernelRun
from bench.observing import Cost, Observing
from bench.peers.ours import SUBJECT, USERS, at_revision
from bench.placement import BOTH, Placement
from bench.report import Run
from bench.summary import Key, Memory, Samples

FOOTPRINT = Footprint(
    small=40_000,
    large=40_100,
    settled=300_000,
    deep=332_768,
    growth=12,
    requests=1_000_000,
    imports={"3.13": 0.123},
)


def figures(server_cpu: float, iops: float = 1000.0) -> Figures:
    return Figures(server_cpu, 10.0, iops, 4.096, 50.0, 99.0)


def samples_of(runs: dict[Key, list[Figures]]) -> Samples:
    made = Samples()
    for key, each in runs.items():
        for run in each:
            made.add(key, run)
    return made


def socket_samples() -> Samples:
    peers = {
        LIMIT: figures(4, 500_000),
        MEMORY: figures(16, 50_000),
        PYTHON: figures(50, 10_000),
        SUBJECT: figures(8, 80_000),
        USERS: figures(20, 40_000),
    }
    cases = (READ, WRITE, READ_QD1, BIG_READ, BIG_WRITE, SLOW, *FIO)
    made = samples_of(
        {
            Key(case.name, placement, peer): [each]
            for case in cases
            for placement in BOTH
            for peer, each in peers.items()
        }
    )
    made.add_memory(SUBJECT, Memory(35_000, 300_000))
    return made


def kernel_run(revision: str = "v1") -> KernelRun:
    peers = {
        MEMORY: figures(12, 1000),
        SUBJECT: figures(9, 1200),
        at_revision(revision): figures(10, 1000),
    }
    runs = {
        Key(case.name, Placement.KERNEL, peer): [each]
        for case in KERNEL_CASES
        for peer, each in peers.items()
    }
    return KernelRun(
        machine={"kernel": "Linux 6.1"},
        rounds=3,
        others=0.25,
        samples=samples_of(runs),
        mounts={SUBJECT: Mount(8.0, 0.06)},
    )


def whole_run() -> Run:
    return Run(
        command="make bench",
        rounds=15,
        life=5,
        reference="3.13",
        machine={"processor": "one of many"},
        samples=socket_samples(),
        footprint=FOOTPRINT,
        kernel=kernel_run(),
        observing=Observing("3.13.0", 25, {READ.name: Cost(8.0, 8.4, 1.049)}),
        clients=socket_samples(),
        revision="v1",
    )
