"""Serving under memory pressure: the calls to the kernel, and the warnings when it refuses."""

from __future__ import annotations

import ctypes
import errno
import logging
import resource
from functools import partial
from typing import Any

import pytest

import aiovblk
from aiovblk.dispatch import HandlerLimits
from aiovblk.kernel import memory_safety
from aiovblk.mounting.workers.service import ConnectionService
from aiovblk.storage import MemoryDevice

from ...support.kernel_tree import KernelTree

ALL = (1 << 41) - 1


class FakeLibc:
    """Records the calls, and fails those in ``refused``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refused: dict[str, int] = {}

    def prctl(self, *arguments: int) -> int:
        return self._call("prctl", *arguments)

    def mlockall(self, *arguments: int) -> int:
        return self._call("mlockall", *arguments)

    def _call(self, name: str, *arguments: int) -> int:
        self.calls.append((name, *arguments))
        ctypes.set_errno(self.refused.get(name, 0))
        return -1 if name in self.refused else 0


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> FakeLibc:
    fake = FakeLibc()
    monkeypatch.setattr(memory_safety, "_libc", fake)
    return fake


def privileged(tree: KernelTree, capabilities: int, *, namespace: int = 0xEFFFFFFD) -> None:
    process = tree.process(77, "python")
    tree.write(process / "status", f"Name:\tpython\nTgid:\t77\nCapEff:\t{capabilities:016x}\n")
    (process / "ns/user").symlink_to(f"user:[{namespace}]")
    (tree.proc / "self").symlink_to("77")


def limit(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (size, size))


def test_thread_and_process_are_protected(
    tree: KernelTree, libc: FakeLibc, caplog: pytest.LogCaptureFixture
) -> None:
    privileged(tree, ALL)
    memory_safety.protect_thread()
    memory_safety.protect_process()
    assert libc.calls == [("prctl", 57, 1, 0, 0, 0), ("mlockall", 1 | 2)]
    assert (tree.proc / "self/oom_score_adj").read_text() == "-1000"
    assert not caplog.records


def test_each_refusal_is_one_warning_with_the_missing_capability(
    tree: KernelTree,
    libc: FakeLibc,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    privileged(tree, 0)
    (tree.proc / "77/oom_score_adj").mkdir()  # writing fails, as root or not
    limit(monkeypatch, 65536)
    libc.refused["prctl"] = errno.EPERM
    memory_safety.protect_thread()
    memory_safety.protect_process()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "memory_safe without PR_SET_IO_FLUSHER: Operation not permitted; CAP_SYS_RESOURCE is"
        " missing",
        "memory_safe without mlockall: RLIMIT_MEMLOCK is 65536 bytes; CAP_IPC_LOCK is missing",
        "memory_safe without oom_score_adj: Is a directory; CAP_SYS_RESOURCE is missing",
    ]
    # A lock that may succeed and then fail allocations is not even tried.
    assert [name for name, *_ in libc.calls] == ["prctl"]


def test_without_a_limit_memory_is_locked_without_privileges(
    tree: KernelTree, libc: FakeLibc, monkeypatch: pytest.MonkeyPatch
) -> None:
    privileged(tree, 0)
    limit(monkeypatch, resource.RLIM_INFINITY)
    memory_safety.protect_process()
    assert libc.calls == [("mlockall", 3)]


def test_privileges_of_another_user_namespace_do_not_count(
    tree: KernelTree,
    libc: FakeLibc,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    privileged(tree, ALL, namespace=4026532000)
    limit(monkeypatch, 65536)
    memory_safety.protect_process()
    assert "CAP_IPC_LOCK is missing" in caplog.text
    assert libc.calls == []


def test_refusal_with_all_privileges_names_none(
    tree: KernelTree, libc: FakeLibc, caplog: pytest.LogCaptureFixture
) -> None:
    privileged(tree, ALL)
    libc.refused["prctl"] = errno.EINVAL  # before Linux 5.6
    memory_safety.protect_thread()
    assert caplog.messages == ["memory_safe without PR_SET_IO_FLUSHER: Invalid argument"]


@pytest.mark.parametrize(("memory_safe", "calls"), [(False, []), (True, ["prctl", "mlockall"])])
async def test_mount_protects_itself_before_it_attaches(
    tree: KernelTree,
    libc: FakeLibc,
    monkeypatch: pytest.MonkeyPatch,
    memory_safe: bool,
    calls: list[str],
) -> None:
    privileged(tree, ALL)
    limit(monkeypatch, resource.RLIM_INFINITY)
    tree.device("nbd0", "43:0")
    with pytest.raises(aiovblk.AttachError):
        await aiovblk.mount(MemoryDevice(4096), "/dev/null", memory_safe=memory_safe)
    assert [name for name, *_ in libc.calls] == calls


async def test_worker_protects_itself_and_leaves_the_warnings_to_its_parent(
    tree: KernelTree, libc: FakeLibc, caplog: pytest.LogCaptureFixture
) -> None:
    privileged(tree, 0)
    libc.refused = {"prctl": errno.EPERM, "mlockall": errno.EPERM}
    limits = HandlerLimits(concurrency=128, handler_timeout=None, slow_request=None)
    ConnectionService(
        partial(MemoryDevice, 4096), limits, False, True, lambda name, *arguments: None
    )
    assert [name for name, *_ in libc.calls][:1] == ["prctl"]
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
