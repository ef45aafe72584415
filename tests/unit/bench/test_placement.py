"""Which processors servers and clients get, and how fast a process is known to have used them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import placement, process
from bench.machine import Others, parse_busy
from bench.placement import Placement, PlacementError, Processors, choose, parse_list
from bench.process import cpu_seconds, parse_status

FOUR = frozenset({0, 1, 2, 3})


@pytest.fixture
def cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four processors of this process's, of which 0 and 1, 2 and 3 share a core."""
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        topology = tmp_path / f"cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(placement, "CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(FOUR))
    return tmp_path


def test_list_of_processors_is_the_kernel_s() -> None:
    assert parse_list("0-2,8\n") == {0, 1, 2, 8}
    assert parse_list("") == set()


@pytest.mark.usefixtures("cpus")
def test_client_gets_another_core_than_the_server() -> None:
    assert choose() == Processors(0, 2, FOUR)


@pytest.mark.usefixtures("cpus")
def test_processors_that_are_named_are_taken_as_they_are() -> None:
    assert choose([3, 2]) == Processors(3, 2, frozenset({2, 3}))
    with pytest.raises(PlacementError, match="no processor 9 here"):
        choose([0, 9])


@pytest.mark.usefixtures("cpus")
def test_one_core_has_room_for_one_placement() -> None:
    alone = choose([1])
    assert [alone.allows(each) for each in Placement] == [True, False, False, False]
    assert all(choose().allows(each) for each in Placement)


def test_server_and_client_share_a_core_or_have_one_each() -> None:
    found = {each: Processors(0, 2, FOUR).cpus(each) for each in Placement}
    assert found[Placement.ONE_CORE] == (frozenset({0}), frozenset({0}))
    assert found[Placement.CORE_EACH] == (frozenset({0}), frozenset({2}))
    assert found[Placement.ANY_CORE] == (FOUR, FOUR)


def test_all_threads_of_a_server_and_its_children_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[int, frozenset[int]]] = []
    for task, children in (("5/task/5", "7"), ("5/task/6", ""), ("7/task/7", "")):
        (tmp_path / task).mkdir(parents=True)
        (tmp_path / task / "children").write_text(children)
    for module in (placement, process):
        monkeypatch.setattr(module, "PROC", tmp_path)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: moved.append((pid, cpus)))
    Processors(0, 2, FOUR).place(5, Placement.CORE_EACH)
    servers = frozenset({0})
    assert sorted(moved[:-1]) == [(5, servers), (6, servers), (7, servers)]
    assert moved[-1] == (0, frozenset({2}))


def test_processor_that_a_process_is_moved_to_is_the_one_it_runs_on() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    cpu = min(os.sched_getaffinity(0))
    placement.pin_threads(process.pid, frozenset({cpu}))
    found = os.sched_getaffinity(process.pid)
    process.communicate(b"\n")
    assert found == {cpu}


def test_cpu_clock_of_a_process_goes_on_while_it_works() -> None:
    before = time.process_time()
    measured = cpu_seconds(os.getpid())
    assert before <= measured <= time.process_time()


def test_thread_that_ends_while_its_children_are_asked_for_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in ("1/task/1", "1/task/5", "2/task/2"):
        (tmp_path / task).mkdir(parents=True)
    (tmp_path / "1/task/1/children").write_text("2 ")
    (tmp_path / "2/task/2/children").write_text("")
    monkeypatch.setattr(process, "PROC", tmp_path)
    assert process.tree(1) == [1, 2]


def test_memory_is_found_by_the_field_s_whole_name() -> None:
    status = "Name:\tx\nVmPeak:\t  99 kB\nVmHWM:\t  21 kB\nVmRSS:\t  20 kB\n"
    assert (parse_status(status, "VmRSS"), parse_status(status, "VmHWM")) == (20, 21)
    with pytest.raises(ValueError, match="no RSS"):
        parse_status(status, "RSS")


def test_processors_that_others_have_are_those_not_idle() -> None:
    assert parse_busy("cpu  10 20 30 9999 8888 4 5 6 10 0\ncpu0 1 1 1\n") == 75
    assert Others().processors() >= 0
