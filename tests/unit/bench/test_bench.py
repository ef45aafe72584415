"""The benchmark's arithmetic and its reports, on made-up numbers: no speed is judged here."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench import load, machine, process, tables
from bench.__main__ import command_line, matches
from bench.asked import (
    BOUNDS,
    KERNEL_BOUNDS,
    LIMIT,
    MEMORY,
    PYTHON,
    SERIAL,
    judge,
    possible_iops,
)
from bench.attach import Mount
from bench.cases import (
    BIG_READ,
    BIG_WRITE,
    CASES,
    FOUR,
    HEAVY,
    KERNEL_CASES,
    KERNEL_READ,
    PART,
    READ,
    SLOW,
    WRITE,
    Backend,
)
from bench.footprint import Footprint
from bench.kernel import (
    LONGEST_ROUND,
    Collected,
    KernelRun,
    guest_command,
    machine_command,
)
from bench.machine import Others, parse_busy
from bench.observing import NAME, Cost, Observing, cost
from bench.peers import Peer, all_peers, attached_peers
from bench.picture import draw
from bench.process import cpu_seconds, parse_status
from bench.report import SUBJECTS, Run, page, write
from bench.rounds import rotated
from bench.summary import NOTHING, Figures, Memory, Samples, Summary

US = SUBJECTS[0]
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


def summary(**cpu: dict[str, Figures]) -> Summary:
    return Summary(cpu, {})


def made_up() -> Summary:
    cases = (READ, WRITE, BIG_READ, BIG_WRITE, SLOW)
    peers = {
        LIMIT: figures(4),
        MEMORY: figures(16, 50_000),
        PYTHON: figures(50, 10_000),
        US: figures(8, 80_000),
    }
    return Summary({case.name: dict(peers) for case in cases}, {US: Memory(35_000, 300_000)})


def made_up_run() -> Run:
    return Run(
        command="make bench",
        rounds=4,
        spread=0.034,
        processors=2,
        machine={"processor": "one of many"},
        summary=made_up(),
        footprint=FOOTPRINT,
        kernel=made_up_kernel(),
        observing=Observing("3.13.0", 25, {READ.name: Cost(8.0, 8.4, 1.049)}),
    )


def made_up_kernel() -> KernelRun:
    peers = {SERIAL: figures(10, 800), MEMORY: figures(12, 1000), US: figures(9, 1200)}
    return KernelRun(
        machine={"kernel": "Linux 6.1"},
        rounds=3,
        spread=0.1,
        others=0.25,
        summary=Summary({case.name: dict(peers) for case in KERNEL_CASES}, {}),
        mounts={SERIAL: Mount(0.1, None), US: Mount(8.0, 0.06)},
    )


# Parsing


def fio_output(**changes: object) -> str:
    mixed = {
        "total_ios": 40_000,
        "iops": 88_000.5,
        "bw_bytes": 360_448_000,
        "lat_ns": {"percentile": {"50.000000": 700_000, "99.000000": 2_300_000}},
    }
    times = {"usr_cpu": 20.0, "sys_cpu": 30.0, "job_runtime": 3000}
    job = {"error": 0, "mixed": mixed, **times, **changes}
    report = json.dumps({"fio version": "fio-3.33", "jobs": [job]}, indent=2)
    return f"fio: connected to NBD server\n{report}\nfio: a line after it\n"


def test_fio_output_between_other_lines_is_read() -> None:
    assert load.parse(fio_output()) == load.Load(40_000, 88_000.5, 360_448_000, 700.0, 2300.0, 1.5)


def test_fio_error_is_told() -> None:
    with pytest.raises(load.LoadError, match="error 5"):
        load.parse(fio_output(error=5))


def test_server_that_answers_nothing_is_an_error() -> None:
    with pytest.raises(load.LoadError, match="no request"):
        load.parse(fio_output(mixed={"total_ios": 0}))


@pytest.mark.parametrize("output", ["", "fio: failed", '{\n  "jobs": []\n}', '{\n  "jobs": [{'])
def test_fio_output_without_figures_is_an_error(output: str) -> None:
    with pytest.raises(load.LoadError, match="not what fio usually says"):
        load.parse(output)


def test_depth_and_requests_are_shared_by_connections() -> None:
    command = load.command(FOUR, load.nbd_target(Path("/run/s")))
    assert "--uri=nbd+unix:///?socket=/run/s" in command
    assert "--numjobs=4" in command
    assert "--iodepth=16" in command
    assert f"--io_size={FOUR.requests // 4 * 4096}" in command


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


# Medians and ratios


def test_summary_has_the_median_of_each_field() -> None:
    samples = Samples()
    for cpu, iops in ((1.0, 30.0), (9.0, 10.0), (2.0, 20.0)):
        samples.add("case", "peer", figures(cpu, iops))
    assert samples.summary().figures["case"]["peer"] == figures(2.0, 20.0)
    assert samples.spread("case", "peer") == 3.5
    assert samples.spread("case", "peer", "iops") == 0.5


def test_memory_has_medians_too() -> None:
    samples = Samples()
    for idle in (10, 20):
        samples.add_memory("peer", Memory(idle, 100))
    assert samples.summary().memory == {"peer": Memory(15, 100)}


def test_ratio_is_of_two_medians_or_none() -> None:
    found = summary(case={"a": figures(6), "b": figures(4), "idle": figures(0)})
    assert found.ratio("case", "a", "b", "server_cpu") == 1.5
    assert found.ratio("case", "a", "missing", "server_cpu") is None
    assert found.ratio("other", "a", "b", "server_cpu") is None
    assert found.ratio("case", "a", "idle", "server_cpu") is None


def test_cost_of_observing_is_the_median_of_the_pairs_ratios() -> None:
    drifting = [(10.0, 11.0), (20.0, 21.0), (40.0, 48.0)]
    assert cost(drifting) == Cost(20.0, 21.0, 1.1)


def test_cost_of_observing_is_a_case_by_its_name() -> None:
    assert matches(NAME, ["statistics"])
    assert not matches(NAME, ["QD64"])


# What is asked


def test_bounds_are_met_or_not_by_the_ratio() -> None:
    verdicts = {each.asked: each for each in judge(made_up(), FOOTPRINT, US, 2)}
    cpu = verdicts["server CPU, 4k read QD64: at most 0.6 of nbdkit memory"]
    assert (cpu.found, cpu.met) == ("0.50", True)
    big = verdicts["server CPU, 256k read QD8: at most 1.5 of bare C loop"]
    assert (big.found, big.met) == ("2.00", False)
    iops = verdicts["requests per second, 4k write QD64: at least 1.5 of nbdkit memory"]
    assert (iops.found, iops.met) == ("1.60", True)


def test_what_was_not_measured_is_neither_met_nor_not() -> None:
    verdicts = judge(summary(), None, US, 2)
    assert len(verdicts) == len(BOUNDS) + 6 + len(KERNEL_BOUNDS)
    assert {each.met for each in verdicts} == {None}


def test_two_workers_are_held_against_one_process() -> None:
    peers = {US: figures(100, 1000), f"{US}, 2 workers": figures(100, 1750)}
    measured = Summary({HEAVY.name: peers}, {})
    [verdict] = [each for each in judge(measured, None, US, 2) if "workers" in each.asked]
    assert (verdict.found, verdict.met) == ("1.75", True)
    [verdict] = [each for each in judge(measured, None, US, 1) if "workers" in each.asked]
    assert verdict.met is None


def test_the_oldest_python_is_held_against_the_newest_on_the_same_loop() -> None:
    peers = {
        "aiovblk 3.11 uvloop": figures(15, 1000),
        "aiovblk 3.13 uvloop": figures(10, 1400),
        "aiovblk 3.11 asyncio": figures(18, 1000),
        "aiovblk 3.13 asyncio": figures(12, 1650),
    }
    measured = Summary({READ.name: peers}, {})
    [verdict] = [each for each in judge(measured, None, US, 2) if "Python 3.11" in each.asked]
    assert (verdict.found, verdict.met) == (f"1.65 at worst ({READ.name}, asyncio)", False)


def test_processor_time_bounds_the_slow_back_end() -> None:
    assert possible_iops(2.0, 4.0, 2) == 128_000
    assert possible_iops(20.0, 5.0, 2) == 50_000
    assert possible_iops(20.0, 5.0, 1) == 40_000


def test_memory_that_grows_is_not_met() -> None:
    growing = replace(FOOTPRINT, growth=100_000, large=900_000, deep=900_000)
    assert memory_verdicts(growing) == [False, False, False]
    assert memory_verdicts(FOOTPRINT) == [True, True, True]


def memory_verdicts(footprint: Footprint) -> list[bool | None]:
    verdicts = judge(made_up(), footprint, US, 2)
    return [each.met for each in verdicts if each.asked.startswith("memory")]


def test_kernel_s_bounds_are_held_against_the_kernel_s_figures() -> None:
    # Of its own cases: those of the same name on sockets do not count.
    verdicts = judge(made_up(), None, US, 2, made_up_kernel().summary)[-len(KERNEL_BOUNDS) :]
    found = {
        each.asked.removeprefix("in the kernel: requests per second, "): (each.found, each.met)
        for each in verdicts
    }
    assert found["4k read QD32: at least 1.3 of nbdkit memory"] == ("1.20", False)
    assert found["4k read QD32: at least 1.25 of C, one request at a time"] == ("1.50", True)


# In the kernel


def test_what_a_guest_tells_is_put_together() -> None:
    collected = Collected()
    told: list[dict[str, object]] = [{"machine": {"kernel": "Linux 6.1"}}]
    for cpu, whole in ((1.0, 5.0), (3.0, 7.0), (2.0, 6.0)):
        told.append({"peer": US, "mount": {"whole": whole, "alone": None}})
        told.append({"case": "c", "peer": US, "figures": asdict(figures(cpu))})
    told.append({"peer": US, "mount": {"whole": None, "alone": 0.5}})
    for each in told:
        collected.take(json.dumps(each))
    run = collected.run(3, 0.25)
    assert run is not None
    assert run.machine == {"kernel": "Linux 6.1"}
    assert run.summary.get("c", US, "server_cpu") == 2.0
    assert run.mounts == {US: Mount(6.0, 0.5)}


def test_guest_that_tells_nothing_is_no_run() -> None:
    collected = Collected()
    collected.take('{"machine": {}}')
    collected.take(json.dumps({"peer": US, "mount": {"whole": 1.0, "alone": None}}))
    assert collected.run(1, 0.0) is None


def test_guest_gets_the_peers_and_cases_by_name() -> None:
    peers = attached_peers()
    command = guest_command(peers[:1], KERNEL_CASES[:2], 3, quick=True)
    assert command[1:] == [
        *("-m", "bench.guest", "--rounds", "3", "--peers", LIMIT),
        *("--cases", "4k read QD1", "4k write QD1", "--quick"),
    ]
    assert "--quick" not in guest_command(peers, KERNEL_CASES, 3, quick=False)


def test_machine_s_deadline_grows_with_the_rounds() -> None:
    one, two = (machine_command("6.12", rounds) for rounds in (1, 2))
    assert one[1:5] == ["tools/vm", "run", "--kernel", "6.12"]
    seconds = [int(each[each.index("--timeout") + 1]) for each in (one, two)]
    assert seconds[1] - seconds[0] == LONGEST_ROUND


def test_device_is_read_past_the_cache() -> None:
    command = load.command(KERNEL_READ, load.device_target("/dev/nbd3"))
    assert {"--direct=1", "--filename=/dev/nbd3", f"--size={PART}"} <= set(command)


def test_attached_peers_have_names_of_peers_that_are_also_measured_on_sockets() -> None:
    names = [peer.name for peer in attached_peers()]
    assert len(set(names)) == len(names)
    assert {LIMIT, SERIAL, MEMORY, PYTHON, *SUBJECTS} <= set(names)


def test_attached_peer_s_command_names_the_device_or_has_one_that_does() -> None:
    for peer in attached_peers():
        assert any("{device}" in word for word in peer.attach or peer.command)


# Peers and rounds


def test_every_peer_is_named_once_and_can_do_something() -> None:
    peers = all_peers()
    assert len({peer.name for peer in peers}) == len(peers)
    assert {LIMIT, MEMORY, PYTHON, *SUBJECTS} <= {peer.name for peer in peers}
    assert all(any(peer.can(case) for case in CASES) for peer in peers)


def test_one_connection_is_not_asked_for_four() -> None:
    peer = Peer("p", {Backend.MEMORY: ("true",)}, ("true",), "none", connections=1)
    assert [peer.can(case) for case in (READ, FOUR, SLOW)] == [True, False, False]


def test_missing_program_is_not_there() -> None:
    commands = {Backend.MEMORY: ("true",)}
    assert Peer("p", commands, ("true",), "none").is_there()
    assert not Peer("p", commands, ("false",), "none").is_there()
    assert not Peer("p", commands, ("no-such-program",), "none").is_there()


def test_each_round_has_the_same_peers_in_another_order() -> None:
    peers = all_peers()
    orders = [[peer.name for peer in rotated(peers, number)] for number in range(3)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({order[0] for order in orders}) == 3


def test_names_are_matched_by_any_part() -> None:
    assert matches("nbdkit memory", [])
    assert matches("nbdkit memory", ["qemu", "NBDKIT"])
    assert not matches("nbdkit memory", ["qemu"])


def test_page_names_the_command_that_makes_it() -> None:
    assert command_line([]) == "make bench"
    assert command_line(["--rounds", "3"]) == "make bench BENCH='--rounds 3'"


# Reports


def test_machine_tells_how_fast_an_interpreter_is() -> None:
    told = machine._output((sys.executable, "-c", machine._AWAITING))
    assert told is not None
    assert re.fullmatch(rf"{platform.python_version()}, .+; \d+ ns to await a .+", told)
    assert machine._output(("no-such-program",)) is None


def test_table_is_aligned() -> None:
    assert tables.table(["server", "µs"], [["a", "1.5"], ["longer", ""]]).splitlines() == [
        "| server |  µs |",
        "|--------|----:|",
        "| a      | 1.5 |",
        "| longer |     |",
    ]


def test_page_has_figures_ratios_and_verdicts() -> None:
    text = page(made_up_run())
    assert "off by 3%" in text
    assert "* processor: one of many" in text
    asked = text.partition("## What is asked\n\nThe bounds ")[2].partition("\n## ")[0]
    assert asked.splitlines()[4].split("|")[-2].strip() == LIMIT
    assert "| server CPU, 4k read QD64: at most 2.2 of bare C loop " in asked
    assert "0.50, met" in text
    assert "2.00, **not met**" in text
    assert "1.20, **not met**" in text
    assert "| aiovblk 3.13 uvloop      |     8,000 |              60 |" in text
    assert "| 3.13   |" in text
    assert "| 4k read QD64             | 8.00 | 8.40 |    1.049 |" in text
    assert "{" not in text


def test_page_has_only_what_was_measured() -> None:
    without = page(replace(made_up_run(), kernel=None))
    assert "## In the kernel" not in without
    assert "not measured, -" in without
    alone = page(replace(made_up_run(), summary=NOTHING, footprint=None, observing=None))
    assert "## Statistics" not in alone
    assert "Unix socket" not in alone
    assert "## Memory" not in alone
    assert "## In the kernel" in alone


def test_files_are_written_and_can_be_read_again(tmp_path: Path) -> None:
    write(made_up_run(), tmp_path / "new")
    data = json.loads((tmp_path / "new/performance.json").read_text())
    assert data["figures"][READ.name][US]["server_cpu"] == 8
    assert data["memory_kib"][US]["idle"] == 35_000
    assert data["asked"][US][0]["met"] is True
    assert data["observing"]["costs"][READ.name] == {"off": 8.0, "on": 8.4, "ratio": 1.049}
    assert data["kernel"]["mount_seconds"][US] == {"whole": 8.0, "alone": 0.06}
    assert data["kernel"]["figures"][KERNEL_READ.name][US]["iops"] == 1200
    assert "performance.svg" in (tmp_path / "new/performance.md").read_text()


def test_run_that_has_nothing_to_draw_is_written_without_a_picture(tmp_path: Path) -> None:
    run = replace(made_up_run(), summary=NOTHING, kernel=None)
    assert not run.has_picture
    write(run, tmp_path)
    assert "performance.svg" not in (tmp_path / "performance.md").read_text()


def test_picture_is_drawn_where_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "p.svg"
    assert draw(made_up(), made_up_kernel().summary, path) == path.exists()
    assert draw(made_up(), NOTHING, path) == path.exists()
    assert draw(NOTHING, made_up_kernel().summary, path) == path.exists()
