"""A disk that is a file on a web server."""

from .device import HTTPDevice
from .url import SCHEMES, redact_url

__all__ = ["SCHEMES", "HTTPDevice", "redact_url"]
