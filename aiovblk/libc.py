"""Functions of the C library that Python does not offer.

ctypes is imported when the first of them is called. Some builds of libffi, which it imports, keep a
file open from then on (their trampolines, as on Debian 14), and that would get the number of a
standard descriptor that the command was started without: see ``cli/descriptors.py``.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any


class Functions:
    """Functions that set errno, as attributes.

    Args:
        holding_lock: whether the interpreter's lock is held meanwhile, for those that return at
            once: another thread would take it, and the caller wait longer than the call takes.
        addresses: names of functions that return an address, and no int.
        arguments: by the function's name, the types of its arguments as ctypes calls them, without
            the ``c_``.

    """

    def __init__(
        self,
        *,
        holding_lock: bool = False,
        addresses: Collection[str] = (),
        **arguments: list[str],
    ) -> None:
        self._holding_lock = holding_lock
        self._addresses = addresses
        self._arguments = arguments

    def __getattr__(self, name: str) -> Any:
        """Load a function; from then on it is an attribute like others."""
        if name not in self.__dict__.get("_arguments", ()):
            raise AttributeError(f"{name} is not declared")
        import ctypes

        load = ctypes.PyDLL if self._holding_lock else ctypes.CDLL
        library = load(None, use_errno=True)
        # Off_t of 64 bits has functions of its own in glibc on machines of 32; others have one.
        function = getattr(library, f"{name}64", None) or getattr(library, name)
        if name in self._addresses:
            function.restype = ctypes.c_void_p
        function.argtypes = [getattr(ctypes, f"c_{type_}") for type_ in self._arguments[name]]
        setattr(self, name, function)
        return function


def last_error(call: str = "") -> OSError:
    """What the last call of this thread failed with."""
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}" if call else os.strerror(number))
