"""Parse the options of a command with argparse: they may stand anywhere between the arguments."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any


class CommandParser(ArgumentParser):
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
        if self._is_intermixed:  # called by the call below
            return super().parse_known_args(args, namespace)
        self._is_intermixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixed = False
