"""Findings: the results of checks, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from ...text import escape


class Level(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    """Something is missing or may go wrong, but the rest works."""
    FAIL = "fail"
    """Something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: the severity.
        topic: what was checked, in a word.
        text: what was found.
        fix: the command that fixes it; None if there is no such command.

    """

    level: Level
    topic: str
    text: str
    fix: str | None = None

    def __str__(self) -> str:
        """Format as a line for people."""
        fix = f"; run `{self.fix}`" if self.fix else ""
        return escape(f"{self.level:4}  {self.topic}: {self.text}{fix}")


def ok(topic: str, text: str) -> Finding:
    """Report that a check has passed."""
    return Finding(Level.OK, topic, text)


def info(topic: str, text: str, fix: str | None = None) -> Finding:
    """Report what is worth knowing."""
    return Finding(Level.INFO, topic, text, fix)


def warn(topic: str, text: str, fix: str | None = None) -> Finding:
    """Report what is missing or may go wrong."""
    return Finding(Level.WARN, topic, text, fix)


def fail(topic: str, text: str, fix: str | None = None) -> Finding:
    """Report what does not work."""
    return Finding(Level.FAIL, topic, text, fix)


def as_json(findings: Iterable[Finding]) -> str:
    """Format as a JSON array of objects with the fields of :class:`Finding`."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)
