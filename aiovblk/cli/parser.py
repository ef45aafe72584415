"""Parse the options of a command with argparse: they may stand anywhere between the arguments.

What argparse lacks: help that keeps its lines, options whose value an environment variable may
give, and errors without the passwords of the SPECs that they quote.
"""

from __future__ import annotations

import argparse
import os
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from ..text import escape
from .redaction import redact


class Options(Protocol):
    """What options can be added to: a parser, or a group of options in its help."""

    def add_argument(self, *names: str, **options: Any) -> Action:
        """Add an option, see :meth:`argparse.ArgumentParser.add_argument`."""


class HelpFormatter(argparse.HelpFormatter):
    """Wrap the paragraphs of a text each for itself, and leave indented ones as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(
            paragraph if paragraph.startswith(" ") else fill(paragraph, width, indent)
            for paragraph in text.split("\n\n")
        )


class EnvironmentParser(ArgumentParser):
    """Take defaults of options from the environment, and show no passwords in errors.

    Attributes:
        examples: pairs of what one does and the call that does it, for help and manual.
        variables: the environment variable of each option that has one, by its name in the parsed
            command line.

    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)
        self.examples: tuple[tuple[str, str], ...] = ()
        self.variables: dict[str, str] = {}

    def show_examples(self, *examples: tuple[str, str]) -> None:
        """Show examples below the help: pairs of what one does and the call that does it."""
        self.examples = examples
        shown = (f"  # {purpose}\n  {call}" for purpose, call in examples)
        self.epilog = "\n\n".join(["examples:", *shown]).replace("%", "%%")

    def set_variables(self, **variables: str) -> None:
        """Name the environment variables that give the defaults of options, if they are set.

        Call it once the options are there: their help names the variable, too.
        """
        self.variables |= variables
        for action in self._actions:
            if action.dest in variables and action.nargs != 0:  # which flags have
                action.help = f"{action.help} [${variables[action.dest]}]"

    def parse_known_args(  # type: ignore[override]  # argparse has overloads for namespaces
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Namespace, list[str]]:
        """Parse, as the base class does."""
        self.read_variables()
        return super().parse_known_args(args, namespace)

    def read_variables(self) -> None:
        """Take the defaults of options from the environment."""
        for action in self._actions:
            variable = self.variables.get(action.dest)
            # A variable that is set to nothing is as good as none: so it can be undone in a shell.
            if variable is not None and (text := os.environ.get(variable)):
                action.default = self._value_of(action, variable, text)

    def _value_of(self, action: Action, variable: str, text: str) -> object:
        parse = action.type or str
        try:
            value = parse(text)  # type: ignore[operator]  # no action here has a registered name
        except ArgumentTypeError as exc:
            self.error(f"environment variable {variable}: {exc}")
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            self.error(f"environment variable {variable}: must be one of {choices}, not {text!r}")
        return value

    def error(self, message: str) -> NoReturn:
        """Print how to call the command, and the error, in a line; exit with status 2."""
        super().error(escape(redact(message)))


class CommandParser(EnvironmentParser):
    """Accept options before, between and after positional arguments.

    argparse of Python 3.11 assigns each run of positional arguments to as many parameters as it
    can, and gives optional ones nothing: in ``mount SPEC --read-only /dev/nbd1`` the optional
    ``/dev/nbd1`` is then an unknown argument. Its own answer to that, ``parse_intermixed_args``,
    does not work for parsers with subcommands, so each subcommand's parser uses it.
    """

    _is_intermixed = False

    def parse_known_args(  # type: ignore[override]  # argparse has overloads for namespaces
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Namespace, list[str]]:
        """Parse, as the base class does. Called by the parser of the whole command line."""
        if self._is_intermixed:  # called by the call below, as older Pythons do
            return super().parse_known_args(args, namespace)
        self.read_variables()
        self._is_intermixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixed = False
