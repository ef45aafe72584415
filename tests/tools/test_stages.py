"""tools/test: what each size runs, on which Pythons and kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from suite import environments, stages

from .conftest import TOOLS


def names(scope: stages.Scope, stage: str, *words: str) -> list[str]:
    plan = stages.Plan(scope, words)
    return [each.name for each in stages.STAGES[stage](plan)]


def commands(scope: stages.Scope, stage: str, *words: str) -> list[str]:
    plan = stages.Plan(scope, words)
    return [" ".join(each.command) for each in stages.STAGES[stage](plan)]


def test_check_has_one_python_on_all_processors(tree: Path) -> None:
    (command,) = commands("check", "unit")
    assert f"--tx={2 * (os.cpu_count() or 1)}*popen" in command
    assert "--loops either" in command
    assert "-m not slow" in command
    assert "--long" not in command


def test_test_has_the_oldest_and_the_newest_python(tree: Path) -> None:
    assert names("test", "unit") == ["unit tests, Python 3.11", "unit tests, Python 3.13"]
    assert all("--loops either" in command for command in commands("test", "unit"))
    assert all("--slow half" in command for command in commands("test", "unit"))
    assert ["--half first" in command for command in commands("test", "unit")] == [True, False]
    assert ["--half second" in command for command in commands("test", "unit")] == [False, True]
    assert names("test", "interop") == ["interop, Python 3.13"]


def halves(scope: stages.Scope, stage: str) -> list[str]:
    """Return the half that each step does, where it is told which."""
    found = [command.partition("--half ")[2].split() for command in commands(scope, stage)]
    return [words[0] if words else "" for words in found]


@pytest.mark.parametrize(
    ("versions", "of_all", "of_all_kernels"),
    [
        ("3.11 3.12", ["first", ""], ["second"] * 4 + ["first"] * 2),
        ("3.12 3.13", ["first", ""], ["second"] * 4 + ["first"] * 2),
        ("3.11 3.12 3.13", ["first", "second", ""], ["second"] * 4 + ["first"] * 2),
        ("3.13", [""], ["first", "second", "second", "first"]),
    ],
)
def test_halves_go_by_the_pythons_there_are_or_else_by_the_kernels(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    versions: str,
    of_all: list[str],
    of_all_kernels: list[str],
) -> None:
    monkeypatch.setenv("PYTHONS", versions)
    assert halves("all", "unit") == of_all
    assert halves("all", "kernel") == of_all_kernels
    assert halves("test", "unit") == (["first", "second"] if " " in versions else [""])
    assert halves("test", "kernel") == ["first", "second"]
    assert halves("part", "unit") == halves("part", "kernel") == halves("check", "unit") == [""]


TESTS = """
import asyncio
import pytest

def note(name):
    with open("noted", "a") as file:
        print(name, type(asyncio.get_running_loop()).__module__.split(".")[0], file=file)

@pytest.mark.parametrize("number", range(8))
async def test_either(number):
    note(f"either{number}")

@pytest.mark.one_loop
async def test_one_loop():
    note("one_loop")

@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
async def test_slow(number):
    note(f"slow{number}")
