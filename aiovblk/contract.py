"""Validate a device before it is used: handler signatures, ``async def``, and geometry.

What is refused here would fail at each request. What only a call of the handler can show is left to
that call: a plain ``def`` is legal if its result can be awaited, and that is often unknown before.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import os
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from types import FunctionType, MethodType, ModuleType

from .device import OPERATIONS, BlockDevice, Extent, can

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
"""Bytes of a memory page: the largest block that the kernel's NBD driver takes."""

MAX_SIZE = 2**63 - PAGE_SIZE
"""Bytes of the largest device that Linux can address: an offset is a signed 64-bit number."""

# For each handler: sample arguments, keyword arguments, and its declaration for messages.
_CALLS: dict[str, tuple[tuple[object, ...], dict[str, object], str]] = {
    "read": ((0, 0), {}, "(self, offset, length)"),
    "write": ((0, b""), {}, "(self, offset, data)"),
    "flush": ((), {}, "(self)"),
    "trim": ((0, 0), {}, "(self, offset, length)"),
    "write_zeroes": ((0, 0), {"may_trim": False}, "(self, offset, length, *, may_trim)"),
    "extents": ((0, 0), {}, "(self, offset, length)"),
    "cache": ((0, 0), {}, "(self, offset, length)"),
    "unmount": ((), {}, "(self)"),
}

# The same for dirty bitmaps, which are those of :class:`.SupportsDirtyBitmaps`.
_BITMAP_CALLS: dict[str, tuple[tuple[object, ...], dict[str, object], str]] = {
    "dirty_bitmaps": ((), {}, "(self)"),
    "dirty_extents": (("", 0, 0), {}, "(self, name, offset, length)"),
}

_NOT_AWAITABLE = {"None", "bytes", "bytearray", "memoryview"}
"""Return annotations of handlers. On a plain ``def`` they mean that its result is not awaitable."""


def check_device(
    device: object, *, min_block_size: int = 512, max_block_size: int = PAGE_SIZE
) -> BlockDevice:
    """Refuse a device that cannot be served: wrong type, uncallable handlers, invalid geometry.

    Args:
        device: the device to be served.
        min_block_size: bytes of the smallest block; see :func:`check_geometry`.
        max_block_size: bytes of the largest.

    Returns:
        The device.

    Raises:
        TypeError: not a :class:`BlockDevice`, or a handler is not an ``async def`` with the right
            arguments, or a number is not an int.
        ValueError: a number is out of range.

    """
    found = check_instance(device)
    check_handlers(found)
    return check_geometry(found, min_block_size=min_block_size, max_block_size=max_block_size)


def check_inner(device: object, role: str = "inner") -> BlockDevice:
    """Refuse an inner device that a layer cannot use: wrong type, or uncallable handlers.

    Args:
        device: the device below the layer.
        role: the name of the parameter, for the message.

    Raises:
        TypeError: as for :func:`check_device`.

    """
    found = check_instance(device, role)
    check_handlers(found)
    return found


def check_instance(device: object, role: str = "") -> BlockDevice:
    """Refuse an argument that is not a device.

    Args:
        device: the argument.
        role: the name of the parameter, for the message.

    Raises:
        TypeError: not an instance of :class:`BlockDevice`; the message says what to do.

    """
    if isinstance(device, BlockDevice):
        return device
    hint = ""
    if isinstance(device, type):
        hint = f" (make an instance of it: {device.__name__}(...))"
    elif inspect.isawaitable(device):
        hint = " (await it)"
    elif inspect.isroutine(device):
        hint = " (call it)"
    where = f"{role} must be a BlockDevice, not" if role else "expected a BlockDevice, got"
    raise TypeError(f"{where} {device!r}{hint}")


