"""The programs in C: a server that does as little as one can, and the load generator.

Both are compiled when they are needed, into ``build/bench``, and again when a source has changed.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ..pythons import ROOT

HERE = Path(__file__).parent
BUILT = ROOT / "build" / "bench"
BARE = BUILT / "bare"
LOADGEN = BUILT / "loadgen"
PROBE = ("cc", "--version")
PACKAGE = "gcc libc6-dev"

SOURCES = {BARE: ("bare.c",), LOADGEN: ("loadgen.c", "connection.c")}
HEADERS = ("nbd.h", "loadgen.h")


class CompileError(Exception):
    """A program could not be made; the text is what to do, or what the compiler says."""


def build(program: Path) -> Path:
    """Compile a program, unless it is newer than its sources; returns its path.

    Raises:
        CompileError: there is no compiler, or it refused.

    """
    sources = [HERE / name for name in SOURCES[program]]
    newest = max(each.stat().st_mtime for each in (*sources, *(HERE / name for name in HEADERS)))
    if program.exists() and program.stat().st_mtime >= newest:
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    new = program.with_suffix(f".{os.getpid()}")  # another process may be compiling it too
    command = ["cc", "-O2", "-Wall", "-pthread", "-o", str(new), *map(str, sources)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CompileError(f"no C compiler: install {PACKAGE}, or run make setup") from None
    if done.returncode:
        raise CompileError(done.stderr.strip())
    new.replace(program)
    return program
