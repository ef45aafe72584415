"""The pages, the JSON and the picture, of made-up figures."""

from __future__ import annotations

import json
import platform
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import machine, tables
from bench.asked import LIMIT, MEMORY
from bench.cases import CONNECTIONS, HEAVY, READ
from bench.peers.ours import SUBJECT, TWO_WORKERS
from bench.picture import bars, draw
from bench.placement import Placement
from bench.report import DATA, FIGURES_PAGE, PAGE, PICTURE, figures_page, page, write
from bench.sections import UBLK, with_section
from bench.summary import Key, Samples
from bench.tables import Column
from tests.support.bench_samples import figures, samples_of, socket_samples, whole_run

ONE, EACH = Placement.ONE_CORE, Placement.CORE_EACH
NOTHING = replace(
    whole_run(), samples=Samples(), clients=Samples(), footprint=None, kernel=None, observing=None
)


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n\n")[2].partition("\n## ")[0]


def row(text: str, name: str) -> list[str]:
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    [found] = [cells[1:] for cells in rows if cells[0] == name]
    return found


def test_table_is_aligned() -> None:
    assert tables.table(["server", "µs"], [["a", "1.5"], ["longer", ""]]).splitlines() == [
        "| server |  µs |",
        "|--------|----:|",
        "| a      | 1.5 |",
        "| longer |     |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1,234")],
)
def test_figure_has_three_digits(value: float | None, text: str) -> None:
    assert tables.FIGURES["p50"].text(value) == text


def test_rows_and_columns_of_which_nothing_was_measured_are_left_out() -> None:
    made = samples_of({Key("a", ONE, MEMORY): [figures(4)], Key("b", ONE, "only b"): [figures(9)]})
    text = tables.compared(made, [Column(each, "server_cpu", each, ONE) for each in ("a", "c")])
    assert text.splitlines() == [
        "| ratio to nbdkit memory |    a |",
        "|------------------------|-----:|",
        "| nbdkit memory          | 4.00 |",
    ]


def test_each_cell_has_its_ratio_where_there_is_one() -> None:
    made = samples_of(
        {
            Key("a", ONE, MEMORY): [figures(4, 2000)],
            Key("a", ONE, "x"): [figures(5, 3000)],
            Key("b", ONE, "x"): [figures(7)],
        }
    )
    columns = [Column(each, "server_cpu", each, ONE) for each in ("a", "b")]
    text = tables.compared(made, [*columns, Column("rate", "iops", "a", ONE)])
    assert row(text, "x") == ["5.00 (1.25)", "7.00", "3.00 (1.50)"]
    assert row(text, MEMORY) == ["4.00", "", "2.00"]


def test_growth_has_workers_and_connections_beside_depths() -> None:
    heavy = Key(HEAVY.name, Placement.ANY_CORE, SUBJECT)
    made = samples_of(
        {
            Key(READ.name, ONE, SUBJECT): [figures(2)],
            Key(READ.name, EACH, SUBJECT): [figures(3, 90_000)],
            Key(CONNECTIONS[0].name, ONE, MEMORY): [figures(4)],
            heavy: [figures(700, 1500)],
            heavy._replace(peer=TWO_WORKERS): [figures(800, 2600)],
        }
    )
    text = tables.growth_table(made)
    assert row(text, "4k read QD64") == ["", "2.00", "3.00", "90.0"]
    assert row(text, CONNECTIONS[0].name) == ["4.00", "", "", ""]
    assert [line.split("|")[1].strip() for line in text.splitlines()[-2:]] == [
        f"16k read, unpacking bz2, {how}, any core" for how in ("one process", "two workers")
    ]


def test_page_has_five_tables_and_each_names_its_placement() -> None:
    text = page(whole_run(), picture=PICTURE)
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert titles == [
        "CPU time of the server per request, one core",
        "CPU time of the server per request, a core each",
        "Thousand requests per second",
        "Depth, connections, workers",
        "In the kernel",
    ]
    assert row(section(text, titles[0]), SUBJECT)[0] == "8.00 (0.50)"
    head = section(text, titles[2]).splitlines()[0]
    assert "one core" in head
    assert "a core each" in head
    assert f"![CPU time per request and requests per second]({PICTURE})" in text
    assert "`at v1` is the package as git has it there" in text
    assert "make bench\n" in text
    assert "{" not in text
    assert all(len(line) <= 100 or "|" in line or "](" in line for line in text.splitlines())


