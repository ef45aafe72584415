"""Refuse devices that break the contract of BlockDevice, as far as that shows beforehand.

What is refused here would fail at each request. What can only be seen when a handler is called is
left to that call: a plain ``def`` is legal when what it returns can be awaited, and whether it can
is often not known before.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from types import FunctionType, MethodType, ModuleType

from .device import PAGE_SIZE, BlockDevice, Extent, check_geometry, check_instance

# How each handler is called, and how it is declared.
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

_NOT_AWAITABLE = {"None", "bytes", "bytearray", "memoryview"}
"""Annotations of what a handler is to return once it was awaited."""


def check_device(
    device: object, *, min_block_size: int = 512, max_block_size: int = PAGE_SIZE
) -> BlockDevice:
    """Refuse what cannot be served: no device, handlers that cannot be called, a wrong size.

    Args:
        device: what is to be served.
        min_block_size: bytes of the smallest block; see :func:`aiovblk.device.check_geometry`.
        max_block_size: bytes of the largest.

    Returns:
        The device.

    Raises:
        TypeError: not a :class:`BlockDevice`, or a handler is no ``async def`` of the right
            arguments, or a number is not an int.
        ValueError: a number is out of range.

    """
    found = check_instance(device)
    check_handlers(found)
    return check_geometry(found, min_block_size=min_block_size, max_block_size=max_block_size)


def check_inner(device: object, role: str = "inner") -> BlockDevice:
    """Refuse what a layer cannot lie on.

    Args:
        device: what lies below.
        role: the name of the parameter that it was given as.

    Raises:
        TypeError: as for :func:`check_device`.

    """
    found = check_instance(device, role)
    check_handlers(found)
    return found


def check_handlers(device: BlockDevice | type[BlockDevice]) -> None:
    """Refuse handlers that cannot be called and awaited.

    Args:
        device: an instance; or a class, of which one is made later.

    Raises:
        TypeError: one of them cannot be; the message names class and method, and the remedy.

    """
    for name, (args, options, form) in _CALLS.items():
        handler = getattr(device, name)
        if getattr(handler, "__func__", handler) is getattr(BlockDevice, name):
            continue
        if isinstance(device, type) and isinstance(
            inspect.getattr_static(device, name), FunctionType
        ):
            args = (None, *args)  # self
        if fault := signature_fault(handler, args, options):
            owner = defining_class(device, name)
            raise TypeError(f"{owner}.{name} must be async def {name}{form}: {fault}")


def defining_class(device: BlockDevice | type[BlockDevice], name: str) -> str:
    """The name of the class that a handler is defined in."""
    kind = device if isinstance(device, type) else type(device)
    if name in getattr(device, "__dict__", {}):
        return kind.__name__
    return next((each.__name__ for each in kind.__mro__ if name in vars(each)), kind.__name__)


def check_extents(found: Sequence[Extent]) -> Sequence[Extent]:
    """Return what a device's ``extents`` told, with which whoever asks on comes to an end.

    Raises:
        ValueError: it told none, or one without a byte: the next question would be the same.

    """
    if not found:
        raise ValueError("extents returned none")
    for length, _, _ in found:
        if length < 1:
            raise ValueError(f"extents returned one of {length} bytes")
    return found


def not_awaitable_reason(device: BlockDevice, name: str) -> str:
    """What to say when a handler has returned what cannot be awaited.

    Args:
        device: whose handler was called; the fault may be one of those below it.
        name: of the handler.

    """
    while is_async(getattr(device, name)):
        inner = getattr(device, "inner", None)
        if not isinstance(inner, BlockDevice):
            break
        device = inner
    form = _CALLS[name][2]
    return (
        f"{defining_class(device, name)}.{name} must be async def {name}{form}: what it returned cannot"
        " be awaited"
    )


def is_async(handler: object) -> bool:
    """Whether this is an ``async def``, or an object that is called by one."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(_code_of(handler))


def signature_fault(handler: object, args: tuple[object, ...], options: dict[str, object]) -> str:
    """Why a call of this handler is sure to fail; empty if it is not."""
    if not callable(handler):
        return f"it is {handler!r}, which cannot be called"
    function = _code_of(handler)
    if inspect.isasyncgenfunction(function):
        return "it is an async generator: return the result, do not yield it"
    if function is not None and not is_async(handler):
        if inspect.isgeneratorfunction(function):
            # types.coroutine() makes them awaitable.
            if not function.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE:
                return "it is a generator: return the result, do not yield it"
        elif _returns_no_awaitable(function):
            return "it is a plain def, and what that returns cannot be awaited"
    try:
        # Not what a decorator wraps: it may add arguments, or take some away.
        signature = inspect.signature(handler, follow_wrapped=False)
    except (TypeError, ValueError):  # not every builtin has one
        return ""
    try:
        signature.bind(*args, **options)
    except TypeError as exc:
        return f"it cannot be called so: {exc}"
    return ""


def _code_of(handler: object) -> FunctionType | None:
    """The function of Python that a call runs first; None if it is of another kind."""
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


# A plain def


def _returns_no_awaitable(function: FunctionType) -> bool:
    """Whether a plain ``def`` is sure to return what cannot be awaited."""
    # A decorator may have copied the annotation of what it wraps, and returns a coroutine of that.
    if not hasattr(function, "__wrapped__") and function.__name__ != "<lambda>":
        annotation = function.__annotations__.get("return", "")
        if (annotation if isinstance(annotation, str) else _name(annotation)) in _NOT_AWAITABLE:
            return True
    try:
        # The code, since getsource() of the function would look at what it wraps.
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
    """Everything below a node, but for functions and classes that are defined there."""
    inner = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, inner):
            yield child
            yield from own_nodes(child)


def _is_plain(value: ast.expr, function: FunctionType) -> bool:
    """Whether an expression is sure to have a value that cannot be awaited."""
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
    """What a name of the module or of the builtins stands for, ``module.name`` included."""
    match value:
        case ast.Name(id=name) if name not in function.__code__.co_varnames:
            return function.__globals__.get(name, getattr(builtins, name, None))
        case ast.Attribute(value=ast.Name() as owner, attr=name):
            module = _known(owner, function)
            return getattr(module, name, None) if isinstance(module, ModuleType) else None
    return None


def _makes_plain(callee: object) -> bool:
    """Whether a call of this is sure to return what cannot be awaited: of bytes(), os.pread()."""
    if isinstance(callee, type):
        return callee.__module__ == "builtins"
    return inspect.isbuiltin(callee) and callee.__module__ == "posix"