"""


def test_two_halves_run_each_slow_test_once_and_others_on_both_loops(tmp_path: Path) -> None:
    (tmp_path / "test_halves.py").write_text(TESTS)
    runs: list[set[tuple[str, str]]] = []
    for number in ("first", "second"):
        command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "test_halves.py"]
        command += ["-o", "asyncio_mode=auto", "--loops", "either", "--slow", "half"]
        subprocess.run(
            [*command, "--half", number],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{TOOLS.parent}"},
            check=True,
        )
        noted = (tmp_path / "noted").read_text().splitlines()
        runs.append({(test, loop) for test, loop in map(str.split, noted)})
        (tmp_path / "noted").unlink()
    first, second = runs
    assert {(test, loop) for test, loop in first | second if "slow" not in test} == {
        (test, loop)
        for test in ("one_loop", *(f"either{number}" for number in range(8)))
        for loop in ("asyncio", "uvloop")
    }
    assert not first & second
    slow = [[test for test, _ in sorted(run) if "slow" in test] for run in runs]
    assert sorted(slow[0] + slow[1]) == [f"slow{number}" for number in range(8)]
    assert all(slow)
    assert ("one_loop", "asyncio") in first


def test_each_test_of_test_runs_on_both_loops_where_there_is_one_python(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONS", "3.13")
    (command,) = commands("test", "unit")
    assert "--loops" not in command
    assert "--slow half" not in command


def test_test_has_the_core_on_both_kernels_attached_differently(tree: Path) -> None:
    first, second = commands("test", "kernel")
    assert "--kernel 6.1 " in first
    assert "3.11/bin/python" in first
    assert "--attach ioctl" in first
    assert "--slow half -m core" in first
    assert "--half first" in first
    assert "--kernel 6.12 " in second
    assert "3.13/bin/python" in second
    assert "--attach netlink" in second
    assert "--slow half -m core" in second
    assert "--half second" in second


def test_all_has_a_guest_for_each_kernel_and_python_in_which_attachments_alternate(
    tree: Path,
) -> None:
    found = {
        name: (
            command.partition("--attach ")[2].split()[0],
            command.partition("--half ")[2].split()[0],
            command.partition("--long")[2].strip(),
        )
        for name, command in zip(names("all", "kernel"), commands("all", "kernel"), strict=True)
    }
    assert found == {
        "kernel tests, Linux 6.1, Python 3.13": ("netlink", "second", ""),
        "kernel tests, Linux 6.12, Python 3.13": ("ioctl", "second", "-m not ublk"),
        "kernel tests of ublk, Linux 6.12, Python 3.13": ("ioctl", "second", "-m ublk"),
        "kernel tests, Linux 7.3, Python 3.13": ("netlink", "second", "-m core or ublk"),
        "kernel tests, Linux 6.1, Python 3.11": ("ioctl", "first", "-m not newest_python"),
        "kernel tests, Linux 6.12, Python 3.11": ("netlink", "first", "-m not newest_python"),
    }
    for name, command in zip(names("all", "kernel"), commands("all", "kernel"), strict=True):
        _, kernel, version = (part.split()[-1] for part in name.split(","))
        assert f"--kernel {kernel} " in command
        assert f".venvs/{version}/bin/python -m compileall -q aiovblk tests" in command
        assert f".venvs/{version}/bin/python -m pytest --co -q tests/kernel" in command


def test_timeout_of_guests_is_not_in_their_commands_which_a_resumed_run_compares(
    tree: Path,
) -> None:
    plan = stages.Plan("all")
    for step in (*stages.kernel(plan), *stages.systemd(plan)):
        assert "--timeout" not in step.command
        assert float(step.variables["VM_TIMEOUT"]) < step.deadline


def test_kernel_of_backports_is_only_for_the_kernel_tests(tree: Path) -> None:
    assert not any("7.3" in name for stage in ("systemd", "debian") for name in names("all", stage))


def test_kernel_of_backports_is_tested_elsewhere_where_it_is_asked_for(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = names("all", "kernel")
    monkeypatch.setenv("KERNELS", "7.3")
    assert names("all", "kernel") == ["kernel tests, Linux 7.3, Python 3.13"]
    assert names("test", "kernel") == ["kernel core, Linux 7.3, Python 3.13"]
    (command,) = commands("part", "kernel")
    assert "--kernel 7.3 " in command
    assert "--attach netlink" in command
    assert names("all", "systemd") == ["systemd, Linux 7.3"]
    assert "package for Debian trixie, Linux 7.3" in names("all", "debian")
    monkeypatch.setenv("KERNELS", "6.1 6.12 7.3")
    assert names("all", "kernel") == everywhere


def test_all_has_every_python_and_says_which_is_missing(tree: Path) -> None:
    plan = stages.Plan("all")
    found = [each.name for each in stages.unit(plan)]
    kinds = {"3.11": "", "3.12": "", "3.13": "long "}
    assert found == [f"{kind}unit tests, Python {each}" for each, kind in kinds.items()]
    assert ["--long" in each for each in commands("all", "unit")] == [False, False, True]
    assert ["--loops either" in each for each in commands("all", "unit")] == [True, True, False]
    assert not any("--slow" in each for each in commands("all", "unit"))
    assert plan.left_out == ["unit tests, Python 3.14: it is not here"]


def test_python_with_a_root_of_its_own_runs_there_and_not_in_guests(tree: Path) -> None:
    home = tree / ".venvs" / "3.14"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").symlink_to("/usr/bin/no-such-python")
    (home / "root").symlink_to(tree / "elsewhere")
    (tree / "elsewhere").mkdir()
    assert commands("all", "unit")[-1].startswith(f"tools/in-root {tree}/elsewhere .venvs/3.14/")
    assert all("3.14" not in command for command in commands("all", "kernel"))


def test_packages_for_debian_are_built_before_they_are_installed_in_their_release(
    tree: Path,
) -> None:
    wheel, *others = stages.debian(stages.Plan("all"))
    assert wheel.command == ["tools/packages", "python"]
    for built, installed, suite, kernel in zip(
        others[:2], others[2:], ("bookworm", "trixie"), ("6.1", "6.12"), strict=True
    ):
        assert built.command == ["tools/packages", "deb", suite, "--depends"]
        assert (built.after, installed.after) == (wheel.name, built.name)
        assert f"--systemd --kernel {kernel} " in " ".join(installed.command)
        assert installed.command[-1] == "tests/debian"


def test_part_takes_paths_and_options_and_no_xdist(tree: Path) -> None:
    (tree / "tests/unit/test_x.py").touch()
    (command,) = commands("part", "unit", "tests/unit/test_x.py", "-k", "name")
    assert command.endswith("tests/unit/test_x.py -k name")
    (command,) = commands("part", "unit", "-k", "name")
    assert command.endswith("tests/unit -k name")
    (command,) = commands("part", "kernel", "--attach", "ioctl")
    assert "--kernel 6.12" in command
    assert command.rindex("--attach ioctl") > command.rindex("--attach netlink")


def test_environment_variables_narrow_the_matrix(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONS", "3.12")
    monkeypatch.setenv("KERNELS", "6.1")
    assert names("test", "unit") == ["unit tests, Python 3.12"]
    assert names("test", "kernel") == ["kernel core, Linux 6.1, Python 3.12"]
    monkeypatch.setenv("PYTHONS", "3.9")
    with pytest.raises(environments.SetupError, match=r"Python 3\.9: run make setup"):
        names("test", "unit")
