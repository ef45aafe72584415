"""Fixtures for the tests of the command."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from aiovblk.cli.doctor import environment, machine
from aiovblk.cli.doctor import ublk as ublk_checks
from aiovblk.kernel import netlink
from aiovblk.ublk import control, io_uring

from ...support.doctor_host import Host
from ...support.kernel_tree import KernelTree
from ...support.ublk_tree import ublk_tree

__all__ = ["ublk_tree"]


@pytest.fixture
def host(tree: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tree, tmp_path)
    monkeypatch.setattr(machine, "MODULES", tmp_path / "lib/modules")
    monkeypatch.setattr(machine, "RUN", tmp_path / "run")
    monkeypatch.setattr(machine, "node_number", lambda index: made.nodes.get(index))
    monkeypatch.setattr(machine, "_open", lambda path: made.opening(path))
    monkeypatch.setattr(machine, "OPEN_TIMEOUT", 0.05)
    monkeypatch.setattr(platform, "release", lambda: "6.12.1")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=made.sys_flags))
    monkeypatch.setattr(netlink, "is_available", lambda: made.has_netlink)
    monkeypatch.setattr(control, "CONTROL_NODE", str(made.ublk_control))
    monkeypatch.setattr(control, "features", lambda: made.ask_ublk())
    monkeypatch.setattr(io_uring, "refusal", lambda: made.io_uring_refusal)
    monkeypatch.setattr(ublk_checks, "RULES", (tmp_path / "udev",))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return made