def test_page_has_both_comparisons_of_the_kernel() -> None:
    found = section(page(whole_run()), "In the kernel")
    first, _, second = found.partition("ratio to aiovblk at v1")
    assert row(first, SUBJECT)[0] == "1.20 (1.20)"
    assert row(f"| {second}", SUBJECT)[0] == "1.20 (1.20)"
    assert "Linux 6.1" in first


def test_figures_that_must_not_be_published_say_so() -> None:
    assert "Not to be published" not in page(whole_run())
    text = page(replace(whole_run(), unoptimized=["3.13"]))
    assert "**Not to be published:** Python 3.13 was built without PGO" in text


def test_figures_page_has_quartiles_bounds_and_all_else() -> None:
    text = figures_page(whole_run())
    assert "* processor: one of many" in text
    asked = section(text, "What is asked")
    assert "0.50 |" in asked
    assert "**not met**" in asked
    assert "not measured" not in asked
    each = section(text, "CPU time of the server per request, microseconds, a core each")
    assert row(each, LIMIT)[0] == "4.00 4.00 4.00"
    assert "| 3.13   |" in text
    assert "| 4k read QD64             | 8.00 | 8.40 |    1.049 |" in text
    assert "## As a client" in text
    assert "## Time to mount" in text
    assert "{" not in text


def test_pages_have_only_what_was_measured() -> None:
    assert "##" not in page(NOTHING)
    assert "##" not in figures_page(NOTHING)
    kernel = page(replace(NOTHING, kernel=whole_run().kernel))
    assert re.findall(r"^## (.+)$", kernel, re.MULTILINE) == ["In the kernel"]
    one = samples_of({Key(READ.name, ONE, SUBJECT): [figures(2)]})
    assert "a core each\n" not in page(replace(NOTHING, samples=one))


def test_files_are_written_and_can_be_read_again(tmp_path: Path) -> None:
    write(whole_run(), tmp_path / "new")
    data = json.loads((tmp_path / "new" / DATA).read_text())
    [run] = [
        run
        for run in data["runs"]
        if (run["case"], run["placement"], run["peer"]) == (READ.name, "one core", SUBJECT)
    ]
    assert run["server_cpu"] == [8]
    assert data["memory_kib"][SUBJECT]["idle"] == 35_000
    assert data["observing"]["costs"][READ.name] == {"off": 8.0, "on": 8.4, "ratio": 1.049}
    assert data["kernel"]["mount_seconds"][SUBJECT] == {"whole": 8.0, "alone": 0.06}
    assert any(each["met"] for each in data["asked"])
    assert PICTURE in (tmp_path / "new" / PAGE).read_text()
    assert "What is asked" in (tmp_path / "new" / FIGURES_PAGE).read_text()


def test_run_that_has_nothing_to_draw_is_written_without_a_picture(tmp_path: Path) -> None:
    assert not NOTHING.has_picture
    write(NOTHING, tmp_path)
    assert PICTURE not in (tmp_path / PAGE).read_text()


def test_bars_are_of_those_that_were_measured() -> None:
    made = samples_of({Key(READ.name, ONE, SUBJECT): [figures(2)]})
    assert bars(made, READ, ONE) == [(SUBJECT, 2)]
    assert bars(made, READ, EACH) == []


def test_picture_is_drawn_where_it_can_be(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install 'aiovblk[bench]'")
    path = tmp_path / "p.svg"
    assert draw(socket_samples(), path)
    text = path.read_text()
    assert "4k read, depth 64, one core" in text
    assert "4k read, depth 1, a core each" in text
    alone = samples_of({Key(READ.name, EACH, SUBJECT): [figures(2)]})
    assert draw(alone, path)
    assert "one core" not in path.read_text()


def test_machine_tells_how_fast_an_interpreter_is() -> None:
    told = machine._output((sys.executable, "-c", machine._AWAITING))
    assert told is not None
    assert re.fullmatch(rf"{platform.python_version()}, .+; \d+ ns to await a .+", told)
    assert machine._output(("no-such-program",)) is None


def test_section_of_the_other_benchmark_is_kept(tmp_path: Path) -> None:
    target = tmp_path / PAGE
    target.write_text(with_section("# Old\n", UBLK, "| its table |"))
    write(whole_run(), tmp_path)
    assert target.read_text().endswith(f"## {UBLK}\n\n| its table |\n")
    assert "# Old" not in target.read_text()
