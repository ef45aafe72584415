"""tools/test: its command line, what it records, and how a run ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from suite import cli, environments, records, stages, steps

from .conftest import TOOLS

PASSED = "===== 3 passed in 0.10s ====="


def say(*lines: str, status: int = 0) -> list[str]:
    """Return a command that prints lines."""
    return ["sh", "-c", 'for line; do echo "$line"; done; exit ' + f"{status}", "sh", *lines]


def step(name: str, command: list[str], deadline: float = 60.0) -> steps.Step:
    return steps.Step("unit", name, command, deadline=deadline)


ONE, TWO = step("one", ["true"]), step("two", ["false"])


def test_records_belong_to_the_tree_as_it_is(tree: Path) -> None:
    records.Records().note(ONE, 1.0, passed=True)
    records.Records().note(TWO, 2.0, passed=False)
    assert records.Records().seconds(ONE) == 1.0
    assert records.Records().seconds(TWO) is None
    (tree / "file").write_text("second\n")
    assert records.Records().seconds(ONE) is None
    (tree / "file").write_text("first\n")
    assert records.Records().seconds(ONE) == 1.0
    (tree / "new").touch()
    assert records.Records().seconds(ONE) is None
    (tree / "new").unlink()
    (tree / "build" / "ignored").touch()
    assert records.Records().seconds(ONE) == 1.0
    status = subprocess.run(["git", "status", "--short"], capture_output=True, check=True)
    assert status.stdout == b""  # the user's own index is left alone


def test_smaller_step_of_the_same_name_does_not_count(tree: Path) -> None:
    records.Records().note(ONE, 1.0, passed=True)
    assert records.Records().seconds(step("one", ["true", "--long"])) is None


def test_failure_takes_a_success_back(tree: Path) -> None:
    records.Records().note(ONE, 1.0, passed=True)
    records.Records().note(ONE, 1.0, passed=False)
    assert records.Records().seconds(ONE) is None


def test_tree_without_git_has_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", f"{tmp_path.parent}")
    monkeypatch.setenv("AIOVBLK_CACHE", f"{tmp_path}/cache")
    records.Records().note(ONE, 1.0, passed=True)
    assert records.Records().seconds(ONE) is None


@pytest.fixture
def fake(tree: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Three steps in place of the real ones, by name, whose commands a test may change."""
    found = {"one": say("1", PASSED), "two": say("2", PASSED), "three": say("3", PASSED)}

    def stage(plan: stages.Plan) -> Iterator[steps.Step]:
        for name, command in found.items():
            yield step(name, command)

    monkeypatch.setattr(cli, "STAGES", {"unit": stage})
    monkeypatch.setattr(cli, "SIZES", {"test": ["unit"], "all": ["unit"]})
    monkeypatch.setattr(cli, "ROOT", tree)
    return found


def run(*arguments: str) -> int:
    sys.argv = ["tools/test", *arguments]
    return cli.main()


def shown(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return capfd.readouterr().out.splitlines()


def test_run_ends_with_the_last_closing_line(
    fake: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    fake["three"] = say("3", "===== 1 passed, 2 skipped in 5.00s =====")
    assert run("test") == 0
    lines = shown(capfd)
    assert [line for line in lines if line in {"1", "2", "3"}] == ["1", "2", "3"]
    assert lines[-1] == "===== 1 passed, 2 skipped in 5.00s ====="
    assert sum(line.startswith("passed") for line in lines) == 3


def test_failure_is_status_1_and_the_others_run_all_the_same(
    fake: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    fake["one"] = say("broken", status=1)
    assert run("test") == 1
    lines = shown(capfd)
    assert [line.split()[0] for line in lines if line.startswith(("passed ", "FAILED "))] == [
        "FAILED",
        "passed",
        "passed",
    ]


def test_resume_runs_what_has_not_passed(
    fake: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    fake["two"] = say("2", status=1)
    assert run("all") == 1
    shown(capfd)
    fake["two"] = say("again", PASSED)
    assert run("all", "--resume") == 0
    lines = shown(capfd)
    assert "again" in lines
    assert "1" not in lines
    assert "3" not in lines
    assert sum("before, for this tree" in line for line in lines) == 2


def test_only_narrows_by_stage_and_by_name(
    fake: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("all", "--only", "t*") == 0
    lines = shown(capfd)
    assert "1" not in lines
    assert "2" in lines
    assert "3" in lines
    assert run("all", "--only", "unit") == 0
    assert "1" in shown(capfd)


def test_report_is_json_with_the_slowest_tests(
    tree: Path, fake: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    junit = environments.junit("one")
    cases = '<testcase classname="a" name="slow" time="7.5"/><testcase name="quick" time="0.1"/>'
    fake["one"] = ["sh", "-c", f"echo '<testsuite>{cases}</testsuite>' >{junit}; echo '{PASSED}'"]
    assert run("all") == 0
    assert any("7.5 s  a.slow  (one)" in line for line in shown(capfd))
    written = json.loads((tree / environments.REPORTS / "report.json").read_text())
    assert [each["name"] for each in written["steps"]] == ["one", "two", "three"]
    assert written["slowest_tests"][0] == {"seconds": 7.5, "test": "a.slow", "step": "one"}
    assert written["tree"] == records.tree_name()


def test_what_is_compiled_is_kept_for_the_next_process(
    fake: dict[str, list[str]], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # as images of containers have it
    fake["one"] = ["sh", "-c", "echo ${PYTHONDONTWRITEBYTECODE-unset}"]
    assert run("test") == 0
    assert "unset" in shown(capfd)


def test_size_takes_no_paths(fake: dict[str, list[str]]) -> None:
    with pytest.raises(SystemExit, match="test takes no paths; name a stage"):
        run("test", "tests/unit/test_x.py")


def test_without_an_environment_it_says_run_make_setup(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "test").symlink_to(TOOLS / "test")
    done = subprocess.run(
        [tmp_path / "tools" / "test", "lint"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "tools/test: there is no environment (.venv) yet: run make setup\n"
