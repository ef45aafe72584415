"""The end of a run: a table of steps with times, the slowest tests, and the same as JSON."""

import json
import os
import platform
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from . import environments
from .environments import REPORTS
from .steps import Outcome

SLOWEST = 10
"""So many tests are listed in the table, if they took this long; JSON has ten times as many."""
SLOW = 1.0  # seconds


def slowest_tests(outcomes: Sequence[Outcome], count: int) -> list[tuple[float, str, str]]:
    """Return (seconds, test, step) of the slowest tests of all steps, from their JUnit files."""
    found = []
    for step in (outcome.step.name for outcome in outcomes):
        for path in junit_files(step):
            found += [(seconds, test, step) for seconds, test in read_junit(path)]
    return sorted(found, reverse=True)[:count]


def junit_files(step: str) -> list[Path]:
    """Return the JUnit files that a step may have left: its own, and those of runs in a guest."""
    own = environments.junit(step)
    return [own, *REPORTS.glob(f"{own.stem}-*.xml")]


def read_junit(path: Path) -> list[tuple[float, str]]:
    """Return (seconds, test) of each test in a JUnit file; nothing if it is missing or cut off."""
    try:
        cases = ElementTree.parse(path).iter("testcase")
    except (OSError, ElementTree.ParseError):
        return []
    return [
        (float(case.get("time", 0)), f"{case.get('classname', '')}.{case.get('name', '')}")
        for case in cases
    ]


def table(outcomes: Sequence[Outcome], left_out: Sequence[str]) -> list[str]:
    """Return the lines that a run ends with."""
    lines = [
        f"{'passed' if each.passed else 'FAILED'} {each.seconds:7.1f} s  {each.step.name}"
        + (f"  ({each.summary})" if each.summary else "")
        for each in outcomes
    ]
    lines += [f"left out          {each}" for each in left_out]
    slow = [
        f"{seconds:9.1f} s  {test}  ({step})"
        for seconds, test, step in slowest_tests(outcomes, SLOWEST)
        if seconds >= SLOW
    ]
    if slow:
        lines += ["", "The slowest tests:", *slow]
    return lines


def write_json(
    tree: str | None, outcomes: Sequence[Outcome], left_out: Sequence[str], seconds: float
) -> Path:
    """Write the report of the run as JSON, and return its path."""
    report = {
        "tree": tree,
        "machine": {
            "processors": os.cpu_count(),
            "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
            "kernel": platform.release(),
        },
        "passed": all(each.passed for each in outcomes),
        "seconds": round(seconds, 1),
        "steps": [
            {
                "stage": each.step.stage,
                "name": each.step.name,
                "passed": each.passed,
                "seconds": round(each.seconds, 1),
                "summary": each.summary,
            }
            for each in outcomes
        ],
        "left_out": list(left_out),
        "slowest_tests": [
            {"seconds": seconds, "test": test, "step": step}
            for seconds, test, step in slowest_tests(outcomes, SLOWEST * 10)
        ],
    }
    path = REPORTS / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path
