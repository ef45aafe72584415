"""Starts programs as forks of itself, with everything imported.

    python -m tests.kernel.fork_server FD

In an emulated machine an interpreter takes a second to start, and the package five to import; a
fork takes a twentieth of a second. It is all else that a new process is: it has the environment,
the directory and the descriptors that it was to have, runs as ``__main__`` what `python` was to
run, and ends as an interpreter does, by way of its threads, atexit and the exit status.

FD is a socket. A message on it is a :class:`Request` as JSON, with four descriptors: stdin, stdout,
stderr, and where to write the process id and, when the process has ended, its status.
`programs.py` has the other end.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import runpy
import selectors
import socket
import sys
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

# What is imported when it is needed, by this package and others.
LATER = (
    "aiovblk.cli",
    "anyio._backends._asyncio",
    "asyncio.subprocess",
    "uvloop",
)

MESSAGE = 1 << 18  # bytes; an environment is larger than a page

_socket: socket.socket
_selector: selectors.BaseSelector
_tellers: dict[int, tuple[int, int]] = {}
"""Of each process that runs, by its pidfd: its number, and where to write its status."""


def main() -> Callable[[], object]:
    """Fork for each request, until the other end is closed; returns, in forks, what to run."""
    global _socket, _selector
    _socket = socket.socket(fileno=int(sys.argv[1]))
    _prepare()
    _selector = selectors.DefaultSelector()
    _selector.register(_socket, selectors.EVENT_READ)
    while True:
        for key, _ in _selector.select():
            if key.fileobj is not _socket:
                _reap(key.fd)
            elif (run := _serve()) is not None:
                return run


def _prepare() -> None:
    gc.disable()  # for the time of the imports, of which nothing is garbage
    for name in LATER:
        import_module(name)
    cli: Any = sys.modules["aiovblk.cli"]
    cli.make_parser()
    asyncio.run(asyncio.sleep(0))
    gc.collect()
    gc.freeze()  # or each fork would copy the memory of all objects when it collects
    gc.enable()


def _serve() -> Callable[[], object] | None:
    message, descriptors, _, _ = socket.recv_fds(_socket, MESSAGE, 4)
    if not message:
        os._exit(0)
    child = os.fork()
    if child == 0:
        request = json.loads(message)
        _become(request, descriptors)
        return _program(request["words"])
    tell = descriptors.pop()
    os.write(tell, f"{child}\n".encode())
    for each in descriptors:
        os.close(each)
    ended = os.pidfd_open(child)
    _selector.register(ended, selectors.EVENT_READ)
    _tellers[ended] = child, tell
    return None


def _reap(ended: int) -> None:
    child, tell = _tellers.pop(ended)
    _, status = os.waitpid(child, 0)
    _selector.unregister(ended)
    with suppress(BrokenPipeError):
        os.write(tell, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os.close(tell)
    os.close(ended)


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Have what the new process is to have, and nothing of this one's."""
    _socket.close()
    _selector.close()
    for ended, (_, tell) in _tellers.items():
        os.close(ended)
        os.close(tell)
    os.close(descriptors.pop())
    for number, each in enumerate(descriptors):
        os.dup2(each, number)
        os.close(each)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if "PYTHONFAULTHANDLER" in os.environ:
        faulthandler.enable()


def _program(words: list[str]) -> Callable[[], object]:
    """Do with the words of `python WORDS` what the interpreter does."""
    if words[0] == "-W":
        warnings.simplefilter(words[1])  # type: ignore[arg-type]  # one of its words
        words = words[2:]
    main_module = types.ModuleType("__main__")
    main_module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main_module
    if words[0] == "-m":
        sys.argv = ["-m", *words[2:]]
        return lambda: runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
    sys.path[0] = ""
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        return lambda: exec(compile(words[1], "<string>", "exec"), main_module.__dict__)
    sys.path[0] = os.path.dirname(words[0])
    sys.argv = words
    main_module.__file__ = words[0]
    with open(words[0], "rb") as file:
        code = compile(file.read(), words[0], "exec")
    return lambda: exec(code, main_module.__dict__)


if __name__ == "__main__":
    # Here, for what it runs to end as all that this interpreter does.
    main()()