def check_geometry(
    device: object, *, min_block_size: int = 512, max_block_size: int = PAGE_SIZE
) -> BlockDevice:
    """Refuse a device whose block size or size its client would refuse or misinterpret.

    The default limits are those of nbd_set_size in the kernel's drivers/block/nbd.c: a block of
    512 bytes to one page, and an offset that fits a signed 64-bit number.

    Args:
        device: the device to be served.
        min_block_size: bytes of the smallest allowed block.
        max_block_size: bytes of the largest.

    Returns:
        The device.

    Raises:
        TypeError: not a :class:`BlockDevice`, or a number is not an int.
        ValueError: a number is out of range.

    """
    device = check_instance(device)
    for name, value in (("block_size", device.block_size), ("blocks", device.blocks)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, not {value!r}")
    if not min_block_size <= device.block_size <= max_block_size or device.block_size & (
        device.block_size - 1
    ):
        raise ValueError(
            f"block_size must be a power of two from {min_block_size} to {max_block_size},"
            f" not {device.block_size}"
        )
    if device.blocks < 1:
        raise ValueError(f"blocks must be at least 1, not {device.blocks}")
    if device.size > MAX_SIZE:
        raise ValueError(f"a device of {device.size} bytes is larger than Linux can address")
    return device


def check_handlers(device: BlockDevice | type[BlockDevice]) -> None:
    """Refuse handlers that cannot be called and awaited.

    Args:
        device: an instance; or a class, which is instantiated later.

    Raises:
        TypeError: for the first such handler; the message has class, method and remedy.

    """
    has_bitmaps = all(hasattr(device, name) for name in _BITMAP_CALLS)
    calls = _CALLS | _BITMAP_CALLS if has_bitmaps else _CALLS
    for name, (args, options, form) in calls.items():
        handler = getattr(device, name)
        if getattr(handler, "__func__", handler) is getattr(BlockDevice, name, None):
            continue
        if isinstance(device, BlockDevice) and name in OPERATIONS and not can(device, name):
            continue  # never called
        if isinstance(device, type) and isinstance(
            inspect.getattr_static(device, name), FunctionType
        ):
            args = (None, *args)  # self
        if fault := signature_fault(handler, args, options):
            owner = defining_class(device, name)
            raise TypeError(f"{owner}.{name} must be async def {name}{form}: {fault}")


def defining_class(device: BlockDevice | type[BlockDevice], name: str) -> str:
    """Return the name of the class that defines a handler of ``device``."""
    kind = device if isinstance(device, type) else type(device)
    if name in getattr(device, "__dict__", {}):
        return kind.__name__
    return next((each.__name__ for each in kind.__mro__ if name in vars(each)), kind.__name__)


def check_extents(found: Sequence[Extent]) -> Sequence[Extent]:
    """Validate what a device's ``extents`` returned, so that a loop over a range terminates.

    Returns:
        ``found``.

    Raises:
        ValueError: no extent, or one of no bytes: the next call would start at the same offset.

    """
    if not found:
        raise ValueError("extents returned none")
    for length, _, _ in found:
        if length < 1:
            raise ValueError(f"extents returned one of {length} bytes")
    return found


def not_awaitable_reason(device: BlockDevice, name: str) -> str:
    """Explain that a handler returned something that cannot be awaited, and how to declare it.

    Args:
        device: the device whose handler was called; the fault may be in a device below it.
        name: the name of the handler.

    """
    while is_async(getattr(device, name)):
        inner = getattr(device, "inner", None)
        if not isinstance(inner, BlockDevice):
            break
        device = inner
    form = _CALLS[name][2]
    where = f"{defining_class(device, name)}.{name}"
    return f"{where} must be async def {name}{form}: what it returned cannot be awaited"


def is_async(handler: object) -> bool:
    """Return whether this is an ``async def``, or an object whose ``__call__`` is one."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(_code_of(handler))


def signature_fault(handler: object, args: tuple[object, ...], options: dict[str, object]) -> str:
    """Return why a call of this handler is sure to fail; empty if it may succeed."""
    if not callable(handler):
        return f"it is {handler!r}, which cannot be called"
    function = _code_of(handler)
    if inspect.isasyncgenfunction(function):
        return "it is an async generator: return the result, do not yield it"
    if function is not None and not is_async(handler):
        if inspect.isgeneratorfunction(function):
            # types.coroutine() makes generators awaitable.
            if not function.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE:
                return "it is a generator: return the result, do not yield it"
        elif _returns_no_awaitable(function):
            return "it is a plain def, and what that returns cannot be awaited"
    try:
        # Not the signature of the wrapped function: a decorator may add or remove arguments.
        signature = inspect.signature(handler, follow_wrapped=False)
    except (TypeError, ValueError):  # not every builtin has one
        return ""
    try:
        signature.bind(*args, **options)
    except TypeError as exc:
        return f"it cannot be called so: {exc}"
    return ""


def _code_of(handler: object) -> FunctionType | None:
    """Return the Python function that a call runs first; None if it is not a Python function."""
    while True:
        if isinstance(handler, MethodType):
            handler = handler.__func__
        elif isinstance(handler, partial):
            handler = handler.func
        elif isinstance(handler, FunctionType):
            return handler
        else:
            call = inspect.getattr_static(type(handler), "__call__", None)
            return call if isinstance(call, FunctionType) else None


# Does a plain def return an awaitable?


def _returns_no_awaitable(function: FunctionType) -> bool:
    """Return whether a plain ``def`` is sure to return something that cannot be awaited."""
    # A decorator may have copied the annotation of the function that it wraps, and return its
    # coroutine.
    if not hasattr(function, "__wrapped__") and function.__name__ != "<lambda>":
        annotation = function.__annotations__.get("return", "")
        if (annotation if isinstance(annotation, str) else _name(annotation)) in _NOT_AWAITABLE:
            return True
    try:
        # Of the code object, since getsource() of the function would follow __wrapped__.
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__code__)))
    except (OSError, TypeError, SyntaxError, ValueError):  # no source, or a part of an expression
        return False
    if not isinstance(tree.body[0], ast.FunctionDef):
        return False
    returned = [each.value for each in own_nodes(tree.body[0]) if isinstance(each, ast.Return)]
    return all(each is None or _is_plain(each, function) for each in returned)


def _name(annotation: object) -> str:
    return "None" if annotation is None else getattr(annotation, "__name__", "")


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below a node, except those of nested functions and classes."""
    inner = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, inner):
            yield child
            yield from own_nodes(child)


