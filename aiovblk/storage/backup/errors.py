"""The error of backups."""

from __future__ import annotations

from ...errors import Error


class BackupError(Error):
    """Report that a target, or a source, cannot be used for a backup; the message says why."""
