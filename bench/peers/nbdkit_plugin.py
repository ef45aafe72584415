"""A disk in memory, as nbdkit's Python plugin has it.

    nbdkit python bench/peers/nbdkit_plugin.py [model=parallel] [delay=SECONDS]

The default thread model is nbdkit's for Python: one request at a time.
"""

import time

import nbdkit

API_VERSION = 2
SIZE = 256 << 20

memory = bytearray(SIZE)
options: dict[str, str] = {}


def config(key: str, value: str) -> None:
    """Take an argument of the command line."""
    options[key] = value


def thread_model() -> int:
    """How many requests there may be at once; nbdkit's default is 16 threads."""
    if options.get("model") == "parallel":
        return int(nbdkit.THREAD_MODEL_PARALLEL)
    return int(nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS)


def open(readonly: bool) -> int:
    """Begin a connection; there is nothing to remember about it."""
    return 1


def get_size(handle: int) -> int:
    """Tell the size in bytes."""
    return SIZE


def can_multi_conn(handle: int) -> bool:
    """Say that several connections see the same disk."""
    return True


def pread(handle: int, buffer: bytearray, offset: int, flags: int) -> None:
    """Copy out of memory."""
    _wait()
    buffer[:] = memoryview(memory)[offset : offset + len(buffer)]


def pwrite(handle: int, data: memoryview, offset: int, flags: int) -> None:
    """Copy into memory."""
    _wait()
    memory[offset : offset + len(data)] = data


def _wait() -> None:
    if "delay" in options:
        time.sleep(float(options["delay"]))
