"""A disk that is a file on a web server."""

from .address import SCHEMES, redact_url
from .device import HTTPDevice

__all__ = ["SCHEMES", "HTTPDevice", "redact_url"]
