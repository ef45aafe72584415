"""tools/test: steps run two at a time, each up to its deadline."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from suite import steps


def step(name: str, command: list[str], deadline: float = 60.0) -> steps.Step:
    return steps.Step("unit", name, command, deadline=deadline)


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
    found = [line for line in capfd.readouterr().out.splitlines() if line]
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
