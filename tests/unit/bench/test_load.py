"""The command lines of loadgen and fio, and what is read of their output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import fio, loadgen
from bench.cases import CONNECTIONS, FILL, KERNEL_READ, MIXED, PART, READ, READ_QD1
from bench.figures import Figures, LoadError
from bench.load import Server, measure

FOUR = CONNECTIONS[-1]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


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


def loadgen_output(**changes: object) -> str:
    told = {"requests": 2000, "seconds": 0.5, "server_cpu": 0.01, "client_cpu": 0.004}
    return json.dumps({**told, "p50": 14.5, "p99": 60.0, **changes}) + "\n"


def test_loadgen_output_becomes_figures_per_request() -> None:
    assert loadgen.parse(loadgen_output(), READ) == Figures(
        server_cpu=5.0, client_cpu=2.0, iops=4000.0, megabytes=16.384, p50=14.5, p99=60.0
    )


@pytest.mark.parametrize("output", ["", "loadgen: no", "{}", "[1]", loadgen_output(requests="x")])
def test_loadgen_output_without_figures_is_an_error(output: str) -> None:
    with pytest.raises(LoadError, match="not what loadgen usually says"):
        loadgen.parse(output, READ)


def test_loadgen_that_measured_nothing_is_an_error() -> None:
    with pytest.raises(LoadError, match="no request"):
        loadgen.parse(loadgen_output(requests=0), READ)


def test_loadgen_is_told_depth_by_connection_and_the_server_s_processes() -> None:
    command = loadgen.command(FOUR, Path("/run/s"), [7, 9])
    assert (option(command, "--connections"), option(command, "--depth")) == ("4", "16")
    assert command[-5:] == ["--pid", "7", "--pid", "9", "/run/s"]
    assert "--sequential" not in command


def test_loadgen_warms_up_for_the_depth_at_least_and_not_to_fill() -> None:
    assert option(loadgen.command(READ, Path("s"), []), "--warm-up") == "300"
    assert option(loadgen.command(READ_QD1, Path("s"), []), "--warm-up") == "40"
    fill = loadgen.command(FILL, Path("s"), [])
    assert option(fill, "--warm-up") == "0"
    assert "--sequential" in fill


def test_fio_output_between_other_lines_is_read() -> None:
    assert fio.parse(fio_output(), 2.0) == Figures(
        server_cpu=50.0, client_cpu=37.5, iops=88_000.5, megabytes=360.448, p50=700.0, p99=2300.0
    )


def test_fio_error_is_told() -> None:
    with pytest.raises(LoadError, match="error 5"):
        fio.parse(fio_output(error=5), 1.0)


def test_server_that_answers_nothing_is_an_error() -> None:
    with pytest.raises(LoadError, match="no request"):
        fio.parse(fio_output(mixed={"total_ios": 0}), 1.0)


@pytest.mark.parametrize("output", ["", "fio: failed", '{\n  "jobs": []\n}', '{\n  "jobs": [{'])
def test_fio_output_without_figures_is_an_error(output: str) -> None:
    with pytest.raises(LoadError, match="not what fio usually says"):
        fio.parse(output, 1.0)


def test_fio_shares_depth_and_requests_by_connections() -> None:
    command = fio.command(FOUR, fio.target(Path("/run/s"), None))
    assert "--uri=nbd+unix:///?socket=/run/s" in command
    assert {"--numjobs=4", "--iodepth=16", f"--io_size={FOUR.requests // 4 * 4096}"} <= set(command)


def test_fio_has_its_own_words_for_the_order_and_direction() -> None:
    patterns = [fio.command(case, ())[2] for case in (READ, MIXED, FILL)]
    assert patterns == ["--rw=randread", "--rw=randrw", "--rw=write"]


def test_device_is_read_past_the_cache() -> None:
    command = fio.command(KERNEL_READ, fio.target(None, "/dev/nbd3"))
    assert {"--direct=1", "--filename=/dev/nbd3", f"--size={PART}"} <= set(command)


def test_loadgen_is_not_asked_of_a_device() -> None:
    with pytest.raises(LoadError, match="on sockets only"):
        measure(READ, Server(1, device="/dev/nbd0"))
