"""A device is handed over between root's processes only, even if others can reach the socket."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from aiovblk.errors import AttachError
from aiovblk.mounting.handover import endpoint
from aiovblk.mounting.handover.endpoint import (
    HandoverListener,
    HandoverRequest,
    HandoverRequester,
    request_handover,
)

WANTED = HandoverRequest("volume", None)


def test_the_user_is_that_of_the_other_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert endpoint._user_of(ours) == os.geteuid()


async def test_another_users_answer_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "socket"
    monkeypatch.setattr(endpoint, "_user_of", lambda sock: os.geteuid() + 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        with pytest.raises(AttachError, match="another user than root answers at") as caught:
            await asyncio.to_thread(request_handover, path, WANTED, 60)
        sock, _ = listening.accept()
        with sock:
            assert sock.recv(4096) == b""  # it was sent nothing
    assert caught.value.errno == errno.EPERM


async def test_another_user_is_given_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking: list[HandoverRequester] = []
    path = tmp_path / "socket"
    listening = HandoverListener(path, asking.append)
    trusted = endpoint._is_trusted
    answers = iter([True, False])  # of the two ends: who asks is shown first
    monkeypatch.setattr(endpoint, "_is_trusted", lambda sock: next(answers) and trusted(sock))
    try:
        with pytest.raises(AttachError, match="it has just ended"):
            await asyncio.to_thread(request_handover, path, WANTED, 60)
    finally:
        listening.close()
    assert not asking
