"""What a parser of the command line has, for those who write about it."""

from __future__ import annotations

import argparse
from argparse import Action
from collections.abc import Iterator
from dataclasses import dataclass

from aiovblk.cli import COMMANDS, make_parser
from aiovblk.cli.parser import EnvironmentParser


@dataclass(frozen=True)
class Page:
    """The command line as a whole, or one command of it."""

    name: str
    """``aiovblk`` or ``aiovblk mount``."""
    purpose: str
    """What it does, in a line."""
    parser: EnvironmentParser

    @property
    def usage(self) -> str:
        """How it is called, in a line or more."""
        text = self.parser.format_usage().removeprefix("usage: ")
        return " ".join(text.split())


def pages() -> Iterator[Page]:
    """Yield the command line, then each command."""
    parser = make_parser()
    yield Page("aiovblk", "virtual block devices from Python", parser)
    for name, each in subparsers(parser).items():
        yield Page(f"aiovblk {name}", COMMANDS[name][0], each)


def subparsers(parser: EnvironmentParser) -> dict[str, EnvironmentParser]:
    """Return the parsers of the commands, by name."""
    (found,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    return dict(found.choices)


def groups(parser: EnvironmentParser) -> Iterator[tuple[str, str, list[Action]]]:
    """Yield the title, description and arguments of each group that has any, as in the help."""
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if each.help is not argparse.SUPPRESS]
        if actions:
            yield group.title or "", group.description or "", actions


def value_of(action: Action) -> str:
    """Return what stands for the value of an argument; empty for a flag."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()


def help_of(parser: EnvironmentParser, action: Action) -> str:
    """Return the help of an argument, with its default filled in, in one line."""
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return " ".join(text.split())
