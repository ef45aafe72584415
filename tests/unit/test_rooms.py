"""Import rules: the rooms of the package and the allowed arrows between them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import aiovblk

from ..support.syntax_trees import syntax_tree

EVERY_ROOM = {
    "aio",
    "atfork",
    "bitmaps",
    "client",
    "contract",
    "device",
    "dispatch",
    "events",
    "extras",
    "interpreter",
    "kernel",
    "keyfiles",
    "latency",
    "libc",
    "mounting",
    "protocol",
    "server",
    "socketfile",
    "storage",
    "stream",
    "threads",
    "tls",
    "ublk",
    "unaligned",
    "workers",
}

# A room that is not here does not exist. Errors are for every room to raise, text for people is for
# every room to quote, and the checks of arguments are for every room to make.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": EVERY_ROOM,
    "__main__": {"cli"},
    "aio": set(),
    "arguments": set(),
    "atfork": set(),
    "bitmaps": set(),
    "errors": set(),
    "extras": set(),
    "text": set(),
    "device": set(),
    "contract": {"device"},
    "events": set(),
    "protocol": set(),
    "stream": {"atfork", "protocol"},
    "dispatch": {"bitmaps", "contract", "device", "events", "latency", "protocol", "stream"},
    "interpreter": set(),
    "kernel": {"atfork", "interpreter", "libc", "protocol", "threads"},
    "ublk": {"atfork", "device", "kernel", "libc", "protocol"},
    "keyfiles": set(),
    "latency": set(),
    "libc": set(),
    "mounting": {
        "aio",
        "atfork",
        "contract",
        "device",
        "dispatch",
        "events",
        "kernel",
        "socketfile",
        "protocol",
        "stream",
        "threads",
        "ublk",
        "workers",
    },
    "server": {
        "aio",
        "atfork",
        "bitmaps",
        "contract",
        "device",
        "dispatch",
        "events",
        "protocol",
        "socketfile",
        "stream",
        "tls",
        "unaligned",
        "workers",
    },
    "client": {"aio", "bitmaps", "device", "protocol", "stream", "tls"},
    "storage": {"aio", "bitmaps", "contract", "device", "extras", "latency", "libc", "unaligned"},
    "socketfile": set(),
    "threads": set(),
    "tls": {"keyfiles"},
    "unaligned": {"bitmaps", "device"},
    "workers": {"aio", "atfork", "interpreter", "threads"},
    "metrics": {"dispatch", "extras"},
    "testing": EVERY_ROOM,
    "cli": {*EVERY_ROOM, "testing", "__init__"},
}

NOT_FROM_OUTSIDE: dict[str, set[str]] = {
    "protocol": {"asyncio", "socket", "os", "io", "selectors", "ssl", "anyio", "uvloop"},
    "kernel": {"asyncio", "anyio", "uvloop"},
    "ublk": {"asyncio", "anyio", "uvloop"},
    "stream": {"anyio", "uvloop", "socket", "fcntl", "ctypes"},
    "dispatch": {"anyio", "uvloop", "fcntl", "ctypes"},
}


def violations(package: Path) -> list[str]:
    """Return every import under ``package`` that no arrow allows, in words."""
    return [
        f"{path.relative_to(package)}:{line}: {room} imports {target}"
        for path in sorted(package.rglob("*.py"))
        for room in [_room(path.relative_to(package).parts)]
        for line, target in _imports(path, package)
        if not _allowed(room, target)
    ]


def _room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def _allowed(room: str, target: str) -> bool:
    if room not in MAY_IMPORT:
        return False
    if not target.startswith("."):
        return target not in NOT_FROM_OUTSIDE.get(room, set())
    return target[1:] in {room, "arguments", "errors", "text", *MAY_IMPORT[room]}


def _imports(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Yield the imports of a file: line, and ``.room`` or the name of another package."""
    own = (package.name, *path.relative_to(package).parts[:-1])
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, _target(tuple(alias.name.split(".")), package)
        elif isinstance(node, ast.ImportFrom):
            origin = own[: len(own) - node.level + 1] if node.level else ()
            origin += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                # `from . import room` names the room last.
                name = (*origin, alias.name) if origin == (package.name,) else origin
                yield node.lineno, _target(name, package)


def _target(name: tuple[str, ...], package: Path) -> str:
    if name[0] != package.name:
        return name[0]
    room = name[1] if len(name) > 1 else "__init__"
    exists = (package / room).is_dir() or (package / f"{room}.py").is_file()
    return f".{room}" if exists else ".__init__"


def _planted(root: Path, files: dict[str, str]) -> list[str]:
    package = root / "aiovblk"
    every = {f"{room}.py": "" for room in ("errors", "device", "protocol", "mounting")}
    for name, text in (every | {"kernel/sysfs.py": "", "dispatch/stream.py": ""} | files).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return violations(package)


def test_package_keeps_to_its_rooms() -> None:
    assert violations(Path(aiovblk.__file__).parent) == []


def test_only_the_package_itself_imports_its_public_names(tmp_path: Path) -> None:
    planted = {
        "mounting.py": "from . import BlockDevice",
        "cli/a.py": "from aiovblk import mounting, X",
    }
    assert _planted(tmp_path, planted) == ["mounting.py:1: mounting imports .__init__"]


def test_allowed_imports_are_let_pass(tmp_path: Path) -> None:
    files = {
        "dispatch/a.py": "import asyncio\nfrom ..device import X\nfrom . import stream",
        "dispatch/b.py": "from .stream import X\nfrom .. import errors, protocol",
        "mounting.py": "from . import kernel\nfrom .kernel.sysfs import X\nimport aiovblk.errors",
        "__init__.py": "from .mounting import mountinging",
    }
    assert _planted(tmp_path, files) == []


def test_planted_violations_are_caught(tmp_path: Path) -> None:
    files = {
        "errors.py": "import errno\nfrom . import device",
        "device.py": "if True:\n    from .protocol import X",
        "dispatch/a.py": "from ..kernel.sysfs import X",
        "dispatch/b.py": "def f():\n    import aiovblk.mounting",
        "dispatch/deep/c.py": "from ... import kernel\nfrom ...device import X",
        "kernel/a.py": "from .. import mounting\nfrom aiovblk.dispatch import X",
        "utils.py": "from .errors import Error",
    }
    assert _planted(tmp_path, files) == [
        "device.py:2: device imports .protocol",
        "dispatch/a.py:1: dispatch imports .kernel",
        "dispatch/b.py:2: dispatch imports .mounting",
        "dispatch/deep/c.py:1: dispatch imports .kernel",
        "errors.py:2: errors imports .device",
        "kernel/a.py:1: kernel imports .mounting",
        "kernel/a.py:2: kernel imports .dispatch",
        "utils.py:1: utils imports .errors",
    ]


def test_planted_imports_from_outside_are_caught(tmp_path: Path) -> None:
    files = {
        "protocol.py": "import struct\nimport os.path\nfrom socket import socket",
        "kernel/a.py": "import os\nfrom asyncio import get_running_loop\nimport anyio.to_thread",
    }
    assert _planted(tmp_path, files) == [
        "kernel/a.py:2: kernel imports asyncio",
        "kernel/a.py:3: kernel imports anyio",
        "protocol.py:2: protocol imports os",
        "protocol.py:3: protocol imports socket",
    ]
