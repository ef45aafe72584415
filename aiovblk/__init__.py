"""Asyncio-native virtual block devices for Linux: any object with async handlers is a disk."""

from .client import RemoteDevice, connect
from .device import BlockDevice, Extent
from .errors import (
    AttachError,
    DeviceBusyError,
    Error,
    MissingExtraError,
    NBDUnavailableError,
    OptionRefusedError,
    ProtocolError,
    TLSRequiredError,
    TLSUnavailableError,
    UblkUnavailableError,
)
from .kernel import RequestQueue
from .mounting import Mount, mount, mounted
from .server import Export, Server, serve

__version__ = "0.1.0"

__all__ = [
    "AttachError",
    "BlockDevice",
    "DeviceBusyError",
    "Error",
    "Export",
    "Extent",
    "MissingExtraError",
    "Mount",
    "NBDUnavailableError",
    "OptionRefusedError",
    "ProtocolError",
    "RemoteDevice",
    "RequestQueue",
    "Server",
    "TLSRequiredError",
    "TLSUnavailableError",
    "UblkUnavailableError",
    "__version__",
    "connect",
    "mount",
    "mounted",
    "serve",
]
