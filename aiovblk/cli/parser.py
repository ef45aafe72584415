"""The parser of a command: argparse, with options anywhere between the arguments."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any


class CommandParser(ArgumentParser):
    """Takes options before, between and after positional arguments.

    argparse of Python 3.11 takes ``mount SPEC --read-only /dev/nbd1`` for a call without the
    optional argument ``/dev/nbd1``, which it then does not know: it gives each run of positional
    arguments to as many as it can, and the optional ones get nothing. Its remedy,
    ``parse_intermixed_args``, is not for parsers with subcommands, so it is used in those.
    """

    _is_mixing = False

    def parse_known_args(  # type: ignore[override]  # argparse has overloads for namespaces
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Namespace, list[str]]:
        """As in the base class; called by the parser of the whole command line."""
        if self._is_mixing:  # by the call below, which calls this again
            return super().parse_known_args(args, namespace)
        self._is_mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False
