"""Quartiles, ratios and bounds, on made-up figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.asked import BOUNDS, LIMIT, MEMORY, Verdict, bounds_against, judge
from bench.cases import BIG_READ, HEAVY, READ, WRITE
from bench.footprint import Footprint
from bench.observing import NAME, Cost, cost
from bench.peers.ours import SUBJECT, TWO_WORKERS, at_revision
from bench.placement import Placement
from bench.summary import Key, Memory, Quartiles, Samples, quantile
from tests.support.bench_samples import (
    FOOTPRINT,
    figures,
    kernel_run,
    samples_of,
    socket_samples,
)

ONE = Placement.ONE_CORE
KEY = Key("case", ONE, "peer")


def found(verdicts: list[Verdict]) -> dict[str, tuple[str, bool | None]]:
    return {each.asked: (each.found, each.met) for each in verdicts}


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [([5.0], 0.25, 5.0), ([1, 2, 3, 4, 5], 0.25, 2.0), ([4, 1, 3, 2], 0.75, 3.25)],
)
def test_quantile_lies_between_its_neighbours(
    values: list[float], part: float, expected: float
) -> None:
    assert quantile(values, part) == expected


def test_better_quartile_stands_for_a_figure() -> None:
    runs = [figures(cpu, iops) for cpu, iops in ((9, 10), (1, 50), (3, 30), (2, 40), (4, 20))]
    made = samples_of({KEY: runs})
    assert made.quartiles(KEY, "server_cpu") == Quartiles(2, 3, 4)
    assert (made.get(KEY, "server_cpu"), made.get(KEY, "iops")) == (2, 40)
    assert made.typical_spread() == pytest.approx(1 / 3)


def test_what_was_not_measured_has_no_figure_and_no_ratio() -> None:
    made = samples_of({KEY: [figures(6)], KEY._replace(peer="idle"): [figures(0)]})
    assert made.get(KEY._replace(placement=Placement.CORE_EACH), "server_cpu") is None
    assert made.quartiles(KEY._replace(case="other"), "iops") is None
    assert made.ratio(KEY, "missing", "server_cpu") is None
    assert made.ratio(KEY, "idle", "server_cpu") is None
    assert Samples().typical_spread() == 0


def test_ratio_is_of_the_same_case_and_placement() -> None:
    other = KEY._replace(peer="other")
    made = samples_of({KEY: [figures(6)], other: [figures(4)]})
    assert made.ratio(KEY, "other", "server_cpu") == 1.5
    assert made.ratio(KEY._replace(case="x"), "other", "server_cpu") is None


def test_memory_has_medians() -> None:
    made = Samples()
    for idle in (10, 20):
        made.add_memory("peer", Memory(idle, 100))
    assert made.median_memory() == {"peer": Memory(15, 100)}


def test_json_has_every_run() -> None:
    [run] = samples_of({KEY: [figures(6, 10), figures(7, 11)]}).as_json()["runs"]
    assert (run["case"], run["placement"], run["peer"]) == ("case", "one core", "peer")
    assert (run["server_cpu"], run["iops"]) == ([6, 7], [10, 11])


def test_cost_of_observing_is_the_median_of_the_pairs_ratios() -> None:
    drifting = [(10.0, 11.0), (20.0, 21.0), (40.0, 48.0)]
    assert cost(drifting) == Cost(20.0, 21.0, 1.1)
    assert "statistics" in NAME


# What is asked


def test_bounds_are_met_or_not_by_the_ratio() -> None:
    verdicts = found(judge(socket_samples(), Samples(), FOOTPRINT))
    asked = "CPU, 4k read QD64, one core: at most 0.85 of nbdkit memory"
    assert verdicts[asked] == ("0.50", True)
    asked = "requests per second, 4k read QD64, a core each: at least 1.3 of nbdkit memory"
    assert verdicts[asked] == ("1.60", True)
    asked = "aiovblk, bytes(view): CPU, 256k read QD8, one core: at most 1.2 of nbdkit memory"
    assert verdicts[asked] == ("1.25", False)


def test_what_was_not_measured_is_neither_met_nor_not() -> None:
    verdicts = judge(Samples(), Samples(), None, "v1")
    assert len(verdicts) == len(BOUNDS) + len(bounds_against("v1")) + 3
    assert {each.met for each in verdicts} == {None}


def test_two_workers_are_held_against_one_process() -> None:
    runs = {
        Key(HEAVY.name, Placement.ANY_CORE, SUBJECT): [figures(100, 1000)],
        Key(HEAVY.name, Placement.ANY_CORE, TWO_WORKERS): [figures(100, 1750)],
    }
    [verdict] = [each for each in judge(samples_of(runs), Samples(), None) if each.met is not None]
    assert (verdict.found, verdict.met) == ("1.75", True)
    assert verdict.asked.startswith(f"{TWO_WORKERS}: requests per second, {HEAVY.name}")


def test_another_revision_is_held_against_in_the_kernel() -> None:
    verdicts = judge(Samples(), kernel_run("v1").samples, None, "v1")
    measured = {asked: each for asked, each in found(verdicts).items() if each[1] is not None}
    rate, other = "requests per second, 4k", "of aiovblk at v1"
    assert measured == {
        f"{rate} read QD1, in the kernel: at least 1.3 {other}": ("1.20", False),
        f"{rate} write QD1, in the kernel: at least 1.3 {other}": ("1.20", False),
        f"{rate} read QD32, in the kernel: at least 1.2 {other}": ("1.20", True),
        f"{rate} write QD32, in the kernel: at least 1.2 {other}": ("1.20", True),
    }


def test_bounds_are_of_peers_and_cases_that_there_are() -> None:
    assert {bound.case for bound in BOUNDS} >= {READ, WRITE, BIG_READ}
    assert MEMORY != LIMIT
    assert at_revision("HEAD~3") == "aiovblk at HEAD~3"


def test_memory_that_grows_is_not_met() -> None:
    growing = replace(FOOTPRINT, growth=100_000, large=900_000, deep=900_000)
    assert memory_verdicts(growing) == [False, False, False]
    assert memory_verdicts(FOOTPRINT) == [True, True, True]


def memory_verdicts(footprint: Footprint) -> list[bool | None]:
    verdicts = judge(Samples(), Samples(), footprint)
    return [each.met for each in verdicts if each.asked.startswith("memory")]
