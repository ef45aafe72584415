"""What systemd is told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from aiovblk.cli import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@aiovblk-{os.getpid()}" if abstract else f"{tmp_path}/notify"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0"))
        notify.ready("serving /dev/nbd3")
        assert systemd.recv(4096) == b"READY=1\nSTATUS=serving /dev/nbd3"
        assert "NOTIFY_SOCKET" not in os.environ
        notify.ready("serving /dev/nbd3")
        with pytest.raises(BlockingIOError):
            systemd.recv(4096, socket.MSG_DONTWAIT)
