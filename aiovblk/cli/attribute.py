"""Load a device from Python code: ``package.module:attribute`` or ``path/to/file.py:attribute``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from ..device import BlockDevice
from .errors import SpecError


async def load_attribute(where: str, attribute: str) -> BlockDevice:
    """Import a module, and make a device of one of its attributes.

    Args:
        where: the name of a module, or the path of a file that ends in ``.py``.
        attribute: a BlockDevice, a subclass of it, or a function, async or not, that returns a
            device; dots lead to attributes of attributes.

    Raises:
        SpecError: there is no such module, file or attribute, or it is no device. What the user's
            own code raises comes out as it is.

    """
    found: object = _load_module(where)
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise SpecError(f"{where} has no attribute {attribute!r}") from None
    if not isinstance(found, BlockDevice) and callable(found):
        found = found()
    if inspect.isawaitable(found):
        found = await found
    if not isinstance(found, BlockDevice):
        raise SpecError(f"{where}:{attribute} is no BlockDevice but {found!r}")
    return found


def _load_module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")  # as `python -m` does
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as exc:
            if exc.name is None or not f"{where}.".startswith(f"{exc.name}."):
                raise  # a module that the user's module imports
            raise SpecError(f"there is no module {exc.name!r}") from None
    path = Path(where).resolve()
    if not path.is_file():
        raise SpecError(f"there is no file {where}")
    sys.path.insert(0, str(path.parent))  # as `python file.py` does
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # a name that ends in .py has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
