"""What a check has found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from ...text import escape


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    """Something goes without, or may go wrong."""
    FAIL = "fail"
    """Something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: how bad it is.
        topic: what was looked at, in a word.
        text: what was found, in words.
        fix: the command that mends it, where one does.

    """

    level: Level
    topic: str
    text: str
    fix: str | None = None

    def __str__(self) -> str:
        """A line for people."""
        remedy = f"; run `{self.fix}`" if self.fix else ""
        return escape(f"{self.level:4}  {self.topic}: {self.text}{remedy}")


def ok(topic: str, text: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, topic, text)


def info(topic: str, text: str, fix: str | None = None) -> Finding:
    """Worth knowing."""
    return Finding(Level.INFO, topic, text, fix)


def warn(topic: str, text: str, fix: str | None = None) -> Finding:
    """Something goes without, or may go wrong."""
    return Finding(Level.WARN, topic, text, fix)


def fail(topic: str, text: str, fix: str | None = None) -> Finding:
    """Something does not work."""
    return Finding(Level.FAIL, topic, text, fix)


def as_json(findings: Iterable[Finding]) -> str:
    """A JSON array of objects with the fields of :class:`Finding`."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)
