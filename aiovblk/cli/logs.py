"""Write the log and errors to stderr, a line each: as text, or as JSON for a log collector."""

from __future__ import annotations

import json
import logging
import sys
from argparse import SUPPRESS, Namespace
from datetime import UTC, datetime
from typing import Any

from ..text import escape
from .parser import EnvironmentParser
from .redaction import redact

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

DEFAULT_LEVEL = "warning"


def add_logging(parser: EnvironmentParser, *, is_command: bool) -> None:
    """Add the options for logging, which may stand before the name of the command and behind it.

    Args:
        parser: of the whole command line, or of one command.
        is_command: whether it is one command's; then the options change nothing where they are not
            given, so that those before the name of the command hold.

    """
    group = parser.add_argument_group("logging")
    level, text_format = (SUPPRESS, SUPPRESS) if is_command else (DEFAULT_LEVEL, FORMATS[0])
    group.add_argument(
        "-v",
        "--verbose",
        dest="log_level",
        action="store_const",
        const="debug",
        default=level,
        help="log what is done, as --log-level debug",
    )
    group.add_argument(
        "--log-level",
        choices=LEVELS,
        default=level,
        help=f"log what is at least this severe on stderr (default {DEFAULT_LEVEL})",
    )
    group.add_argument(
        "--log-format",
        choices=FORMATS,
        default=text_format,
        help="a line of text, or a JSON object, for each message (default text)",
    )
    if not is_command:
        parser.set_variables(log_level="AIOVBLK_LOG_LEVEL", log_format="AIOVBLK_LOG_FORMAT")


def configure_logging(arguments: Namespace) -> None:
    """Log to stderr from now on, as the command line says."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(_formatter(arguments))
    logging.basicConfig(level=arguments.log_level.upper(), handlers=[terminal])
    # What it logs at its lowest level is of no use to users of the command.
    logging.getLogger("asyncio").setLevel(max(logging.INFO, logging.getLogger().level))


def print_error(arguments: Namespace, message: str) -> None:
    """Print the error that a command ends with on stderr, in the format of the log."""
    record = logging.LogRecord("aiovblk", logging.ERROR, "", 0, message, (), None)
    print(_formatter(arguments).format(record), file=sys.stderr)


def _formatter(arguments: Namespace) -> logging.Formatter:
    if arguments.log_format == "json":
        return JSONFormatter()
    return QuotingFormatter("aiovblk: %(message)s")


class QuotingFormatter(logging.Formatter):
    """Escape control characters in log messages, so that quoted input cannot control the terminal.

    Line breaks stay in the messages of other packages, which may have several lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Format the line, without the traceback that may follow it."""
        text = redact(super().formatMessage(record))
        if record.name.partition(".")[0] == "aiovblk":
            return escape(text)
        return _escaped_lines(text)

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """Format a traceback; it contains the exception's message, which may quote input."""
        return _escaped_lines(redact(super().formatException(ei)))


def _escaped_lines(text: str) -> str:
    return "\n".join(map(escape, text.split("\n")))


class JSONFormatter(logging.Formatter):
    """Format each message as a JSON object in one line.

    Its fields: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, ``process`` (its
    number), and with an exception ``traceback``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format the object; JSON itself escapes control characters."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": redact(record.getMessage()),
        }
        if record.exc_info:
            fields["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(fields)
