"""Notifications to systemd: readiness, status, main process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from aiovblk.cli.systemd import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_notified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@aiovblk-{os.getpid()}" if abstract else f"{tmp_path}/notify"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0"))
        notifier = Notifier()
        assert "NOTIFY_SOCKET" not in os.environ
        notifier.ready("serving /dev/nbd3")
        expected = f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving /dev/nbd3"
        assert systemd.recv(4096).decode() == expected
        assert notifier.environment["NOTIFY_SOCKET"] == name
        notifier.replaced(7)
        assert systemd.recv(4096) == b"MAINPID=7"


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready("serving /dev/nbd3")
    assert "NOTIFY_SOCKET" not in notifier.environment