def _is_plain(value: ast.expr, function: FunctionType) -> bool:
    """Return whether the value of an expression is sure not to be awaitable."""
    match value:
        case (
            ast.Constant()
            | ast.JoinedStr()
            | ast.Compare()
            | ast.BinOp()
            | ast.UnaryOp()
            | ast.List()
            | ast.Tuple()
            | ast.Dict()
            | ast.Set()
            | ast.ListComp()
            | ast.Subscript(slice=ast.Slice())
        ):
            return True
        case ast.IfExp(body=body, orelse=orelse):
            return _is_plain(body, function) and _is_plain(orelse, function)
        case ast.Call(func=callee):
            return _makes_plain(_known(callee, function))
    return False


def _known(value: ast.expr, function: FunctionType) -> object:
    """Resolve a global or builtin name, or ``module.name``; None if it is unknown."""
    match value:
        case ast.Name(id=name) if name not in function.__code__.co_varnames:
            return function.__globals__.get(name, getattr(builtins, name, None))
        case ast.Attribute(value=ast.Name() as owner, attr=name):
            module = _known(owner, function)
            return getattr(module, name, None) if isinstance(module, ModuleType) else None
    return None


def _makes_plain(callee: object) -> bool:
    """Return whether a call of this is sure not to be awaitable, as of bytes() or os.pread()."""
    if isinstance(callee, type):
        return callee.__module__ == "builtins"
    return inspect.isbuiltin(callee) and callee.__module__ == "posix"
