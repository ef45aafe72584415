"""Start programs that are reparented: children of process 1, not of this one."""

from __future__ import annotations

import os
import select
import sys

from aiovblk.cli.reparent import is_running, spawn_reparented

PROGRAM = "import os, sys; os.write(1, b'%d' % os.getppid()); sys.stdin.read()"


def test_it_is_no_child_of_ours_but_prints_where_we_do() -> None:
    stdin, keep = os.pipe()
    printed, stdout = os.pipe()
    ours = os.dup(0), os.dup(1)
    try:
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        process = spawn_reparented([sys.executable, "-c", PROGRAM], os.environ)
    finally:
        for number, fd in enumerate(ours):
            os.dup2(fd, number)
            os.close(fd)
        os.close(stdin)
        os.close(stdout)
    ended = os.pidfd_open(process)
    parent = os.read(printed, 100)
    assert is_running(process)
    os.close(keep)
    assert select.select([ended], [], [], 20)[0]
    assert not is_running(process)
    assert int(parent) != os.getpid()
    os.close(ended)
    os.close(printed)
