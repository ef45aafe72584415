"""tools/test: what a size runs, what is recorded, and how a run ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

from suite import cli, environments, records, stages, steps  # noqa: E402 (tools/ is not on the path before)

PASSED = "===== 3 passed in 0.10s ====="


def say(*lines: str, status: int = 0) -> list[str]:
    """Return a command that prints lines."""
    return ["sh", "-c", 'for line; do echo "$line"; done; exit ' + f"{status}", "sh", *lines]


def step(name: str, command: list[str], deadline: float = 60.0) -> steps.Step:
    return steps.Step("unit", name, command, deadline=deadline)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with three Pythons, and a cache of its own."""
    checkout = tmp_path / "checkout"
    for version in ("3.11", "3.12", "3.13"):
        (checkout / ".venvs" / version / "bin").mkdir(parents=True)
        (checkout / ".venvs" / version / "bin" / "python").symlink_to(sys.executable)
    for directory in ("tests/unit", "tests/kernel", "build/tests"):
        (checkout / directory).mkdir(parents=True)
    (checkout / "file").write_text("first\n")
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("AIOVBLK_CACHE", f"{tmp_path}/cache")
    for name in ("PYTHONS", "KERNELS", "GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stages, "compile_modules", lambda versions, tests: None)
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    (checkout / ".gitignore").write_text("/build/\n/.venvs\n")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "First"]):
        subprocess.run(["git", *command], check=True)
    return checkout


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
    assert all("--pythons either" in command for command in commands("test", "unit"))
    assert names("test", "interop") == ["interop, Python 3.13"]


def test_each_test_of_test_runs_on_both_loops_where_there_is_one_python(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONS", "3.13")
    (command,) = commands("test", "unit")
    assert "--loops" not in command
    assert "--pythons" not in command


def test_test_has_the_core_on_both_kernels_attached_differently(tree: Path) -> None:
    first, second = commands("test", "kernel")
    assert "--kernel 6.1 " in first
    assert "3.11/bin/python" in first
    assert "--attach ioctl" in first
    assert "-m core" in first
    assert "--kernel 6.12 " in second
    assert "3.13/bin/python" in second
    assert "--attach netlink" in second
    assert "-m core" in second


def test_all_has_both_attachments_on_each_kernel_and_each_python(tree: Path) -> None:
    first, second, _ = commands("all", "kernel")
    for command in (first, second):
        assert command.count("--attach ioctl") == command.count("--attach netlink") == 1
        assert "3.11/bin/python" in command
        assert "3.13/bin/python" in command
        assert "-m core" not in command
        assert command.count("--long") == 2
    assert first.index("ioctl") < first.index("netlink")
    assert second.index("netlink") < second.index("ioctl")


def test_all_has_the_kernel_of_backports_once_and_after_the_others(tree: Path) -> None:
    assert names("all", "kernel") == [
        f"kernel tests, Linux {each}" for each in ("6.1", "6.12", "7.3")
    ]
    command = commands("all", "kernel")[-1]
    assert "--kernel 7.3 " in command
    assert command.count("-m pytest") == command.count("3.13/bin/python") == 1
    assert "--attach netlink" in command
    assert "--attach ioctl" not in command
    assert "--long" in command
    assert "-m 'core or ublk'" in command
    assert not any("7.3" in name for stage in ("systemd", "debian") for name in names("all", stage))


def test_kernel_of_backports_is_tested_elsewhere_where_it_is_asked_for(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = names("all", "kernel")
    monkeypatch.setenv("KERNELS", "7.3")
    assert names("all", "kernel") == everywhere[2:]
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
    assert not any("--pythons" in each for each in commands("all", "unit"))
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


def test_records_belong_to_the_tree_as_it_is(tree: Path) -> None:
    records.Records().note("one", 1.0, passed=True)
    records.Records().note("two", 2.0, passed=False)
    assert records.Records().passed == {"one": 1.0}
    (tree / "file").write_text("second\n")
    assert records.Records().passed == {}
    (tree / "file").write_text("first\n")
    assert records.Records().passed == {"one": 1.0}
    (tree / "new").touch()
    assert records.Records().passed == {}
    (tree / "new").unlink()
    (tree / "build" / "ignored").touch()
    assert records.Records().passed == {"one": 1.0}
    status = subprocess.run(["git", "status", "--short"], capture_output=True, check=True)
    assert status.stdout == b""  # the user's own index is left alone


def test_failure_takes_a_success_back(tree: Path) -> None:
    records.Records().note("one", 1.0, passed=True)
    records.Records().note("one", 1.0, passed=False)
    assert records.Records().passed == {}


def test_tree_without_git_has_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", f"{tmp_path.parent}")
    monkeypatch.setenv("AIOVBLK_CACHE", f"{tmp_path}/cache")
    records.Records().note("one", 1.0, passed=True)
    assert records.Records().passed == {}


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


def test_step_past_its_deadline_fails_and_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    output = steps.Output()
    (outcome,) = steps.run_steps([step("hangs", ["sleep", "1000"], deadline=0.2)], output)
    assert not outcome.passed
    assert outcome.summary == "ended after its deadline of 0 s"


def test_two_steps_run_at_once_and_are_shown_in_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    output = steps.Output()
    both = [
        step("first", ["sh", "-c", f"cat {pipe}; echo 1"]),
        step("second", ["sh", "-c", f"echo 2; echo other >{pipe}"]),
    ]
    outcomes = list(steps.run_steps(both, output))
    assert sorted(each.step.name for each in outcomes if each.passed) == ["first", "second"]
    found = [line for line in shown(capfd) if line]
    assert found == ["--- first", "other", "1", "--- second", "2"]


@pytest.mark.parametrize(
    ("following", "running", "has_place"),
    [
        (step("b", []), [], True),
        (step("b", []), [step("a", [])], True),
        (step("c", []), [step("a", []), step("b", [])], False),
        (replace(step("b", []), alone=True), [], True),
        (replace(step("b", []), alone=True), [step("a", [])], False),
        (step("b", []), [replace(step("a", []), alone=True)], False),
        (replace(step("b", []), after="a"), [step("a", [])], False),
        (replace(step("b", []), after="a"), [step("c", [])], True),
    ],
)
def test_step_begins_beside_one_other_that_it_does_not_need(
    following: steps.Step, running: list[steps.Step], has_place: bool
) -> None:
    assert steps.has_place(following, running) is has_place


def test_steps_that_run_are_ended_with_the_run(tmp_path: Path) -> None:
    held = tmp_path / "pipe"
    os.mkfifo(held)
    both = [step("one", ["true"]), step("two", ["sh", "-c", f"exec sleep 1000 >{held}"])]
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    run = steps.run_steps(both, steps.Output())
    assert next(run).passed
    run.close()
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # its writer is gone
    os.close(reader)


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
