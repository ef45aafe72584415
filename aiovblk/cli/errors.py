"""Errors of the command line, and the exit status that each leads to."""

from __future__ import annotations

from ..errors import Error


class SpecError(Error):
    """Report that a SPEC or an option cannot be used; exit status 1. The message says why."""


class UsageError(SpecError):
    """Report a wrong call of the command; exit status 2, as argparse has it."""
